// Launchers of the fused ops on a GPU: those of csrc/kernels.h for addresses on the device, with a queue in the place
// of threads. They enqueue and return: no allocation, no synchronisation, so a stream may be captured into a graph.
// A launch that fails throws std::runtime_error.
#pragma once

#include <cstdint>
#include <string>

#include "../kernels.h"

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

void sgd_step(const DeviceLaunch&, Matrix params, Matrix grads, Matrix momentum_buffer, Matrix params_out,
              Matrix momentum_buffer_out, const LearningRate&, const SgdOptions&);

void adam_step(const DeviceLaunch&, Matrix params, Matrix grads, Matrix exp_avg, Matrix exp_avg_sq, Matrix params_out,
               Matrix exp_avg_out, Matrix exp_avg_sq_out, const LearningRate&, const AdamOptions&);

void rmsprop_step(const DeviceLaunch&, Matrix params, Matrix grads, Matrix square_avg, Matrix momentum_buffer,
                  Matrix grad_avg, Matrix params_out, Matrix square_avg_out, Matrix momentum_buffer_out,
                  Matrix grad_avg_out, const LearningRate&, const RmspropOptions&);

void reptile_interpolate(const DeviceLaunch&, const void* initial, Matrix adapted, const void* weights, void* out,
                         Number step_size);

void reptile_gradient(const DeviceLaunch&, const void* initial, Matrix adapted, const void* weights, void* out);

void meta_adam_step(const DeviceLaunch&, const void* params, Matrix adapted, const void* weights, const void* exp_avg,
                    const void* exp_avg_sq, void* params_out, void* exp_avg_out, void* exp_avg_sq_out,
                    const LearningRate&, const AdamOptions&);

// How many partial sums a row of `clip_grad_norm` has; they depend on its length alone, not on the device.
int64_t clip_grad_norm_parts(int64_t columns);

// `sums` is memory to work in: [rows, clip_grad_norm_parts(columns)] doubles.
void clip_grad_norm(const DeviceLaunch&, Matrix grads, Matrix grads_out, void* norms_out, double max_norm,
                    double* sums);

void ema_update(const DeviceLaunch&, Matrix average, Matrix params, Matrix average_out, double decay);

// Why no GPU can be used here; empty if one can.
std::string cuda_problem();

}  // namespace metagan
