#include "optimizer.h"

#include <algorithm>
#include <cmath>

#include "cpu/dispatch.h"
#include "cpu/runtime/profile.h"

namespace metagan {
namespace {

// Calls body(offset, gradient, size) for each row, or once for all if they are contiguous.
template <class Body>
void for_each_row(int64_t offset, int64_t rows, int64_t columns, int64_t row_stride, const float* gradient,
                  int64_t gradient_stride, const Body& body) {
    if (columns == row_stride && columns == gradient_stride) return body(offset, gradient, rows * columns);
    for (int64_t row = 0; row < rows; ++row) body(offset + row * row_stride, gradient + row * gradient_stride, columns);
}

}  // namespace

int OptimizerPlan::buffers() const {
    switch (kind) {
        case Kind::momentum:
            return 1;
        case Kind::adam:
            return 2;
        case Kind::rmsprop:
            return momentum != 0 ? 2 : 1;
        case Kind::sgd:
            break;
    }
    return 0;
}

Update::Update(const OptimizerPlan& plan, NetworkState& state, double lr, double clip, float* gradient, int64_t numel)
    : plan_(plan), state_(state), lr_(lr), clip_(clip), gradient_(gradient), numel_(numel) {
    ++state.updates;
    const double step = static_cast<double>(state.updates);
    inverse_bias1_ = 1 / (1 - std::pow(plan.beta1, step));
    inverse_bias2_ = 1 / (1 - std::pow(plan.beta2, step));
    if (gradient) std::fill_n(gradient, numel, 0.f);
}

void Update::take(int64_t offset, int64_t rows, int64_t columns, int64_t row_stride, const float* gradient,
                  int64_t gradient_stride) {
    if (gradient_) return Accumulate(gradient_).take(offset, rows, columns, row_stride, gradient, gradient_stride);
    const Timed timed(Work::update);
    for_each_row(offset, rows, columns, row_stride, gradient, gradient_stride,
                 [&](int64_t at, const float* from, int64_t size) { apply(at, size, from); });
}

void Update::finish() {
    const Timed timed(Work::update);
    if (gradient_) apply(0, numel_, gradient_);
    state_.version = new_version();
}

void Update::apply(int64_t offset, int64_t size, const float* gradient) {
    using cpu::Buffer;
    const cpu::UpdateKernels& kernels = update_kernels();
    const auto at = [&](float* array) { return Buffer{array + offset, array + offset}; };
    const cpu::Rate rate{nullptr, lr_};
    switch (plan_.kind) {
        case OptimizerPlan::Kind::sgd:
            kernels.sgd_step(DType::float32, size, at(state_.params), gradient, Buffer{}, rate,
                             {0, 0, plan_.weight_decay, false});
            break;
        case OptimizerPlan::Kind::momentum:
            kernels.sgd_step(DType::float32, size, at(state_.params), gradient, at(state_.buffers[0]), rate,
                             {plan_.momentum, 0, plan_.weight_decay, false});
            break;
        case OptimizerPlan::Kind::adam:
            kernels.adam_step(
                DType::float32, size, at(state_.params), gradient, at(state_.buffers[0]), at(state_.buffers[1]),
                Buffer{}, rate,
                {plan_.beta1, plan_.beta2, inverse_bias1_, inverse_bias2_, plan_.eps, 0, plan_.weight_decay, false});
            break;
        case OptimizerPlan::Kind::rmsprop:
            kernels.rmsprop_step(DType::float32, size, at(state_.params), gradient, at(state_.buffers[0]),
                                 plan_.momentum != 0 ? at(state_.buffers[1]) : Buffer{}, Buffer{}, rate,
                                 {plan_.alpha, plan_.eps, plan_.weight_decay, plan_.momentum});
            break;
    }
    if (clip_ > 0) layer_kernels().clamp(size, static_cast<float>(clip_), state_.params + offset);
}

void Accumulate::take(int64_t offset, int64_t rows, int64_t columns, int64_t row_stride, const float* gradient,
                      int64_t gradient_stride) {
    const Timed timed(Work::update);
    for_each_row(
        offset, rows, columns, row_stride, gradient, gradient_stride,
        [&](int64_t at, const float* from, int64_t size) { layer_kernels().add(size, factor_, from, total_ + at); });
}

}  // namespace metagan
