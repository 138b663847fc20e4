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

// A buffer's addresses for reading and writing; null: absent.
struct InOut {
    Matrix in, out;

    InOut(Matrix in, Matrix out) : in(in), out(out) {}
    InOut(const void* in, void* out) : in{const_cast<void*>(in), 0}, out{out, 0} {}
};

// Adapted parameters, a row for each of `count` tasks, and the tasks' weights (null: the mean).
template <bool kTowardsAdapted>
struct Tasks {
    Matrix adapted;
    int64_t count;
    const void* weights;
};

// Converts the operands of one launch to members of an op's struct. Records whether the addresses and row strides of
// all of them are multiples of 16 bytes.
template <class T>
class Operands {
  public:
    using A = Arithmetic<T>;

    Operands(const DeviceLaunch& launch, int64_t rows) : rows_(rows) { add(nullptr, launch.columns, sizeof(T)); }

    Input<T> operator()(Matrix matrix) { return input(matrix, rows_); }
    Buffer<T> operator()(const InOut& buffer) {
        const Input<T> written = (*this)(buffer.out);
        return {(*this)(buffer.in), static_cast<T*>(buffer.out.data), written.stride};
    }
    Rate<A> operator()(const LearningRate& lr) {
        if (lr.element_stride) add(lr.data, rows_ > 1 ? lr.row_stride : 0, sizeof(A));
        return {static_cast<A>(lr.value),
                static_cast<const A*>(lr.data),
                lr.row_stride,
                lr.segment_stride,
                lr.element_stride,
                lr.segment_ends,
                lr.segments};
    }
    template <bool kTowardsAdapted>
    TaskSum<T, kTowardsAdapted> operator()(const Tasks<kTowardsAdapted>& tasks) {
        return {input(tasks.adapted, tasks.count), tasks.count, static_cast<const A*>(tasks.weights),
                static_cast<A>(1.0 / static_cast<double>(tasks.count))};
    }
    Scalar<A> operator()(const Number& number) { return {static_cast<A>(number.value), number.data}; }
    A operator()(double number) { return static_cast<A>(number); }
    SgdUpdate<A> operator()(const SgdOptions& options) { return SgdUpdate<A>(options); }
    AdamUpdate<A> operator()(const AdamOptions& options) { return AdamUpdate<A>(options); }
    RmspropUpdate<A> operator()(const RmspropOptions& options) { return RmspropUpdate<A>(options); }

    bool aligned() const { return bits_ % 16 == 0; }

  private:
    Input<T> input(Matrix matrix, int64_t rows) {
        const int64_t stride = rows > 1 ? matrix.row_stride : 0;
        add(matrix.data, stride, sizeof(T));
        return {static_cast<const T*>(matrix.data), stride};
    }
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
void run_packs(const DeviceLaunch& launch, int64_t rows, const Op& op, bool aligned) {
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

// Launches an op over `rows` rows. The operands are the members of its struct, in order.
template <template <class> class Op, class... Of>
void run(const DeviceLaunch& launch, int64_t rows, const Of&... operands) {
    with_type(launch.dtype, [&](auto element) {
        using T = decltype(element);
        Operands<T> of(launch, rows);
        const Op<T> op{of(operands)...};
        run_packs(launch, rows, op, of.aligned());
    });
}

}  // namespace metagan::cuda
