#include "engine.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <stdexcept>
#include <thread>

#include "../cpu/parallel.h"
#include "../cpu/profile.h"
#include "adaptation.h"
#include "meta_gradient.h"
#include "ordered_sum.h"
#include "scratch.h"
#include "worker.h"

namespace metagan {
namespace {

bool has_penalty(const LossPlan& loss) { return loss.penalty != LossPlan::Penalty::none; }

// Workers for so many tasks: one a thread, or one with all threads where tasks are fewer.
int64_t workers_for(int64_t tasks, int64_t threads) { return tasks >= threads ? threads : 1; }

// Arrays of a sum over tasks: one more than workers, so that who is early need not wait. A single one never does.
int64_t arrays_for(int64_t tasks, int64_t threads) {
    const int64_t workers = workers_for(tasks, threads);
    return workers == 1 ? 1 : std::min(workers + 1, tasks);
}

// Images of a discriminator that a discriminator step holds: real, fake, and the penalty's points and their tangents.
int64_t step_images(const LossPlan& loss, int64_t batch) { return (has_penalty(loss) ? 4 : 2) * batch; }

// Adds a task's part(i) to a mean over tasks, which come in order; rounds as reference.reptile_gradient does.
template <class Part>
void add_to_mean(int64_t task, int64_t tasks, int64_t size, float* out, const Part& part) {
    for (int64_t i = 0; i < size; ++i) out[i] = task == 0 ? part(i) : out[i] + part(i);
    if (task + 1 < tasks) return;
    const float scale = static_cast<float>(1.0 / static_cast<double>(tasks));
    for (int64_t i = 0; i < size; ++i) out[i] *= scale;
}

// Asks the caller whether to go on, at most every 50 ms; other threads read what it said.
class Stop {
  public:
    explicit Stop(const Engine::Interrupted& interrupted) : interrupted_(interrupted) {}

    bool operator()() {
        if (std::this_thread::get_id() == caller_ && interrupted_) {
            const auto now = std::chrono::steady_clock::now();
            if (now - asked_ > std::chrono::milliseconds(50)) {
                asked_ = now;
                if (interrupted_()) stopped_.store(true, std::memory_order_relaxed);
            }
        }
        return stopped_.load(std::memory_order_relaxed);
    }

    void give_up() { stopped_.store(true, std::memory_order_relaxed); }

  private:
    const Engine::Interrupted& interrupted_;
    const std::thread::id caller_ = std::this_thread::get_id();
    std::chrono::steady_clock::time_point asked_ = std::chrono::steady_clock::now();
    std::atomic<bool> stopped_{false};
};

}  // namespace

Engine::Engine(EnginePlan plan)
    : plan_(std::move(plan)), generator_(plan_.generator), discriminator_(plan_.discriminator) {
    const Shape &fake = generator_.output_shape(), &image = discriminator_.input_shape();
    if (fake.channels != image.channels || fake.height != image.height || fake.width != image.width)
        throw std::invalid_argument("expected the discriminator to take what the generator makes");
    if (discriminator_.output_shape().elements() != 1)
        throw std::invalid_argument("expected the discriminator to make one score an image");
}

Engine::~Engine() = default;

bool Engine::for_each_task(int64_t tasks, int64_t threads, int64_t generator_images, int64_t discriminator_images,
                           const Interrupted& interrupted, const std::function<void(Worker&, int64_t)>& body) {
    const auto count = static_cast<size_t>(workers_for(tasks, threads));
    if (workers_.size() < count) workers_.resize(count);
    Stop stop(interrupted);
    const std::function<bool()> ask = std::ref(stop);
    for (size_t i = 0; i < count; ++i) {
        auto& worker = workers_[i];
        if (!worker || !worker->fits(generator_images, discriminator_images))
            worker = std::make_unique<Worker>(*this, generator_images, discriminator_images);
        worker->threads = count == 1 ? static_cast<int>(threads) : 1;
        worker->stop = &ask;
    }
    std::atomic<int64_t> next{0};
    std::exception_ptr failure;
    std::mutex failing;
    const auto work = [&](int64_t index) {
        const Timed timed(Work::other);
        Worker& worker = *workers_[static_cast<size_t>(index)];
        try {
            for (int64_t task; (task = next.fetch_add(1)) < tasks && !stop();) body(worker, task);
        } catch (...) {
            const std::lock_guard<std::mutex> lock(failing);
            failure = std::current_exception();
            stop.give_up();
        }
    };
    const Idle idle{[](const void* context) { (*static_cast<Stop*>(const_cast<void*>(context)))(); }, &stop};
    parallel_for(static_cast<int64_t>(count), static_cast<int>(count), work, idle);
    for (size_t i = 0; i < count; ++i) workers_[i]->stop = nullptr;
    if (failure) std::rethrow_exception(failure);
    return !stop();
}

Engine::Images Engine::images_held(const TaskData& data, const QueryData& query, bool adjoint) const {
    const int64_t most = std::max(data.batch, query.query), of_step = step_images(plan_.loss, most);
    if (!adjoint) return {most, of_step};
    return {2 * most, std::max(4 * most / adjoint_parts(), of_step)};
}

bool Engine::inner_loop(const TaskData& data, const Outputs& generator, const Outputs& discriminator,
                        const Interrupted& interrupted) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const int64_t g = plan_.generator.numel, d = plan_.discriminator.numel;
    const bool rows = generator.params != nullptr;  // else the mean difference is wanted
    OrderedSum sum(rows ? 0 : arrays_for(data.tasks, data.threads), g + d);
    sum.begin([&](int64_t task, const float* adapted) {
        const auto add = [&](const float* initial, const float* row, float* out, int64_t size) {
            add_to_mean(task, data.tasks, size, out, [=](int64_t i) { return initial[i] - row[i]; });
        };
        add(data.initial_generator, adapted, generator.difference, g);
        add(data.initial_discriminator, adapted + g, discriminator.difference, d);
    });
    return for_each_task(data.tasks, data.threads, data.batch, step_images(plan_.loss, data.batch), interrupted,
                         [&](Worker& worker, int64_t task) {
                             float* const own = rows ? nullptr : sum.acquire();
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
    const std::lock_guard<std::mutex> lock(mutex_);
    const int64_t g = plan_.generator.numel, d = plan_.discriminator.numel;
    OrderedSum sum(arrays_for(data.tasks, data.threads), g + d);
    sum.begin([&](int64_t task, const float* gradient) {
        const auto add = [&](const float* row, float* out, int64_t size) {
            add_to_mean(task, data.tasks, size, out, [=](int64_t i) { return row[i]; });
        };
        add(gradient, generator_gradient, g);
        add(gradient + g, discriminator_gradient, d);
    });
    const Images images = images_held(data, query, !objective.first_order);
    return for_each_task(data.tasks, data.threads, images.generator, images.discriminator, interrupted,
                         [&](Worker& worker, int64_t task) {
                             float* const gradient = sum.acquire();
                             std::fill_n(gradient, g + d, 0.f);
                             task_gradient(*this, worker, data, query, objective, task, {gradient, gradient + g});
                             sum.finish(task, gradient);
                         });
}

bool Engine::query_losses(const TaskData& data, const QueryData& query, const float* generator,
                          const float* discriminator, const Interrupted& interrupted) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return for_each_task(data.tasks, data.threads, query.query, step_images(plan_.loss, query.query), interrupted,
                         [&](Worker& worker, int64_t task) {
                             const float* const opponent = discriminator + task * plan_.discriminator.numel;
                             const QueryLosses losses =
                                 query_losses_of(*this, worker, data, query, task, 0,
                                                 generator + task * plan_.generator.numel, opponent, opponent);
                             data.metrics[task] = static_cast<float>(losses.discriminator);
                             data.metrics[data.tasks + task] = static_cast<float>(losses.generator);
                         });
}

bool Engine::generate(int64_t tasks, int64_t count, int64_t threads, const float* generator, const float* latents,
                      float* images, const Interrupted& interrupted) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const int64_t latent = generator_.input_shape().elements(), image = generator_.output_shape().elements();
    return for_each_task(tasks, threads, count, 1, interrupted, [&](Worker& worker, int64_t task) {
        worker.generate(generator + task * plan_.generator.numel, latents + task * count * latent, count,
                        images + task * count * image);
    });
}

int64_t Engine::workspace_bytes(const TaskData& data, const QueryData& query, Opponent opponent, bool adjoint) const {
    const Images images = images_held(data, query, adjoint);
    const int64_t both = plan_.generator.numel + plan_.discriminator.numel;
    int64_t floats = kScratchFloats + (1 + plan_.optimizer.buffers()) * both;
    if (adjoint) floats += both + adjoint_floats(plan_, data.steps);
    if (opponent == Opponent::on_query) floats += opponent_floats(plan_, data.steps, adjoint);
    Passing passing;
    int64_t bytes = floats * int64_t{sizeof(float)};
    bytes += generator_.workspace_bytes(images.generator, Cotangents::passing, plan_.precision, passing);
    bytes += discriminator_.workspace_bytes(images.discriminator, discriminator_cotangents(), plan_.precision, passing);
    return bytes + passing.bytes();
}

}  // namespace metagan
