// Launchers of the fused ops on a GPU: those of csrc/ops/launch.h for addresses on the device, with a queue in the
// place of threads. They enqueue and return: no allocation, no synchronisation, so a stream may be captured into a
// graph. A launch that fails throws std::runtime_error.
#pragma once

#include <cstdint>
#include <string>

#include "ops/launch.h"

namespace metagan {

struct Queue {
    int device;
    void* stream;  // a cudaStream_t of that device
};

struct DeviceLaunch {
    DType dtype;
    int64_t rows;
    int64_t columns;
    Queue queue;
};

Ops<DeviceLaunch>::sgd_step sgd_step;
Ops<DeviceLaunch>::adam_step adam_step;
Ops<DeviceLaunch>::rmsprop_step rmsprop_step;
Ops<DeviceLaunch>::reptile_interpolate reptile_interpolate;
Ops<DeviceLaunch>::reptile_gradient reptile_gradient;
Ops<DeviceLaunch>::meta_adam_step meta_adam_step;
Ops<DeviceLaunch>::ema_update ema_update;

// How many partial sums a row of `clip_grad_norm` has in memory, 0 where one launch does without; they depend on its
// length alone, not on the device.
int64_t clip_grad_norm_parts(int64_t columns);

// `sums` is memory to work in: [rows, clip_grad_norm_parts(columns)] doubles.
void clip_grad_norm(const DeviceLaunch&, Matrix grads, Matrix grads_out, void* norms_out, double max_norm,
                    double* sums);

// Why no GPU can be used here; empty if one can.
std::string cuda_problem();

}  // namespace metagan
