#include "engine.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <stdexcept>
#include <string>
#include <thread>

#include "adaptation.h"
#include "cpu/runtime/parallel.h"
#include "cpu/runtime/profile.h"
#include "meta_gradient.h"
#include "ordered_sum.h"
#include "scratch.h"
#include "worker.h"

namespace metagan {
namespace {

std::string text(const Shape& shape) {
    return '[' + std::to_string(shape.channels) + ", " + std::to_string(shape.height) + ", " +
           std::to_string(shape.width) + ']';
}

// Buffers of a sum over tasks: one more than workers, so early finishers don't block. A single worker needs one.
int64_t arrays_for(int64_t tasks, int64_t workers) { return workers == 1 ? 1 : std::min(workers + 1, tasks); }

// Adds a task's part(i) to a mean over tasks, called in task order; rounds as reference.reptile_gradient does.
template <class Part>
void add_to_mean(const TaskData& data, int64_t of_call, int64_t size, float* out, const Part& part) {
    const int64_t task = data.added + of_call, tasks = data.summed;
    for (int64_t i = 0; i < size; ++i) out[i] = task == 0 ? part(i) : out[i] + part(i);
    if (task + 1 < tasks) return;
    const float scale = static_cast<float>(1.0 / static_cast<double>(tasks));
    for (int64_t i = 0; i < size; ++i) out[i] *= scale;
}

constexpr std::chrono::milliseconds kPollInterval{50};  // between two checks for interruption

// Stop flag of a call. The calling thread polls `interrupted`; all threads read the flag.
class Stop {
  public:
    explicit Stop(const Engine::Interrupted& interrupted) : interrupted_(interrupted) {}

    bool operator()() {
        if (std::this_thread::get_id() == caller_ && interrupted_) {
            const auto now = std::chrono::steady_clock::now();
            if (now - polled_ > kPollInterval) {
                polled_ = now;
                if (interrupted_()) stopped_.store(true, std::memory_order_relaxed);
            }
        }
        return stopped_.load(std::memory_order_relaxed);
    }

    void give_up() { stopped_.store(true, std::memory_order_relaxed); }

  private:
    const Engine::Interrupted& interrupted_;
    const std::thread::id caller_ = std::this_thread::get_id();
    std::chrono::steady_clock::time_point polled_ = std::chrono::steady_clock::now();
    std::atomic<bool> stopped_{false};
};

}  // namespace

Engine::Engine(EnginePlan plan)
    : plan_(std::move(plan)), generator_(plan_.generator), discriminator_(plan_.discriminator) {
    const Shape &fake = generator_.output_shape(), &image = discriminator_.input_shape();
    if (fake.channels != image.channels || fake.height != image.height || fake.width != image.width)
        throw std::invalid_argument("expected the discriminator to take the generator's images, got " + text(image) +
                                    " for images " + text(fake));
    if (discriminator_.output_shape().elements() != 1)
        throw std::invalid_argument("expected the discriminator to return one score an image, got " +
                                    text(discriminator_.output_shape()));
}

Engine::~Engine() = default;

Engine::Turn::Turn(Workers& workers, const Interrupted& interrupted) : workers_(workers) {
    std::unique_lock<std::mutex> lock(workers.mutex);
    while (!workers.freed.wait_for(lock, kPollInterval, [&] { return !workers.busy; })) {
        lock.unlock();
        if (interrupted()) return;
        lock.lock();
    }
    workers.busy = has_ = true;
}

Engine::Turn::~Turn() {
    if (!has_) return;
    const std::lock_guard<std::mutex> lock(workers_.mutex);
    workers_.busy = false;
    workers_.freed.notify_one();
}

Engine::Sharing::Sharing(int64_t tasks, int64_t threads) : tasks(tasks) {
    const int at_once = usable_threads(threads);
    workers = tasks >= at_once ? at_once : 1;
    this->threads = workers == 1 ? static_cast<int>(threads) : 1;
}

bool Engine::for_each_task(Workers& workers, const Sharing& sharing, const Images& images,
                           const Interrupted& interrupted, const std::function<void(Worker&, int64_t)>& body) {
    const auto count = static_cast<size_t>(sharing.workers);
    if (workers.all.size() < count) workers.all.resize(count);
    Stop stop(interrupted);
    const std::function<bool()> stopped = std::ref(stop);
    std::atomic<int64_t> next{0};
    std::exception_ptr failure;
    std::mutex failing;
    const auto work = [&](int64_t index) {
        const Timed timed(Work::other);
        std::unique_ptr<Worker>& worker = workers.all[static_cast<size_t>(index)];
        try {
            for (int64_t task; (task = next.fetch_add(1)) < sharing.tasks && !stop();) {
                if (!worker) {
                    worker = std::make_unique<Worker>(*this, images.generator, images.discriminator);
                } else if (!worker->fits(images.generator, images.discriminator)) {
                    // Room for both kinds of calls, made after the old worker's memory is free.
                    const auto [generator, discriminator] = worker->capacity();
                    worker.reset();
                    worker = std::make_unique<Worker>(*this, std::max(generator, images.generator),
                                                      std::max(discriminator, images.discriminator));
                }
                worker->threads = sharing.threads;
                worker->stop = &stopped;
                body(*worker, task);
            }
        } catch (...) {
            const std::lock_guard<std::mutex> lock(failing);
            failure = std::current_exception();
            stop.give_up();
        }
        if (worker) worker->stop = nullptr;
    };
    const Idle idle{[](const void* context) { (*static_cast<Stop*>(const_cast<void*>(context)))(); }, &stop};
    parallel_for(sharing.workers, static_cast<int>(sharing.workers), work, idle);
    if (failure) std::rethrow_exception(failure);
    return !stop();
}

// A penalty at the real or fake images takes them themselves as its points, not copies, if they have the values that
// the loss has of them.
Engine::StepImages Engine::step_images(Counts count) const {
    const LossPlan& loss = plan_.loss;
    const int64_t n = loss.points(count).both(), both = count.both();
    if (n == 0) return {{}, {both, 0}};
    if (loss.location == LossPlan::Location::interpolate || !parts_real_and_fake()) return {{both, n}, {both + n, n}};
    return {{loss.location == LossPlan::Location::fake ? count.real : 0, n}, {both, n}};
}

Engine::Images Engine::images_held(const TaskData& data, const QueryData& query, bool adjoint) const {
    const Counts most{std::max(data.update.real, query.query), std::max(data.update.fake, query.query)};
    const int64_t of_step = step_images(most).count();
    if (!adjoint) return {most.fake, of_step};
    const int64_t of_part = adjoint_parts() == 1 ? most.both() : std::max(most.real, most.fake);
    return {2 * most.fake, std::max(2 * of_part, of_step)};
}

bool Engine::inner_loop(const TaskData& data, const Outputs& generator, const Outputs& discriminator,
                        const Interrupted& interrupted) {
    Workers& workers = workers_.get();
    const Turn turn(workers, interrupted);
    if (!turn) return false;
    const int64_t g = plan_.generator.numel, d = plan_.discriminator.numel;
    const bool rows = generator.params != nullptr;  // else: the mean difference
    const Sharing sharing(data.tasks, data.threads);
    OrderedSum sum(arrays_for(data.tasks, sharing.workers), g + d);
    sum.begin([&](int64_t task, const float* adapted) {
        const auto add = [&](const float* initial, const float* row, float* out, int64_t size) {
            add_to_mean(data, task, size, out, [=](int64_t i) { return initial[i] - row[i]; });
        };
        add(data.initial_generator, adapted, generator.difference, g);
        add(data.initial_discriminator, adapted + g, discriminator.difference, d);
    });
    return for_each_task(workers, sharing, {data.update.fake, step_images(data.update).count()}, interrupted,
                         [&](Worker& worker, int64_t task) {
                             float* const own = rows ? nullptr : sum.acquire(task, [&] { return worker.stopped(); });
                             if (!rows && !own) return;
                             Adaptation adaptation(*this, worker, data, task, rows ? generator.params + task * g : own,
                                                   rows ? discriminator.params + task * d : own + g, generator.buffers,
                                                   discriminator.buffers);
                             for (int64_t step = 0; step < data.steps && !worker.stopped(); ++step)
                                 adaptation.step(step);
                             adaptation.write_metrics();
                             if (!rows) sum.finish(task, own);
                         });
}

bool Engine::query_gradient(const TaskData& data, const QueryData& query, const QueryObjective& objective,
                            float* generator_gradient, float* discriminator_gradient, const Interrupted& interrupted) {
    Workers& workers = workers_.get();
    const Turn turn(workers, interrupted);
    if (!turn) return false;
    const int64_t g = plan_.generator.numel, d = plan_.discriminator.numel;
    const Sharing sharing(data.tasks, data.threads);
    OrderedSum sum(arrays_for(data.tasks, sharing.workers), g + d);
    sum.begin([&](int64_t task, const float* gradient) {
        const auto add = [&](const float* row, float* out, int64_t size) {
            add_to_mean(data, task, size, out, [=](int64_t i) { return row[i]; });
        };
        add(gradient, generator_gradient, g);
        add(gradient + g, discriminator_gradient, d);
    });
    return for_each_task(workers, sharing, images_held(data, query, !objective.first_order), interrupted,
                         [&](Worker& worker, int64_t task) {
                             float* const gradient = sum.acquire(task, [&] { return worker.stopped(); });
                             if (!gradient) return;
                             worker.clear(gradient, g + d);
                             task_gradient(*this, worker, data, query, objective, task, {gradient, gradient + g});
                             sum.finish(task, gradient);
                         });
}

bool Engine::query_losses(const TaskData& data, const QueryData& query, const float* generator,
                          const float* discriminator, const Interrupted& interrupted) {
    Workers& workers = workers_.get();
    const Turn turn(workers, interrupted);
    if (!turn) return false;
    const Images images{query.query, step_images({query.query, query.query}).count()};
    return for_each_task(workers, {data.tasks, data.threads}, images, interrupted, [&](Worker& worker, int64_t task) {
        const float* const opponent = discriminator + task * plan_.discriminator.numel;
        const QueryLosses losses = query_losses_of(*this, worker, data, query, task, 0,
                                                   generator + task * plan_.generator.numel, opponent, opponent);
        data.metrics[task] = static_cast<float>(losses.discriminator);
        data.metrics[data.tasks + task] = static_cast<float>(losses.generator);
    });
}

bool Engine::generate(int64_t tasks, int64_t count, int64_t threads, const float* generator, const float* latents,
                      float* images, const Interrupted& interrupted) {
    Workers& workers = workers_.get();
    const Turn turn(workers, interrupted);
    if (!turn) return false;
    const int64_t latent = generator_.input_shape().elements(), image = generator_.output_shape().elements();
    return for_each_task(workers, {tasks, threads}, {count, 1}, interrupted, [&](Worker& worker, int64_t task) {
        worker.generate(generator + task * plan_.generator.numel, latents + task * count * latent, count,
                        images + task * count * image);
    });
}

bool Engine::score(int64_t tasks, int64_t count, int64_t threads, const float* discriminator, const float* images,
                   float* scores, const Interrupted& interrupted) {
    Workers& workers = workers_.get();
    const Turn turn(workers, interrupted);
    if (!turn) return false;
    const int64_t image = discriminator_.input_shape().elements();
    return for_each_task(workers, {tasks, threads}, {1, count}, interrupted, [&](Worker& worker, int64_t task) {
        worker.score(discriminator + task * plan_.discriminator.numel, images + task * count * image, count,
                     scores + task * count);
    });
}

MemoryUse Engine::memory_use(const TaskData& data, const QueryData& query, const QueryObjective* objective,
                             bool rows) const {
    const bool adjoint = objective && !objective->first_order;
    const int64_t both = plan_.generator.numel + plan_.discriminator.numel;
    const Sharing sharing(data.tasks, data.threads);
    const Images images = images_held(data, query, adjoint);
    TransientArena arena;
    const auto workspace = [&](const Network& network, int64_t held, int64_t in_pass, Cotangents cotangents) {
        return network.workspace_bytes(held, in_pass, cotangents, plan_.precision, sharing.threads, arena);
    };
    const Counts most{std::max(data.update.real, query.query), std::max(data.update.fake, query.query)};
    int64_t activations = workspace(generator_, images.generator, images.generator, Cotangents::transient);
    activations +=
        workspace(discriminator_, images.discriminator, step_images(most).tangents.first, discriminator_cotangents());
    activations += arena.bytes();
    int64_t shared = 0, of_adjoint = 0;
    for (const Network* network : {&generator_, &discriminator_})
        if (network->shares_parameters()) shared = std::max(shared, network->plan().numel);
    if (objective) of_adjoint += both;  // the adapted parameters
    if (adjoint) of_adjoint += adjoint_floats(plan_, data.steps, objective->segment);
    if (objective && objective->opponent == Opponent::on_query)
        of_adjoint += opponent_floats(plan_, data.steps, objective->segment, adjoint);
    constexpr int64_t kFloat = sizeof(float);
    MemoryUse use;
    use.workers = sharing.workers;
    use.activations = sharing.workers * activations;
    use.optimizer_state = sharing.workers * (plan_.optimizer.buffers() * both + shared) * kFloat;
    use.adjoint = sharing.workers * of_adjoint * kFloat;
    use.scratch = usable_threads(data.threads) * kScratchFloats * kFloat;
    if (objective || !rows) use.sums = arrays_for(data.tasks, sharing.workers) * both * kFloat;
    return use;
}

}  // namespace metagan
