// Update loops over one contiguous range, in a table for each instruction set.
#pragma once

#include <cstdint>

#include "ops/launch.h"

namespace metagan {

// What an update reads and writes: two addresses, or the same one twice. Null where absent.
struct Buffer {
    const void* in;
    void* out;
};

// What a step goes against, or along.
struct Gradient {
    Gradient(const void* data, bool ascend = false) : data(data), ascend(ascend) {}
    const void* data;
    bool ascend;
};

// A learning rate for each element, or (null) one for all.
struct Rate {
    const void* elements;
    double value;
};

// The rows of the tasks, from the range's first column, and their weights (null: the mean).
struct Tasks {
    Matrix adapted;
    int64_t count;
    const void* weights;
};

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

extern const UpdateKernels update_kernels_portable;
extern const UpdateKernels update_kernels_avx2;
extern const UpdateKernels update_kernels_avx512;

}  // namespace metagan
