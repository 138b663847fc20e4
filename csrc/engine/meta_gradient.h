// Query losses of adapted networks and their gradients: at the adapted parameters (FOMAML), or through the inner loop
// (MAML).
#pragma once

#include "worker.h"

namespace metagan {

struct QueryLosses {
    double discriminator = 0, generator = 0;
};

// Sinks of each query loss's gradient by each network; null: not computed.
struct QueryGradients {
    GradientSink *generator_by_generator = nullptr, *generator_by_discriminator = nullptr;
    GradientSink *discriminator_by_generator = nullptr, *discriminator_by_discriminator = nullptr;
};

// Returns one task's query losses. `evaluation` indexes the query's noise; `opponent` is the discriminator of the
// generator's loss.
QueryLosses query_losses_of(const Engine&, Worker&, const TaskData&, const QueryData&, int64_t task, int64_t evaluation,
                            const float* generator, const float* discriminator, const float* opponent,
                            const QueryGradients& = {});

// Adapts to a task and adds the gradients of its query losses to `gradient`, which the caller has cleared.
void task_gradient(const Engine&, Worker&, const TaskData&, const QueryData&, const QueryObjective&, int64_t task,
                   Pair gradient);

// Floats of the reverse sweep through the inner loop, without the adapted parameters. `segment`: as in QueryObjective.
int64_t adjoint_floats(const EnginePlan&, int64_t steps, int64_t segment);
// Floats of an opponent adapted to the query images and, if `second_order`, of the reverse sweep through its
// adaptation.
int64_t opponent_floats(const EnginePlan&, int64_t steps, int64_t segment, bool second_order);

}  // namespace metagan
