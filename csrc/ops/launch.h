// Launchers of the fused ops over flat buffers: plain addresses, sizes and scalars, so that no framework's headers
// are needed. One function an op, under the op's name. Formulas are in updates.h; metagan_fast/_core.pyi says the same
// to Python.
#pragma once

#include <cstdint>
#include <vector>

namespace metagan {

// How elements are stored. bfloat16 computes in float32 and rounds once, at the store.
enum class DType : int { float32 = 0, bfloat16 = 1, float64 = 2 };

// `rows` rows of `columns` adjacent elements. Row strides count elements and may be anything, 0 included for inputs.
struct Matrix {
    void* data = nullptr;
    int64_t row_stride = 0;
};

struct Launch {
    DType dtype;
    int64_t rows;
    int64_t columns;
    int threads;  // at most this many; results do not depend on it
};

// The rate of row r, segment s, element e is data[r * row_stride + s * segment_stride + e * element_stride], with data
// in the arithmetic dtype (float64 for float64, else float32). Segment s covers the columns from segment_ends[s - 1]
// up to segment_ends[s]. Without data the rate is `value` everywhere.
struct LearningRate {
    double value = 0;
    const void* data = nullptr;
    int64_t row_stride = 0;
    int64_t segment_stride = 0;
    int64_t element_stride = 0;             // 0 or 1
    const int64_t* segment_ends = nullptr;  // ascending, the last one is `columns`; none: one segment
    int64_t segments = 1;
};

// A number, or where it lies: a double in the memory that the launch works in, read when the op runs. So what a
// recorded launch is given may change from one replay to the next.
struct Number {
    double value = 0;
    const double* data = nullptr;  // null: `value`

    Number(double number = 0) : value(number) {}  // implicit: wherever a number will do
    explicit Number(const double* address) : data(address) {}
};

struct SgdOptions {
    double momentum, dampening, weight_decay;
    bool nesterov;
};

struct AdamOptions {
    double beta1, beta2;
    Number inverse_bias1, inverse_bias2;
    double eps, eps_root, weight_decay;
    bool decoupled;
};

struct RmspropOptions {
    double alpha, eps, weight_decay, momentum;
};

// The ops as types of functions, since those of csrc/cuda/kernels.h differ in nothing but To, where and how they run.
// Every output may be one of the inputs (the same address and stride), and may not overlap any other way.
template <class To>
struct Ops {
    // The momentum buffer is absent (null) when momentum is 0.
    using sgd_step = void(const To&, Matrix params, Matrix grads, Matrix momentum_buffer, Matrix params_out,
                          Matrix momentum_buffer_out, const LearningRate&, const SgdOptions&);

    using adam_step = void(const To&, Matrix params, Matrix grads, Matrix exp_avg, Matrix exp_avg_sq, Matrix params_out,
                           Matrix exp_avg_out, Matrix exp_avg_sq_out, const LearningRate&, const AdamOptions&);

    // The momentum buffer is absent when momentum is 0; grad_avg is absent unless the variance is centered.
    using rmsprop_step = void(const To&, Matrix params, Matrix grads, Matrix square_avg, Matrix momentum_buffer,
                              Matrix grad_avg, Matrix params_out, Matrix square_avg_out, Matrix momentum_buffer_out,
                              Matrix grad_avg_out, const LearningRate&, const RmspropOptions&);

    // The three that combine tasks: To::rows counts the rows of `adapted`, everything else is one row. `weights` is
    // [rows] in the arithmetic dtype, or null for the mean.
    using reptile_interpolate = void(const To&, const void* initial, Matrix adapted, const void* weights, void* out,
                                     Number step_size);

    using reptile_gradient = void(const To&, const void* initial, Matrix adapted, const void* weights, void* out);

    using meta_adam_step = void(const To&, const void* params, Matrix adapted, const void* weights, const void* exp_avg,
                                const void* exp_avg_sq, void* params_out, void* exp_avg_out, void* exp_avg_sq_out,
                                const LearningRate&, const AdamOptions&);

    using ema_update = void(const To&, Matrix average, Matrix params, Matrix average_out, double decay);
};

Ops<Launch>::sgd_step sgd_step;
Ops<Launch>::adam_step adam_step;
Ops<Launch>::rmsprop_step rmsprop_step;
Ops<Launch>::reptile_interpolate reptile_interpolate;
Ops<Launch>::reptile_gradient reptile_gradient;
Ops<Launch>::meta_adam_step meta_adam_step;
Ops<Launch>::ema_update ema_update;

// Writes the norms, [rows] in the arithmetic dtype, as they were before scaling.
void clip_grad_norm(const Launch&, Matrix grads, Matrix grads_out, void* norms_out, double max_norm);

constexpr int kMostState = 3;

// One tensor of an optimizer: `size` adjacent elements, updated in place.
struct Piece {
    DType dtype;
    int64_t size;
    void* params;
    const void* grads;
    void* state[kMostState];  // the op's buffers in order, null where absent
    double step;              // the number of this update, counted from 1, where that matters
};

// Updates of many tensors at once. Threads share elements, not tensors. With `maximize` a step goes up the gradient.
// Adam's third buffer, if there is one, is AMSGrad's; its bias corrections follow from each piece's step.
void sgd_steps(const std::vector<Piece>&, int threads, bool maximize, double lr, const SgdOptions&);
void adam_steps(const std::vector<Piece>&, int threads, bool maximize, double lr, const AdamOptions&);
void rmsprop_steps(const std::vector<Piece>&, int threads, bool maximize, double lr, const RmspropOptions&);

}  // namespace metagan
