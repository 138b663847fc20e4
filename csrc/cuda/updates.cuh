// The fused ops except clip_grad_norm: each as a functor on one pack of elements, and the one kernel that runs them.
#pragma once

#include "access.cuh"
#include "ops/formulas.h"

namespace metagan::cuda {

constexpr int kThreads = 256;  // threads of a block

// Grid-stride loop of op.apply<kWidth>(row, column) over all packs of all rows. A block is blockDim.x packs wide and
// blockDim.y rows high. One thread both loads and stores a pack, so an output may be an input.
template <int kWidth, class Op>
__global__ void __launch_bounds__(kThreads, 4) for_each_pack(int64_t rows, int64_t columns, Op op) {
    const int64_t first_row = static_cast<int64_t>(blockIdx.y) * blockDim.y + threadIdx.y;
    const int64_t first_column = (static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x) * kWidth;
    const int64_t row_step = static_cast<int64_t>(gridDim.y) * blockDim.y;
    const int64_t column_step = static_cast<int64_t>(gridDim.x) * blockDim.x * kWidth;
    for (int64_t row = first_row; row < rows; row += row_step)
        for (int64_t column = first_column; column < columns; column += column_step)
            op.template apply<kWidth>(row, column);
}

template <class T>
struct SgdStep {
    using Element = T;
    using A = Arithmetic<T>;
    Buffer<T> params, momentum_buffer;
    Input<T> grads;
    Rate<A> lr;
    SgdUpdate<A> update;

    template <int kWidth>
    METAGAN_DEVICE void apply(int64_t row, int64_t column) const {
        auto param = params.template load<kWidth>(row, column);
        const auto grad = grads.template load<kWidth>(row, column);
        const auto rate = lr.template load<kWidth>(row, column);
        if (momentum_buffer.out) {
            auto buffer = momentum_buffer.template load<kWidth>(row, column);
#pragma unroll
            for (int i = 0; i < kWidth; ++i) update(param.at[i], grad.at[i], buffer.at[i], rate.at[i]);
            momentum_buffer.template store<kWidth>(row, column, buffer);
        } else {
#pragma unroll
            for (int i = 0; i < kWidth; ++i) update(param.at[i], grad.at[i], rate.at[i]);
        }
        params.template store<kWidth>(row, column, param);
    }
};

template <class T>
struct AdamStep {
    using Element = T;
    using A = Arithmetic<T>;
    Buffer<T> params, exp_avg, exp_avg_sq;
    Input<T> grads;
    Rate<A> lr;
    AdamUpdate<A> update;
    Scalar<A> inverse_bias1, inverse_bias2;

    template <int kWidth>
    METAGAN_DEVICE void apply(int64_t row, int64_t column) const {
        apply<kWidth>(row, column, params.template load<kWidth>(row, column), grads.template load<kWidth>(row, column));
    }

    template <int kWidth>
    METAGAN_DEVICE void apply(int64_t row, int64_t column, Pack<A, kWidth> param, Pack<A, kWidth> grad) const {
        auto first = exp_avg.template load<kWidth>(row, column);
        auto second = exp_avg_sq.template load<kWidth>(row, column);
        const auto rate = lr.template load<kWidth>(row, column);
        AdamUpdate<A> corrected = update;
        corrected.inverse_bias1 = inverse_bias1.load();
        corrected.inverse_bias2 = inverse_bias2.load();
#pragma unroll
        for (int i = 0; i < kWidth; ++i) corrected(param.at[i], grad.at[i], first.at[i], second.at[i], rate.at[i]);
        params.template store<kWidth>(row, column, param);
        exp_avg.template store<kWidth>(row, column, first);
        exp_avg_sq.template store<kWidth>(row, column, second);
    }
};

template <class T>
struct RmspropStep {
    using Element = T;
    using A = Arithmetic<T>;
    Buffer<T> params, square_avg, momentum_buffer, grad_avg;
    Input<T> grads;
    Rate<A> lr;
    RmspropUpdate<A> update;

    template <int kWidth>
    METAGAN_DEVICE void apply(int64_t row, int64_t column) const {
        // Compile-time flags, so that the optional buffers stay in registers.
        if (momentum_buffer.out) {
            grad_avg.out ? apply<kWidth, true, true>(row, column) : apply<kWidth, true, false>(row, column);
        } else {
            grad_avg.out ? apply<kWidth, false, true>(row, column) : apply<kWidth, false, false>(row, column);
        }
    }

  private:
    template <int kWidth, bool kMomentum, bool kCentered>
    METAGAN_DEVICE void apply(int64_t row, int64_t column) const {
        auto param = params.template load<kWidth>(row, column);
        auto square = square_avg.template load<kWidth>(row, column);
        Pack<A, kWidth> momentum, mean;
        if constexpr (kMomentum) momentum = momentum_buffer.template load<kWidth>(row, column);
        if constexpr (kCentered) mean = grad_avg.template load<kWidth>(row, column);
        const auto grad = grads.template load<kWidth>(row, column);
        const auto rate = lr.template load<kWidth>(row, column);
#pragma unroll
        for (int i = 0; i < kWidth; ++i)
            update(param.at[i], grad.at[i], square.at[i], kMomentum ? &momentum.at[i] : nullptr,
                   kCentered ? &mean.at[i] : nullptr, rate.at[i]);
        params.template store<kWidth>(row, column, param);
        square_avg.template store<kWidth>(row, column, square);
        if constexpr (kMomentum) momentum_buffer.template store<kWidth>(row, column, momentum);
        if constexpr (kCentered) grad_avg.template store<kWidth>(row, column, mean);
    }
};

// Mean or weighted sum over tasks of initial - adapted, or of adapted - initial, added in index order.
template <class T, bool kTowardsAdapted>
struct TaskSum {
    using A = Arithmetic<T>;
    Input<T> adapted;
    int64_t tasks;
    const A* weights;
    A scale;

    template <int kWidth>
    METAGAN_DEVICE Pack<A, kWidth> sum(int64_t column, const Pack<A, kWidth>& initial) const {
        Pack<A, kWidth> total = difference<kWidth>(0, column, initial);
        for (int64_t task = 1; task < tasks; ++task) {
            const Pack<A, kWidth> term = difference<kWidth>(task, column, initial);
#pragma unroll
            for (int i = 0; i < kWidth; ++i) total.at[i] = total.at[i] + term.at[i];
        }
        if (!weights) {
#pragma unroll
            for (int i = 0; i < kWidth; ++i) total.at[i] = total.at[i] * scale;
        }
        return total;
    }

  private:
    template <int kWidth>
    METAGAN_DEVICE Pack<A, kWidth> difference(int64_t task, int64_t column, const Pack<A, kWidth>& initial) const {
        auto row = adapted.template load<kWidth>(task, column);
#pragma unroll
        for (int i = 0; i < kWidth; ++i) {
            row.at[i] = kTowardsAdapted ? reptile_difference(row.at[i], initial.at[i])
                                        : reptile_difference(initial.at[i], row.at[i]);
            if (weights) row.at[i] = weights[task] * row.at[i];
        }
        return row;
    }
};

template <class T>
struct ReptileInterpolate {
    using Element = T;
    using A = Arithmetic<T>;
    Buffer<T> initial;
    TaskSum<T, true> tasks;
    Scalar<A> step_size;

    template <int kWidth>
    METAGAN_DEVICE void apply(int64_t row, int64_t column) const {
        const auto start = initial.template load<kWidth>(row, column);
        auto total = tasks.template sum<kWidth>(column, start);
        const A size = step_size.load();
#pragma unroll
        for (int i = 0; i < kWidth; ++i) total.at[i] = metagan::reptile_interpolate(start.at[i], total.at[i], size);
        initial.template store<kWidth>(row, column, total);
    }
};

template <class T>
struct ReptileGradient {
    using Element = T;
    Buffer<T> initial;
    TaskSum<T, false> tasks;

    template <int kWidth>
    METAGAN_DEVICE void apply(int64_t row, int64_t column) const {
        const auto start = initial.template load<kWidth>(row, column);
        initial.template store<kWidth>(row, column, tasks.template sum<kWidth>(column, start));
    }
};

// Adam step on the Reptile gradient, which stays in the arithmetic type.
template <class T>
struct MetaAdamStep {
    using Element = T;
    AdamStep<T> adam;  // without `grads`; its members come first among the operands of `run`
    TaskSum<T, false> tasks;

    template <int kWidth>
    METAGAN_DEVICE void apply(int64_t row, int64_t column) const {
        const auto param = adam.params.template load<kWidth>(row, column);
        adam.template apply<kWidth>(row, column, param, tasks.template sum<kWidth>(column, param));
    }
};

template <class T>
struct EmaUpdate {
    using Element = T;
    using A = Arithmetic<T>;
    Buffer<T> average;
    Input<T> params;
    A one_minus_decay;

    template <int kWidth>
    METAGAN_DEVICE void apply(int64_t row, int64_t column) const {
        auto mean = average.template load<kWidth>(row, column);
        const auto param = params.template load<kWidth>(row, column);
#pragma unroll
        for (int i = 0; i < kWidth; ++i) mean.at[i] = metagan::ema_update(mean.at[i], param.at[i], one_minus_decay);
        average.template store<kWidth>(row, column, mean);
    }
};

}  // namespace metagan::cuda
