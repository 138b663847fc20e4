#include "meta_gradient.h"

#include <algorithm>
#include <cmath>
#include <optional>

#include "adaptation.h"
#include "trajectory.h"

namespace metagan {
namespace {

// A task's query images and the noise of one evaluation.
struct Query {
    std::vector<const float*> images;
    Counts count;
    const float *discriminator_latents, *generator_latents, *interpolation;

    Query(const Engine& engine, const TaskData& data, const QueryData& query, int64_t task, int64_t evaluation)
        : count{query.query, query.query} {
        const int64_t image = engine.discriminator().input_shape().elements();
        const int64_t latents = query.query * engine.generator().input_shape().elements();
        const int64_t draw = evaluation * data.tasks + task;
        for (int64_t i = 0; i < query.query; ++i) images.push_back(query.images + (task * query.query + i) * image);
        discriminator_latents = of_task(query.discriminator_latents, draw, latents);
        generator_latents = of_task(query.generator_latents, draw, latents);
        interpolation = of_task(query.interpolation, draw, query.query);
    }
};

// Adjoint of an optimizer update, without the gradient's dependence on the parameters: turns the cotangents of the
// updated parameters and momentum into those before the update, and writes the gradient's cotangent to `direction`.
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

// Adjoint of one discriminator update: turns the cotangents after it into those before it, and adds the generator's,
// through the fake images.
void discriminator_update_adjoint(const Engine& engine, Worker& worker, double lr, const float* before,
                                  const float* after, const float* generator, const float* const* real,
                                  const float* latents, Counts count, const std::vector<AdjointState>& adjoints) {
    const int64_t size = engine.plan().discriminator.numel;
    const auto clip = static_cast<float>(engine.plan().loss.clip);
    for (const AdjointState& adjoint : adjoints)
        for (int64_t k = 0; clip > 0 && k < size; ++k)  // the derivative of a clamped parameter is 0
            if (std::fabs(after[k]) >= clip) adjoint.params.discriminator[k] = 0;
    for (const AdjointState& adjoint : adjoints)  // may overwrite `after`, which is not read again
        update_adjoint(engine.plan().optimizer, size, lr, adjoint.params.discriminator, adjoint.momentum.discriminator,
                       adjoint.direction.discriminator);
    worker.discriminator_adjoint(before, generator, real, latents, count, adjoints);
}

Trajectory::Sizes generator_sizes(const EnginePlan& plan, int64_t steps, int64_t segment) {
    return {plan.generator.numel, plan.optimizer.buffers(), steps, plan.generator_steps, segment};
}

Trajectory::Sizes discriminator_sizes(const EnginePlan& plan, int64_t steps, int64_t segment) {
    return {plan.discriminator.numel, plan.optimizer.buffers(), steps, plan.critic_steps, segment};
}

// Opponent::on_query: the initial discriminator, adapted to a task's query images against the adapted generator.
class QueryOpponent {
  public:
    QueryOpponent(const Engine& engine, Worker& worker, const TaskData& data, const QueryData& query, int64_t task,
                  int64_t segment, bool second_order)
        : engine_(engine),
          worker_(worker),
          data_(data),
          query_(query),
          task_(task),
          segment_(segment),
          images_(engine, data, query, task, 0) {
        const int64_t d = size();
        BumpAllocator next(worker,
                           worker.array(kOpponent, opponent_floats(engine.plan(), data.steps, segment, second_order)));
        state_.params = next(d);
        for (int i = 0; i < engine.plan().optimizer.buffers(); ++i) state_.buffers.push_back(next.zeros(d));
        if (!second_order) return;
        AdjointState& adjoint = adjoints_.front();
        adjoint.params.discriminator = next.zeros(d);
        adjoint.direction.discriminator = next(d);
        if (engine.plan().optimizer.buffers() > 0) adjoint.momentum.discriminator = next.zeros(d);
        trajectory_.emplace(worker, state_, data.initial_discriminator,
                            discriminator_sizes(engine.plan(), data.steps, segment), next);
    }

    const float* adapt(const float* generator) {
        const int64_t d = size();
        worker_.copy(data_.initial_discriminator, d, state_.params);
        state_.version = new_version();
        run(generator, 0, data_.steps);
        return state_.params;
    }

    // Accumulates the gradient of the generator's query loss by this discriminator.
    float* cotangent() { return adjoints_.front().params.discriminator; }

    // Back-propagates that gradient through the adaptation and adds the gradient by the generator.
    void back_propagate(const float* generator, float* by_generator) {
        const int64_t critic_steps = engine_.plan().critic_steps;
        adjoints_.front().params.generator = by_generator;
        for (int64_t update = data_.steps * critic_steps; update-- > 0 && !worker_.stopped();) {
            const int64_t step = update / critic_steps;
            if (!trajectory_->holds(step)) {
                const int64_t first = step / segment_ * segment_;
                trajectory_->rewind(first);
                run(generator, first, step + 1);
            }
            discriminator_update_adjoint(engine_, worker_, rate(update), trajectory_->before(update),
                                         trajectory_->before(update + 1), generator, images_.images.data(),
                                         latents(update), images_.count, adjoints_);
        }
    }

  private:
    // Updates of steps [first, last).
    void run(const float* generator, int64_t first, int64_t last) {
        const int64_t critic_steps = engine_.plan().critic_steps;
        for (int64_t update = first * critic_steps; update < last * critic_steps && !worker_.stopped(); ++update) {
            if (trajectory_) trajectory_->keep(update);
            worker_.update_discriminator(state_, generator, images_.images.data(), latents(update),
                                         of_task(query_.adaptation_interpolation, draw(update), query_.query),
                                         images_.count, rate(update));
        }
    }

    int64_t size() const { return engine_.plan().discriminator.numel; }
    int64_t draw(int64_t update) const { return update * data_.tasks + task_; }
    double rate(int64_t update) const {
        return data_.discriminator_lrs[static_cast<size_t>(update / engine_.plan().critic_steps)];
    }
    const float* latents(int64_t update) const {
        return of_task(query_.adaptation_latents, draw(update),
                       query_.query * engine_.generator().input_shape().elements());
    }

    const Engine& engine_;
    Worker& worker_;
    const TaskData& data_;
    const QueryData& query_;
    int64_t task_, segment_;
    Query images_;
    NetworkState state_;
    std::vector<AdjointState> adjoints_{1};
    std::optional<Trajectory> trajectory_;  // if the adaptation is differentiated
};

}  // namespace

QueryLosses query_losses_of(const Engine& engine, Worker& worker, const TaskData& data, const QueryData& query,
                            int64_t task, int64_t evaluation, const float* generator, const float* discriminator,
                            const float* opponent, const QueryGradients& gradients) {
    const Query q(engine, data, query, task, evaluation);
    QueryLosses losses;
    losses.generator = worker.generator_loss(opponent, generator, q.images.data(), q.generator_latents, q.count,
                                             gradients.generator_by_generator, gradients.generator_by_discriminator);
    losses.discriminator =
        worker
            .discriminator_loss(discriminator, generator, q.images.data(), q.discriminator_latents, q.interpolation,
                                q.count, gradients.discriminator_by_discriminator, gradients.discriminator_by_generator)
            .loss;
    return losses;
}

int64_t adjoint_floats(const EnginePlan& plan, int64_t steps, int64_t segment) {
    const int64_t g = plan.generator.numel, d = plan.discriminator.numel;
    const int64_t states =
        generator_sizes(plan, steps, segment).floats() + discriminator_sizes(plan, steps, segment).floats();
    return states + g + d + std::max(g, d) + (plan.optimizer.buffers() > 0 ? 2 * (g + d) : 0);
}

int64_t opponent_floats(const EnginePlan& plan, int64_t steps, int64_t segment, bool second_order) {
    const int64_t states = 1 + plan.optimizer.buffers();
    const int64_t of_adjoint = 2 + (plan.optimizer.buffers() > 0 ? 1 : 0);
    int64_t floats = (states + (second_order ? of_adjoint : 0)) * plan.discriminator.numel;
    if (second_order) floats += discriminator_sizes(plan, steps, segment).floats();
    return floats;
}

void task_gradient(const Engine& engine, Worker& worker, const TaskData& data, const QueryData& query,
                   const QueryObjective& objective, int64_t task, Pair gradient) {
    const int64_t g = engine.plan().generator.numel, d = engine.plan().discriminator.numel;
    const int64_t critic_steps = engine.plan().critic_steps, generator_steps = engine.plan().generator_steps;
    const bool second_order = !objective.first_order;
    float* const params = worker.array(kParams, g + d);
    Adaptation adaptation(engine, worker, data, task, params, params + g, {}, {});

    // Adjoint 0 is of the generator's query loss, adjoint 1 of the discriminator's; the result is the former's
    // generator half and the latter's discriminator half. FOMAML needs nothing else.
    std::vector<AdjointState> adjoints(2);
    adjoints[0].params.generator = gradient.generator;
    adjoints[1].params.discriminator = gradient.discriminator;
    std::optional<Trajectory> generators, discriminators;
    if (second_order) {
        BumpAllocator next(worker,
                           worker.array(kAdjoints, adjoint_floats(engine.plan(), data.steps, objective.segment)));
        adjoints[0].params.discriminator = next.zeros(d);
        adjoints[1].params.generator = next.zeros(g);
        // The first adjoint's directions overwrite the adapted parameters, which are not read once their last updates
        // are reversed; the second's directions share memory, since one network is updated at a time.
        adjoints[0].direction = {params, params + g};
        adjoints[1].direction.generator = adjoints[1].direction.discriminator = next(std::max(g, d));
        for (AdjointState& adjoint : adjoints) {
            if (engine.plan().optimizer.buffers() == 0) continue;
            adjoint.momentum.generator = next.zeros(g);
            adjoint.momentum.discriminator = next.zeros(d);
        }
        generators.emplace(worker, adaptation.generator(), data.initial_generator,
                           generator_sizes(engine.plan(), data.steps, objective.segment), next);
        discriminators.emplace(worker, adaptation.discriminator(), data.initial_discriminator,
                               discriminator_sizes(engine.plan(), data.steps, objective.segment), next);
    }

    std::optional<QueryOpponent> on_query;
    if (objective.opponent == Opponent::on_query)
        on_query.emplace(engine, worker, data, query, task, objective.segment, second_order);

    QueryLosses losses;
    const auto evaluate = [&](int64_t step, const float* generator, const float* discriminator) {
        const double weight = objective.step_weights[static_cast<size_t>(step)];
        if (weight == 0) return;
        const float factor = static_cast<float>(weight);
        const float* opponent = discriminator;
        float* by_opponent = adjoints[0].params.discriminator;
        if (objective.opponent == Opponent::initial) {
            opponent = data.initial_discriminator;  // no gradient flows into it
            by_opponent = nullptr;
        } else if (on_query) {
            opponent = on_query->adapt(generator);
            by_opponent = on_query->cotangent();
        }
        Accumulate generator_by_generator(adjoints[0].params.generator, factor);
        Accumulate generator_by_opponent(by_opponent, factor);
        Accumulate discriminator_by_generator(adjoints[1].params.generator, factor);
        Accumulate discriminator_by_discriminator(adjoints[1].params.discriminator, factor);
        const QueryLosses here = query_losses_of(
            engine, worker, data, query, task, objective.multi_step ? step : 0, generator, discriminator, opponent,
            {&generator_by_generator, second_order && by_opponent ? &generator_by_opponent : nullptr,
             second_order ? &discriminator_by_generator : nullptr, &discriminator_by_discriminator});
        if (on_query && second_order) on_query->back_propagate(generator, adjoints[0].params.generator);
        if (step + 1 == data.steps) losses = here;
    };

    if (!second_order) {
        for (int64_t step = 0; step < data.steps && !worker.stopped(); ++step) {
            adaptation.step(step);
            evaluate(step, adaptation.generator().params, adaptation.discriminator().params);
        }
        adaptation.write_metrics();
    } else {
        const auto run = [&](int64_t first, int64_t last) {
            for (int64_t step = first; step < last && !worker.stopped(); ++step) {
                for (int64_t critic_step = 0; critic_step < critic_steps; ++critic_step) {
                    discriminators->keep(step * critic_steps + critic_step);
                    adaptation.discriminator_update(step, critic_step);
                }
                for (int64_t generator_step = 0; generator_step < generator_steps; ++generator_step) {
                    generators->keep(step * generator_steps + generator_step);
                    adaptation.generator_update(step, generator_step);
                }
            }
        };
        run(0, data.steps);
        adaptation.write_metrics();
        const OptimizerPlan& optimizer = engine.plan().optimizer;
        for (int64_t step = data.steps; step-- > 0 && !worker.stopped();) {
            if (!discriminators->holds(step)) {
                const int64_t first = step / objective.segment * objective.segment;
                generators->rewind(first);
                discriminators->rewind(first);
                run(first, step + 1);
            }
            const int64_t update = step * critic_steps;  // the step's first update of the discriminator
            const int64_t generator_update = step * generator_steps;
            const float* const opponent = discriminators->before(update + critic_steps);
            evaluate(step, generators->before(generator_update + generator_steps), opponent);
            for (int64_t generator_step = generator_steps; generator_step-- > 0;) {
                for (const AdjointState& adjoint : adjoints)
                    update_adjoint(optimizer, g, data.generator_lrs[static_cast<size_t>(step)],
                                   adjoint.params.generator, adjoint.momentum.generator, adjoint.direction.generator);
                worker.generator_adjoint(opponent, generators->before(generator_update + generator_step),
                                         adaptation.generator_latents(step, generator_step), data.update.fake,
                                         adjoints);
            }
            for (int64_t critic_step = critic_steps; critic_step-- > 0;)
                discriminator_update_adjoint(
                    engine, worker, data.discriminator_lrs[static_cast<size_t>(step)],
                    discriminators->before(update + critic_step), discriminators->before(update + critic_step + 1),
                    generators->before(generator_update), adaptation.real(step, critic_step),
                    adaptation.discriminator_latents(step, critic_step), data.update, adjoints);
        }
    }
    if (data.metrics) {
        data.metrics[3 * data.tasks + task] = static_cast<float>(losses.discriminator);
        data.metrics[4 * data.tasks + task] = static_cast<float>(losses.generator);
    }
}

}  // namespace metagan
