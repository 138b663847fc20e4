#include "adaptation.h"

#include "cpu/runtime/huge_pages.h"

namespace metagan {

Adaptation::Adaptation(const Engine& engine, Worker& worker, const TaskData& data, int64_t task, float* generator,
                       float* discriminator, const std::vector<float*>& generator_buffers,
                       const std::vector<float*>& discriminator_buffers)
    : engine_(engine), worker_(worker), data_(data), task_(task) {
    const auto start = [&](NetworkState& state, float* params, const float* initial, int64_t numel,
                           const std::vector<float*>& buffers, int64_t updates, size_t slot) {
        state.params = params;
        state.updates = updates;
        ask_for_huge_pages(params, static_cast<size_t>(numel) * sizeof(float));
        worker.copy(initial, numel, params);
        for (int i = 0; i < engine.plan().optimizer.buffers(); ++i) {
            const auto number = static_cast<size_t>(i);
            if (!buffers.empty()) {
                state.buffers.push_back(buffers[number] + task * numel);
                continue;
            }
            state.buffers.push_back(worker.array(slot + number, numel));
            worker.clear(state.buffers.back(), numel);
        }
    };
    start(generator_, generator, data.initial_generator, engine.plan().generator.numel, generator_buffers,
          data.generator_updates, kGeneratorBuffers);
    start(discriminator_, discriminator, data.initial_discriminator, engine.plan().discriminator.numel,
          discriminator_buffers, data.discriminator_updates, kDiscriminatorBuffers);
}

int64_t Adaptation::draw(int64_t step, int64_t critic_step) const {
    return (step * engine_.plan().critic_steps + critic_step) * data_.tasks + task_;
}

const float* const* Adaptation::real(int64_t step, int64_t critic_step) {
    const int64_t size = engine_.discriminator().input_shape().elements();
    const int64_t* const index =
        data_.support_index ? data_.support_index + draw(step, critic_step) * data_.update.real : nullptr;
    real_.clear();
    for (int64_t i = 0; i < data_.update.real; ++i)
        real_.push_back(data_.support + (task_ * data_.shots + (index ? index[i] : i)) * size);
    return real_.data();
}

const float* Adaptation::discriminator_latents(int64_t step, int64_t critic_step) const {
    return of_task(data_.discriminator_latents, draw(step, critic_step),
                   data_.update.fake * engine_.generator().input_shape().elements());
}

const float* Adaptation::generator_latents(int64_t step, int64_t generator_step) const {
    const int64_t update = step * engine_.plan().generator_steps + generator_step;
    return of_task(data_.generator_latents, update * data_.tasks + task_,
                   data_.update.fake * engine_.generator().input_shape().elements());
}

void Adaptation::discriminator_update(int64_t step, int64_t critic_step) {
    discriminator_loss_ = worker_.update_discriminator(
        discriminator_, generator_, real(step, critic_step), discriminator_latents(step, critic_step),
        of_task(data_.interpolation, draw(step, critic_step), data_.update.real), data_.update,
        data_.discriminator_lrs[static_cast<size_t>(step)]);
}

void Adaptation::generator_update(int64_t step, int64_t generator_step) {
    generator_loss_ = worker_.update_generator(generator_, discriminator_, real(step, engine_.plan().critic_steps - 1),
                                               generator_latents(step, generator_step), data_.update,
                                               data_.generator_lrs[static_cast<size_t>(step)]);
    if (data_.step_losses) {
        data_.step_losses[2 * step * data_.tasks + task_] = static_cast<float>(discriminator_loss_.loss);
        data_.step_losses[(2 * step + 1) * data_.tasks + task_] = static_cast<float>(generator_loss_);
    }
}

void Adaptation::step(int64_t step) {
    for (int64_t critic_step = 0; critic_step < engine_.plan().critic_steps; ++critic_step)
        discriminator_update(step, critic_step);
    for (int64_t generator_step = 0; generator_step < engine_.plan().generator_steps; ++generator_step)
        generator_update(step, generator_step);
}

void Adaptation::write_metrics() const {
    if (!data_.metrics) return;
    data_.metrics[task_] = static_cast<float>(discriminator_loss_.loss);
    data_.metrics[data_.tasks + task_] = static_cast<float>(discriminator_loss_.penalty);
    data_.metrics[2 * data_.tasks + task_] = static_cast<float>(generator_loss_);
}

}  // namespace metagan
