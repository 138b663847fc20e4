// Update kernels over one contiguous range, a table for each instruction set.
#pragma once

#include <cstdint>

#include "cpu/simd/isa.h"
#include "ops/launch.h"

namespace metagan::cpu {

// A buffer that an update reads and writes, in place or not; null: absent.
struct Buffer {
    const void* in;
    void* out;
};

// Gradient, with its sign (descend or ascend).
struct Gradient {
    Gradient(const void* data, bool ascend = false) : data(data), ascend(ascend) {}
    const void* data;
    bool ascend;
};

// Learning rate of each element, or one for all (`elements` null).
struct Rate {
    const void* elements;
    double value;
};

// Adapted parameters, a row for each task, from the range's first column, and the tasks' weights (null: the mean).
struct Tasks {
    Matrix adapted;
    int64_t count;
    const void* weights;
};

// Update kernels of one instruction set.
struct UpdateKernels {
    void (*sgd_step)(DType, int64_t size, Buffer params, Gradient, Buffer momentum_buffer, Rate, const SgdOptions&);
    void (*adam_step)(DType, int64_t size, Buffer params, Gradient, Buffer exp_avg, Buffer exp_avg_sq,
                      Buffer max_exp_avg_sq, Rate, const AdamOptions&);
    void (*rmsprop_step)(DType, int64_t size, Buffer params, Gradient, Buffer square_avg, Buffer momentum_buffer,
                         Buffer grad_avg, Rate, const RmspropOptions&);
    void (*reptile_interpolate)(DType, int64_t size, Buffer initial, Tasks, double step_size);
    void (*reptile_gradient)(DType, int64_t size, Buffer initial, Tasks);
    void (*meta_adam_step)(DType, int64_t size, Buffer params, Tasks, Buffer exp_avg, Buffer exp_avg_sq, Rate,
                           const AdamOptions&);
    void (*ema_update)(DType, int64_t size, Buffer average, const void* params, double decay);
    // The two passes of clip_grad_norm.
    double (*sum_of_squares)(DType, int64_t size, const void* grads);
    void (*scale)(DType, int64_t size, Buffer grads, double factor);
};

METAGAN_DECLARE_TABLES(UpdateKernels, update_kernels);

}  // namespace metagan::cpu
