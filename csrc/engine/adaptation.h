// The inner loop of one task.
#pragma once

#include "worker.h"

namespace metagan {

// One task's part of an array [..., size], where there is one.
inline const float* of_task(const float* array, int64_t index, int64_t size) {
    return array ? array + index * size : nullptr;
}

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

}  // namespace metagan
