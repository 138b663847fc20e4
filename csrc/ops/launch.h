// Launchers of the fused ops over flat buffers, one function for each op, under its name. Arguments are plain
// addresses, sizes and scalars, so no framework's headers are needed. Formulas are in formulas.h. An op's signature
// stands here alone: `Ops` gives its type and METAGAN_OPS its name; the declarations for CPU and GPU and the Python
// bindings follow.
#pragma once

#include <cstdint>
#include <vector>

namespace metagan {

// Storage type of elements. bfloat16 computes in float32 and rounds once, at the store.
enum class DType : int { float32 = 0, bfloat16 = 1, float64 = 2 };

// A matrix whose rows are `row_stride` elements apart, each of a launch's `columns` adjacent elements. An input's
// stride may be 0.
struct Matrix {
    void* data = nullptr;
    int64_t row_stride = 0;
};

// Dtype, shape and threads of one call on the CPU.
struct Launch {
    DType dtype;
    int64_t rows;
    int64_t columns;
    int threads;  // upper bound; results do not depend on it
};

// Learning rate: of row r, segment s and element e it is data[r * row_stride + s * segment_stride + e *
// element_stride], with data in the arithmetic dtype (float64 for float64, else float32). Segment s covers the columns
// [segment_ends[s - 1], segment_ends[s]). Without data it is `value` everywhere.
struct LearningRate {
    double value = 0;
    const void* data = nullptr;
    int64_t row_stride = 0;
    int64_t segment_stride = 0;
    int64_t element_stride = 0;             // 0 or 1
    const int64_t* segment_ends = nullptr;  // ascending, the last one is `columns`; null: one segment
    int64_t segments = 1;
};

// A number, or the address of a double in the launch's memory, read when the op runs: a recorded launch (CUDA graph)
// can be replayed with another number.
struct Number {
    double value = 0;
    const double* data = nullptr;  // null: `value`

    Number(double number = 0) : value(number) {}  // implicit: a plain double is a Number
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

// Signatures of the ops. To, the launch, says where and how an op runs: Launch on the CPU, cuda::DeviceLaunch on a GPU.
// An output may be an input (same address and stride) but must not overlap one in any other way.
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

    // Ops that combine tasks: To::rows is the number of tasks, the rows of `adapted`; all other operands are one row.
    // `weights` is [rows] in the arithmetic dtype, or null for the mean.
    using reptile_interpolate = void(const To&, const void* initial, Matrix adapted, const void* weights, void* out,
                                     Number step_size);

    using reptile_gradient = void(const To&, const void* initial, Matrix adapted, const void* weights, void* out);

    using meta_adam_step = void(const To&, const void* params, Matrix adapted, const void* weights, const void* exp_avg,
                                const void* exp_avg_sq, void* params_out, void* exp_avg_out, void* exp_avg_sq_out,
                                const LearningRate&, const AdamOptions&);

    // Writes the norms before scaling, [rows] in the arithmetic dtype, to `norms_out`. `sums` is a GPU's scratch
    // memory, [rows, cuda::clip_grad_norm_parts(columns)]; a CPU needs none.
    using clip_grad_norm = void(const To&, Matrix grads, Matrix grads_out, void* norms_out, double max_norm,
                                double* sums);

    using ema_update = void(const To&, Matrix average, Matrix params, Matrix average_out, double decay);
};

// Applies a macro to the name of every op.
#define METAGAN_OPS(apply)                                                                                  \
    apply(sgd_step) apply(adam_step) apply(rmsprop_step) apply(reptile_interpolate) apply(reptile_gradient) \
        apply(meta_adam_step) apply(clip_grad_norm) apply(ema_update)

#define METAGAN_DECLARE(op) Ops<Launch>::op op;
METAGAN_OPS(METAGAN_DECLARE)
#undef METAGAN_DECLARE

constexpr int kMostState = 3;  // buffers of an optimizer for one tensor, at most

// One tensor of an optimizer, `size` adjacent elements, updated in place.
struct Piece {
    DType dtype;
    int64_t size;
    void* params;
    const void* grads;
    void* state[kMostState];  // the op's buffers in order, null where absent
    double step;              // number of this update, from 1; used by Adam's bias correction
};

// Update many tensors in one call. Threads divide the elements of all tensors, not the tensors. `maximize` ascends the
// gradient. Adam's third buffer, if present, is AMSGrad's maximum; its bias corrections follow from each piece's step.
void sgd_steps(const std::vector<Piece>&, int threads, bool maximize, double lr, const SgdOptions&);
void adam_steps(const std::vector<Piece>&, int threads, bool maximize, double lr, const AdamOptions&);
void rmsprop_steps(const std::vector<Piece>&, int threads, bool maximize, double lr, const RmspropOptions&);

}  // namespace metagan
