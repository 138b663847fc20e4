// Kernels of clip_grad_norm. Scaling needs the norm of the whole row, and blocks synchronise only at the end of a
// launch. So one block clips a short row alone; for longer rows a first launch writes partial sums of squares, and a
// second adds them up and scales. Every sum has a fixed order: no atomics.
#pragma once

#include "access.cuh"
#include "ops/formulas.h"

namespace metagan::cuda {

constexpr int kClipThreads = 256;

// Sum over the threads of a block, in a fixed order and returned to all of them; `scratch` holds one number a thread.
METAGAN_DEVICE double block_sum(double value, double* scratch) {
    const int thread = static_cast<int>(threadIdx.x);
    scratch[thread] = value;
    __syncthreads();
    for (int half = kClipThreads / 2; half > 0; half /= 2) {
        if (thread < half) scratch[thread] += scratch[thread + half];
        __syncthreads();
    }
    const double total = scratch[0];
    __syncthreads();  // before the next sum overwrites scratch
    return total;
}

// A thread's sum of squares over part blockIdx.x of gridDim.x of a row: kPack<T> adjacent elements at a time, whether
// loaded together (kWidth = kPack<T>) or one by one (kWidth = 1), so that alignment does not change the sum.
template <int kWidth, class T>
METAGAN_DEVICE double squares(int64_t row, int64_t columns, const Input<T>& grads) {
    const int64_t first = (static_cast<int64_t>(blockIdx.x) * kClipThreads + threadIdx.x) * kPack<T>;
    const int64_t step = static_cast<int64_t>(gridDim.x) * kClipThreads * kPack<T>;
    double sum = 0;
    for (int64_t column = first; column < columns; column += step) {
#pragma unroll
        for (int offset = 0; offset < kPack<T>; offset += kWidth) {
            if (column + offset >= columns) break;
            const auto values = grads.template load<kWidth>(row, column + offset);
#pragma unroll
            for (int i = 0; i < kWidth; ++i) {
                const double value = static_cast<double>(values.at[i]);
                sum += value * value;
            }
        }
    }
    return sum;
}

// Scales a row to a norm of at most `max_norm` with all blocks x; the first block stores the norm before scaling.
template <int kWidth, class T>
METAGAN_DEVICE void scale(int64_t row, int64_t columns, const Buffer<T>& grads, double norm, Arithmetic<T>* norms,
                          double max_norm, bool in_place) {
    const int64_t first = (static_cast<int64_t>(blockIdx.x) * kClipThreads + threadIdx.x) * kWidth;
    const int64_t step = static_cast<int64_t>(gridDim.x) * kClipThreads * kWidth;
    const double factor = clip_scale(norm, max_norm);
    if (blockIdx.x == 0 && threadIdx.x == 0) norms[row] = static_cast<Arithmetic<T>>(norm);
    if (in_place && factor == 1) return;
    const auto by = static_cast<Arithmetic<T>>(factor);
    for (int64_t column = first; column < columns; column += step) {
        auto values = grads.template load<kWidth>(row, column);
#pragma unroll
        for (int i = 0; i < kWidth; ++i) values.at[i] = values.at[i] * by;
        grads.template store<kWidth>(row, column, values);
    }
}

// Block (0, y) clips row y. The barrier of the sum separates the last read from the first write. The sum has the same
// bits as with the two kernels below for a row of one part. Registers do not spill at 4 blocks per multiprocessor.
template <int kWidth, class T>
__global__ void __launch_bounds__(kClipThreads, 4)
    clip_short_rows(int64_t rows, int64_t columns, Buffer<T> grads, Arithmetic<T>* norms, double max_norm,
                    bool in_place) {
    __shared__ double scratch[kClipThreads];
    for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
        const double norm = square_root(block_sum(squares<kWidth>(row, columns, grads.in), scratch));
        scale<kWidth>(row, columns, grads, norm, norms, max_norm, in_place);
    }
}

// Block (x, y) sums part x of gridDim.x of row y.
template <int kWidth, class T>
__global__ void __launch_bounds__(kClipThreads)
    sum_of_squares(int64_t rows, int64_t columns, Input<T> grads, double* sums) {
    __shared__ double scratch[kClipThreads];
    for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
        const double total = block_sum(squares<kWidth>(row, columns, grads), scratch);
        if (threadIdx.x == 0) sums[row * gridDim.x + blockIdx.x] = total;
    }
}

// Blocks (x, y) for all x scale row y. Each block adds the row's `parts` partial sums itself, to the same bits.
template <int kWidth, class T>
__global__ void __launch_bounds__(kClipThreads)
    scale_to_norm(int64_t rows, int64_t columns, Buffer<T> grads, const double* sums, int64_t parts,
                  Arithmetic<T>* norms, double max_norm, bool in_place) {
    __shared__ double scratch[kClipThreads];
    for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
        double sum = 0;
        for (int64_t part = threadIdx.x; part < parts; part += kClipThreads) sum += sums[row * parts + part];
        const double norm = square_root(block_sum(sum, scratch));
        scale<kWidth>(row, columns, grads, norm, norms, max_norm, in_place);
    }
}

}  // namespace metagan::cuda
