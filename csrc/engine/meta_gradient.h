// Query losses of adapted networks, and their gradients: at the adapted parameters, or through the inner loop.
#pragma once

#include "worker.h"

namespace metagan {

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
