// The inner loop of one task, and the gradient of its query losses.
#pragma once

#include "worker.h"

namespace metagan {

// One task on its way through the inner loop.
class Adaptation {
  public:
    // Parameters are written to the rows given; optimizer buffers too where there are any ([tasks][numel] each), which
    // then hold what was carried in.
    Adaptation(const Engine&, Worker&, const TaskData&, int64_t task, float* generator, float* discriminator,
               const std::vector<float*>& generator_buffers, const std::vector<float*>& discriminator_buffers);

    void step(int64_t step);
    // The two halves of a step.
    void discriminator_update(int64_t step, int64_t critic_step);
    void generator_update(int64_t step);

    NetworkState& generator() { return generator_; }
    NetworkState& discriminator() { return discriminator_; }
    // The images and latents of an update.
    const float* const* real(int64_t step, int64_t critic_step);
    const float* discriminator_latents(int64_t step, int64_t critic_step) const;
    const float* generator_latents(int64_t step) const;
    void write_metrics() const;

  private:
    int64_t draw(int64_t step, int64_t critic_step) const;  // index [steps, critic_steps, tasks] of this task's draws

    const Engine& engine_;
    Worker& worker_;
    const TaskData& data_;
    int64_t task_;
    NetworkState generator_, discriminator_;
    std::vector<const float*> real_;
    Scores scores_;
    double generator_loss_ = 0;
};

struct QueryLosses {
    double discriminator = 0, generator = 0;
};

// Where the gradients of each query loss by each network go; null: not wanted.
struct QueryGradients {
    GradientSink *generator_by_generator = nullptr, *generator_by_discriminator = nullptr;
    GradientSink *discriminator_by_generator = nullptr, *discriminator_by_discriminator = nullptr;
};

// `evaluation`: which of the query's draws; `opponent`: the discriminator that judges the generator.
QueryLosses query_losses_of(const Engine&, Worker&, const TaskData&, const QueryData&, int64_t task, int64_t evaluation,
                            const float* generator, const float* discriminator, const float* opponent,
                            const QueryGradients& = {});

// Adapts to a task and adds the gradients of its query losses to `gradient`, which holds zeros: taken at the adapted
// parameters, or through the inner loop.
void task_gradient(const Engine&, Worker&, const TaskData&, const QueryData&, const QueryObjective&, int64_t task,
                   Pair gradient);

// What the way back through the inner loop keeps besides the adapted parameters.
int64_t adjoint_floats(const EnginePlan&, int64_t steps);
// What an opponent adapted to the query images takes up, with the way back through its adaptation.
int64_t opponent_floats(const EnginePlan&, int64_t steps, bool adjoint);

}  // namespace metagan
