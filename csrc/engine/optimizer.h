// Inner optimizers, applied to each part of a gradient while it is in cache.
#pragma once

#include <cstdint>
#include <vector>

#include "network.h"
#include "ops/names.h"

namespace metagan {

struct OptimizerPlan {
    enum class Kind { sgd, momentum, adam, rmsprop };
    static constexpr Named<Kind> kKinds[] = {
        {"sgd", Kind::sgd}, {"momentum", Kind::momentum}, {"adam", Kind::adam}, {"rmsprop", Kind::rmsprop}};
    Kind kind = Kind::sgd;
    double momentum = 0, beta1 = 0, beta2 = 0, eps = 0, alpha = 0, weight_decay = 0;

    int buffers() const;
};

// Parameters and optimizer state of one network in an inner loop.
struct NetworkState {
    float* params = nullptr;
    std::vector<float*> buffers;
    int64_t updates = 0;
    int64_t version = new_version();
};

// Sink that updates parameters part by part. In a network whose operations share parameters, gradients are accumulated
// first and applied by finish().
class Update : public GradientSink {
  public:
    // `gradient` [numel] accumulates gradients of shared parameters; null if there are none. `clip`: bound of the
    // parameters, 0: none.
    Update(const OptimizerPlan&, NetworkState&, double lr, double clip, float* gradient, int64_t numel);

    void take(int64_t offset, int64_t rows, int64_t columns, int64_t row_stride, const float* gradient,
              int64_t gradient_stride) override;
    void finish();

  private:
    void apply(int64_t offset, int64_t size, const float* gradient);

    const OptimizerPlan& plan_;
    NetworkState& state_;
    double lr_, clip_, inverse_bias1_, inverse_bias2_;
    float* gradient_;
    int64_t numel_;
};

// Sink that adds factor * gradient to a flat array.
class Accumulate : public GradientSink {
  public:
    explicit Accumulate(float* total, float factor = 1) : total_(total), factor_(factor) {}

    void take(int64_t offset, int64_t rows, int64_t columns, int64_t row_stride, const float* gradient,
              int64_t gradient_stride) override;

  private:
    float* total_;
    float factor_;
};

}  // namespace metagan
