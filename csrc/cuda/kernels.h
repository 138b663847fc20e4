// GPU launchers of the fused ops: the signatures of ops/launch.h for device addresses, with a queue instead of threads.
// They enqueue and return without allocating or synchronising, so a stream can be captured into a CUDA graph. A launch
// that fails throws std::runtime_error.
#pragma once

#include <cstdint>
#include <string>

#include "ops/launch.h"

namespace metagan::cuda {

// A device and one of its streams.
struct Queue {
    int device;
    void* stream;  // cudaStream_t
};

// Dtype, shape and queue of one call on a GPU.
struct DeviceLaunch {
    DType dtype;
    int64_t rows;
    int64_t columns;
    Queue queue;
};

#define METAGAN_DECLARE(op) Ops<DeviceLaunch>::op op;
METAGAN_OPS(METAGAN_DECLARE)
#undef METAGAN_DECLARE

// Returns the number of partial sums for each row of `clip_grad_norm`, 0 where one launch needs none; depends on the
// row length only, not on the device.
int64_t clip_grad_norm_parts(int64_t columns);

// Returns the reason why no GPU can be used; empty if one can.
std::string cuda_problem();

}  // namespace metagan::cuda
