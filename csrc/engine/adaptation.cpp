#include "adaptation.h"

#include <algorithm>
#include <cmath>

namespace metagan {
namespace {

// Slots of a worker's arrays; 0 is for gradients of shared parameters.
enum Slot : size_t { kBuffers = 1, kParams = 8, kStates, kSweeps };

const float* of_task(const float* array, int64_t index, int64_t size) { return array ? array + index * size : nullptr; }

}  // namespace

Adaptation::Adaptation(const Engine& engine, Worker& worker, const TaskData& data, int64_t task, float* generator,
                       float* discriminator, const std::vector<float*>& generator_buffers,
                       const std::vector<float*>& discriminator_buffers)
    : engine_(engine), worker_(worker), data_(data), task_(task) {
    const auto start = [&](NetworkState& state, float* params, const float* initial, int64_t numel,
                           const std::vector<float*>& buffers, int64_t updates, size_t slot) {
        state.params = params;
        state.updates = updates;
        std::copy_n(initial, numel, params);
        for (int i = 0; i < engine.plan().optimizer.buffers(); ++i) {
            const auto number = static_cast<size_t>(i);
            if (!buffers.empty()) {
                state.buffers.push_back(buffers[number] + task * numel);
                continue;
            }
            state.buffers.push_back(worker.array(slot + number, numel));
            std::fill_n(state.buffers.back(), numel, 0.f);
        }
    };
    start(generator_, generator, data.initial_generator, engine.plan().generator.numel, generator_buffers,
          data.generator_updates, kBuffers);
    start(discriminator_, discriminator, data.initial_discriminator, engine.plan().discriminator.numel,
          discriminator_buffers, data.discriminator_updates, kBuffers + 2);
}

int64_t Adaptation::draw(int64_t step, int64_t critic_step) const {
    return (step * engine_.plan().critic_steps + critic_step) * data_.tasks + task_;
}

const float* const* Adaptation::real(int64_t step, int64_t critic_step) {
    const int64_t size = engine_.discriminator().input_shape().elements();
    const int64_t* const index =
        data_.support_index ? data_.support_index + draw(step, critic_step) * data_.batch : nullptr;
    real_.clear();
    for (int64_t i = 0; i < data_.batch; ++i)
        real_.push_back(data_.support + (task_ * data_.shots + (index ? index[i] : i)) * size);
    return real_.data();
}

const float* Adaptation::discriminator_latents(int64_t step, int64_t critic_step) const {
    return of_task(data_.discriminator_latents, draw(step, critic_step),
                   data_.batch * engine_.generator().input_shape().elements());
}

const float* Adaptation::generator_latents(int64_t step) const {
    return of_task(data_.generator_latents, step * data_.tasks + task_,
                   data_.batch * engine_.generator().input_shape().elements());
}

void Adaptation::discriminator_update(int64_t step, int64_t critic_step) {
    scores_ = worker_.update_discriminator(discriminator_, generator_.params, real(step, critic_step),
                                           discriminator_latents(step, critic_step),
                                           of_task(data_.interpolation, draw(step, critic_step), data_.batch),
                                           data_.batch, data_.discriminator_lrs[static_cast<size_t>(step)]);
}

void Adaptation::generator_update(int64_t step) {
    generator_loss_ =
        worker_.update_generator(generator_, discriminator_.params, real(step, engine_.plan().critic_steps - 1),
                                 generator_latents(step), data_.batch, data_.generator_lrs[static_cast<size_t>(step)]);
    if (data_.step_losses) {
        data_.step_losses[2 * step * data_.tasks + task_] = static_cast<float>(scores_.loss);
        data_.step_losses[(2 * step + 1) * data_.tasks + task_] = static_cast<float>(generator_loss_);
    }
}

void Adaptation::step(int64_t step) {
    for (int64_t critic_step = 0; critic_step < engine_.plan().critic_steps; ++critic_step)
        discriminator_update(step, critic_step);
    generator_update(step);
}

void Adaptation::write_metrics() const {
    if (!data_.metrics) return;
    data_.metrics[task_] = static_cast<float>(scores_.loss);
    data_.metrics[data_.tasks + task_] = static_cast<float>(scores_.penalty);
    data_.metrics[2 * data_.tasks + task_] = static_cast<float>(generator_loss_);
}

namespace {

// A task's query images and the draws of one evaluation.
struct Query {
    std::vector<const float*> images;
    const float *discriminator_latents, *generator_latents, *interpolation;

    Query(const Engine& engine, const TaskData& data, const QueryData& query, int64_t task, int64_t evaluation) {
        const int64_t image = engine.discriminator().input_shape().elements();
        const int64_t latents = query.query * engine.generator().input_shape().elements();
        const int64_t draw = evaluation * data.tasks + task;
        for (int64_t i = 0; i < query.query; ++i) images.push_back(query.images + (task * query.query + i) * image);
        discriminator_latents = of_task(query.discriminator_latents, draw, latents);
        generator_latents = of_task(query.generator_latents, draw, latents);
        interpolation = of_task(query.interpolation, draw, query.query);
    }
};

// Cotangents of a state on their way back through the inner loop: of both networks' parameters, and of their momentum.
struct Sweep {
    Pair params, momentum;
};

// Turns the cotangent of updated parameters (and momentum) into that of the gradient, in `direction`, and of the
// parameters (and momentum) before the update.
void update_adjoint(const OptimizerPlan& plan, int64_t size, double lr, float* params, float* momentum,
                    float* direction) {
    const float rate = static_cast<float>(lr), decay = static_cast<float>(plan.weight_decay);
    const float mu = static_cast<float>(plan.momentum);
    for (int64_t i = 0; i < size; ++i) {
        float of_gradient = -rate * params[i];
        if (momentum) {
            of_gradient += momentum[i];
            momentum[i] = mu * of_gradient;
        }
        params[i] += decay * of_gradient;
        direction[i] = of_gradient;
    }
}

// Both networks before every update: the initial ones, those in between, and, after the last, the adapted ones.
class History {
  public:
    History(const Engine& engine, Worker& worker, const TaskData& data, const float* adapted_generator,
            const float* adapted_discriminator)
        : generator_{data.initial_generator, adapted_generator, engine.plan().generator.numel, data.steps},
          discriminator_{data.initial_discriminator, adapted_discriminator, engine.plan().discriminator.numel,
                         data.steps * engine.plan().critic_steps} {
        generator_.between = worker.array(kStates, generator_.floats() + discriminator_.floats());
        discriminator_.between = generator_.between + generator_.floats();
    }

    static int64_t floats(const EnginePlan& plan, int64_t steps) {
        return (steps - 1) * plan.generator.numel + (steps * plan.critic_steps - 1) * plan.discriminator.numel;
    }

    void keep_generator(int64_t update, const float* params) { generator_.keep(update, params); }
    void keep_discriminator(int64_t update, const float* params) { discriminator_.keep(update, params); }
    const float* generator(int64_t update) const { return generator_.before(update); }
    const float* discriminator(int64_t update) const { return discriminator_.before(update); }

  private:
    struct States {
        const float *initial, *adapted;
        int64_t size, updates;
        float* between = nullptr;

        int64_t floats() const { return (updates - 1) * size; }
        void keep(int64_t update, const float* params) {
            if (update > 0) std::copy_n(params, size, between + (update - 1) * size);
        }
        const float* before(int64_t update) const {
            if (update == 0) return initial;
            return update == updates ? adapted : between + (update - 1) * size;
        }
    };
    States generator_, discriminator_;
};

}  // namespace

QueryLosses query_losses_of(const Engine& engine, Worker& worker, const TaskData& data, const QueryData& query,
                            int64_t task, int64_t evaluation, const float* generator, const float* discriminator,
                            const float* opponent, const QueryGradients& gradients) {
    const Query q(engine, data, query, task, evaluation);
    QueryLosses losses;
    losses.generator = worker.generator_loss(opponent, generator, q.images.data(), q.generator_latents, query.query,
                                             gradients.generator_by_generator, gradients.generator_by_discriminator);
    losses.discriminator =
        worker
            .discriminator_loss(discriminator, generator, q.images.data(), q.discriminator_latents, q.interpolation,
                                query.query, gradients.discriminator_by_discriminator,
                                gradients.discriminator_by_generator)
            .loss;
    return losses;
}

int64_t adjoint_floats(const EnginePlan& plan, int64_t steps) {
    const int64_t g = plan.generator.numel, d = plan.discriminator.numel;
    return History::floats(plan, steps) + g + d + 2 * std::max(g, d) + (plan.optimizer.buffers() > 0 ? 2 * (g + d) : 0);
}

void task_gradient(const Engine& engine, Worker& worker, const TaskData& data, const QueryData& query,
                   const QueryObjective& objective, int64_t task, Pair gradient) {
    const int64_t g = engine.plan().generator.numel, d = engine.plan().discriminator.numel;
    const int64_t critic_steps = engine.plan().critic_steps;
    const bool adjoint = !objective.first_order;
    float* const params = worker.array(kParams, g + d);
    Adaptation adaptation(engine, worker, data, task, params, params + g, {}, {});

    // Sweep 0 is the generator's query loss, sweep 1 the discriminator's; each ends in one half of the gradient. The
    // other halves, the directions and the momentum are the adjoint's alone.
    Sweep sweeps[2];
    sweeps[0].params.generator = gradient.generator;
    sweeps[1].params.discriminator = gradient.discriminator;
    float* directions[2] = {};
    if (adjoint) {
        const int64_t floats = adjoint_floats(engine.plan(), data.steps) - History::floats(engine.plan(), data.steps);
        float* memory = worker.array(kSweeps, floats);
        std::fill_n(memory, floats, 0.f);
        const auto next = [&memory](int64_t size) {
            memory += size;
            return memory - size;
        };
        sweeps[0].params.discriminator = next(d);
        sweeps[1].params.generator = next(g);
        for (int i = 0; i < 2; ++i) {
            directions[i] = next(std::max(g, d));
            if (engine.plan().optimizer.buffers() == 0) continue;
            sweeps[i].momentum.generator = next(g);
            sweeps[i].momentum.discriminator = next(d);
        }
    }

    QueryLosses losses;
    const auto evaluate = [&](int64_t step, const float* generator, const float* discriminator) {
        const double weight = objective.step_weights[static_cast<size_t>(step)];
        if (weight == 0) return;
        const float factor = static_cast<float>(weight);
        Accumulate generator_by_generator(sweeps[0].params.generator, factor);
        Accumulate generator_by_discriminator(sweeps[0].params.discriminator, factor);
        Accumulate discriminator_by_generator(sweeps[1].params.generator, factor);
        Accumulate discriminator_by_discriminator(sweeps[1].params.discriminator, factor);
        const bool initial = objective.against_initial;
        const QueryLosses here =
            query_losses_of(engine, worker, data, query, task, objective.multi_step ? step : 0, generator,
                            discriminator, initial ? data.initial_discriminator : discriminator,
                            {&generator_by_generator, adjoint && !initial ? &generator_by_discriminator : nullptr,
                             adjoint ? &discriminator_by_generator : nullptr, &discriminator_by_discriminator});
        if (step + 1 == data.steps) losses = here;
    };

    if (!adjoint) {
        for (int64_t step = 0; step < data.steps && !worker.stopped(); ++step) {
            adaptation.step(step);
            evaluate(step, adaptation.generator().params, adaptation.discriminator().params);
        }
        adaptation.write_metrics();
    } else {
        History history(engine, worker, data, params, params + g);
        for (int64_t step = 0; step < data.steps && !worker.stopped(); ++step) {
            for (int64_t critic_step = 0; critic_step < critic_steps; ++critic_step) {
                history.keep_discriminator(step * critic_steps + critic_step, adaptation.discriminator().params);
                adaptation.discriminator_update(step, critic_step);
            }
            history.keep_generator(step, adaptation.generator().params);
            adaptation.generator_update(step);
        }
        adaptation.write_metrics();
        const OptimizerPlan& optimizer = engine.plan().optimizer;
        const double clip = engine.plan().loss.clip;
        const std::vector<const float*> along{directions[0], directions[1]};
        const std::vector<Pair> totals{sweeps[0].params, sweeps[1].params};
        for (int64_t step = data.steps; step-- > 0 && !worker.stopped();) {
            const int64_t update = step * critic_steps;  // of the discriminator, the step's first
            evaluate(step, history.generator(step + 1), history.discriminator(update + critic_steps));
            for (int i = 0; i < 2; ++i)
                update_adjoint(optimizer, g, data.generator_lrs[static_cast<size_t>(step)], sweeps[i].params.generator,
                               sweeps[i].momentum.generator, directions[i]);
            worker.generator_adjoint(history.discriminator(update + critic_steps), history.generator(step),
                                     adaptation.generator_latents(step), data.batch, along, totals);
            for (int64_t critic_step = critic_steps; critic_step-- > 0;) {
                const float* const after = history.discriminator(update + critic_step + 1);
                for (int i = 0; i < 2; ++i) {
                    float* const cotangent = sweeps[i].params.discriminator;
                    if (clip > 0)  // clamped parameters did not move
                        for (int64_t k = 0; k < d; ++k)
                            if (std::fabs(after[k]) >= static_cast<float>(clip)) cotangent[k] = 0;
                    update_adjoint(optimizer, d, data.discriminator_lrs[static_cast<size_t>(step)], cotangent,
                                   sweeps[i].momentum.discriminator, directions[i]);
                }
                worker.discriminator_adjoint(history.discriminator(update + critic_step), history.generator(step),
                                             adaptation.real(step, critic_step),
                                             adaptation.discriminator_latents(step, critic_step), data.batch, along,
                                             totals);
            }
        }
    }
    if (data.metrics) {
        data.metrics[3 * data.tasks + task] = static_cast<float>(losses.discriminator);
        data.metrics[4 * data.tasks + task] = static_cast<float>(losses.generator);
    }
}

}  // namespace metagan
