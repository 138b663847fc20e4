// The inner loop of one task.
#pragma once

#include "worker.h"

namespace metagan {

// Slice `index` of an array [..., size]; null if the array is.
inline const float* of_task(const float* array, int64_t index, int64_t size) {
    return array ? array + index * size : nullptr;
}

// State of one task's inner loop.
class Adaptation {
  public:
    // Copies the initial parameters to the given rows and updates them there. Optimizer buffers, [tasks][numel] each,
    // are continued in place if given; otherwise they start at zero in the worker's memory.
    Adaptation(const Engine&, Worker&, const TaskData&, int64_t task, float* generator, float* discriminator,
               const std::vector<float*>& generator_buffers, const std::vector<float*>& discriminator_buffers);

    void step(int64_t step);
    // The updates of a step.
    void discriminator_update(int64_t step, int64_t critic_step);
    void generator_update(int64_t step, int64_t generator_step);

    NetworkState& generator() { return generator_; }
    NetworkState& discriminator() { return discriminator_; }
    // Images (as addresses) and latents of an update.
    const float* const* real(int64_t step, int64_t critic_step);
    const float* discriminator_latents(int64_t step, int64_t critic_step) const;
    const float* generator_latents(int64_t step, int64_t generator_step) const;
    void write_metrics() const;

  private:
    // Index of this task's noise in [steps, critic_steps, tasks].
    int64_t draw(int64_t step, int64_t critic_step) const;

    const Engine& engine_;
    Worker& worker_;
    const TaskData& data_;
    int64_t task_;
    NetworkState generator_, discriminator_;
    std::vector<const float*> real_;
    DiscriminatorLoss discriminator_loss_;
    double generator_loss_ = 0;
};

}  // namespace metagan
