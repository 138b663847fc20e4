// Helpers of the launchers: dtype dispatch, typed operands with their alignment, and the launch itself.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "access.cuh"
#include "kernels.h"
#include "updates.cuh"

// Most blocks of a launch, enough to fill the largest GPU many times; beyond that a thread loops over several packs.
#ifndef METAGAN_MAX_BLOCKS
#define METAGAN_MAX_BLOCKS 16384
#endif

namespace metagan::cuda {

constexpr int64_t kMaxBlocks = METAGAN_MAX_BLOCKS;
constexpr int64_t kMaxGridY = 65535;  // CUDA's limit

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline void check(cudaError_t error, const char* what) {
    if (error == cudaSuccess) return;
    cudaGetLastError();  // clears the error, which the exception reports
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

// Calls body(T{}) with the storage type.
template <class Body>
void with_type(DType dtype, const Body& body) {
    switch (dtype) {
        case DType::bfloat16:
            return body(BFloat16{});
        case DType::float64:
            return body(double{});
        default:
            return body(float{});
    }
}

// Typed operands of one launch. Records whether the addresses and row strides of all of them are multiples of 16 bytes.
template <class T>
class Operands {
  public:
    explicit Operands(const DeviceLaunch& launch, int64_t rows) : rows_(rows) {
        add(nullptr, launch.columns, sizeof(T));
    }

    Input<T> input(Matrix matrix) { return input(matrix, rows_); }
    Input<T> input(Matrix matrix, int64_t rows) {
        const int64_t stride = rows > 1 ? matrix.row_stride : 0;
        add(matrix.data, stride, sizeof(T));
        return {static_cast<const T*>(matrix.data), stride};
    }
    Buffer<T> buffer(Matrix in, Matrix out) {
        const Input<T> written = input(out);
        return {input(in), static_cast<T*>(out.data), written.stride};
    }
    Buffer<T> buffer(const void* in, void* out) { return buffer(Matrix{const_cast<void*>(in), 0}, Matrix{out, 0}); }

    Rate<Arithmetic<T>> rate(const LearningRate& lr) {
        using A = Arithmetic<T>;
        if (lr.element_stride) add(lr.data, rows_ > 1 ? lr.row_stride : 0, sizeof(A));
        return {static_cast<A>(lr.value),
                static_cast<const A*>(lr.data),
                lr.row_stride,
                lr.segment_stride,
                lr.element_stride,
                lr.segment_ends,
                lr.segments};
    }

    Scalar<Arithmetic<T>> scalar(const Number& number) {
        return {static_cast<Arithmetic<T>>(number.value), number.data};
    }

    template <bool kTowardsAdapted>
    TaskSum<T, kTowardsAdapted> tasks(Matrix adapted, int64_t count, const void* weights) {
        using A = Arithmetic<T>;
        return {input(adapted, count), count, static_cast<const A*>(weights),
                static_cast<A>(1.0 / static_cast<double>(count))};
    }

    bool aligned() const { return bits_ % 16 == 0; }

  private:
    void add(const void* address, int64_t elements, size_t size) {
        bits_ |= reinterpret_cast<uintptr_t>(address) | (static_cast<uintptr_t>(elements) * size);
    }

    int64_t rows_;
    uintptr_t bits_ = 0;
};

template <class... Parameters, class... Arguments>
void enqueue(const Queue& queue, dim3 blocks, dim3 threads, void (*kernel)(Parameters...),
             const Arguments&... arguments) {
    // This copy of the CUDA runtime is not PyTorch's, so its current device must be set too.
    check(cudaSetDevice(queue.device), "choosing the CUDA device");
    cudaLaunchConfig_t config{};
    config.gridDim = blocks;
    config.blockDim = threads;
    config.stream = static_cast<cudaStream_t>(queue.stream);
    check(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...), "launching a CUDA kernel");
}

// Launches an op over all elements, in packs of 16 bytes if `aligned`.
template <class Op>
void run(const DeviceLaunch& launch, int64_t rows, const Op& op, bool aligned) {
    if (rows <= 0 || launch.columns <= 0) return;
    constexpr int kWide = kPack<typename Op::Element>;
    const int64_t packs = aligned ? launch.columns / kWide : launch.columns;
    unsigned width = 1;  // a block covers several short rows
    while (width < kThreads && width < packs) width *= 2;
    const unsigned height = kThreads / width;
    const int64_t across = std::min(divide_up(packs, width), kMaxBlocks);
    const int64_t down = std::min({divide_up(rows, height), kMaxGridY, std::max<int64_t>(1, kMaxBlocks / across)});
    const dim3 blocks(static_cast<unsigned>(across), static_cast<unsigned>(down)), threads(width, height);
    enqueue(launch.queue, blocks, threads, aligned ? for_each_pack<kWide, Op> : for_each_pack<1, Op>, rows,
            launch.columns, op);
}

}  // namespace metagan::cuda
