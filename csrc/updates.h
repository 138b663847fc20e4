// The formulas of the fused ops for one element, for the host compiler and nvcc alike. Order of operations and rounding
// are those of metagan_fast/reference.py, so compile with contraction off. Numbers are rounded to the arithmetic type
// once, here.
#pragma once

#include <cstdint>

#include "kernels.h"

// Always inlined: these are compiled once for every instruction set, and no copy may serve in the place of another.
#ifdef __CUDACC__
#define METAGAN_INLINE __host__ __device__ __forceinline__
#else
#define METAGAN_INLINE inline __attribute__((always_inline))
#endif

namespace metagan {

struct BFloat16 {
    uint16_t bits;
};

template <class T>
struct ArithmeticOf {
    using type = T;
};
template <>
struct ArithmeticOf<BFloat16> {
    using type = float;
};
template <class T>
using Arithmetic = typename ArithmeticOf<T>::type;

METAGAN_INLINE float widen(float x) { return x; }
METAGAN_INLINE double widen(double x) { return x; }
METAGAN_INLINE float widen(BFloat16 x) {
    const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
    float result;
    __builtin_memcpy(&result, &bits, sizeof result);
    return result;
}

METAGAN_INLINE void narrow(float x, float& out) { out = x; }
METAGAN_INLINE void narrow(double x, double& out) { out = x; }
METAGAN_INLINE void narrow(float x, BFloat16& out) {
    uint32_t bits;
    __builtin_memcpy(&bits, &x, sizeof bits);
    const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
    const uint32_t quiet_nan = (bits >> 16) | 0x40u;                        // rounding could carry it to infinity
    out.bits = static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet_nan : rounded);
}

METAGAN_INLINE float square_root(float x) { return __builtin_sqrtf(x); }
METAGAN_INLINE double square_root(double x) { return __builtin_sqrt(x); }

// A is the arithmetic type throughout. References are updated in place.

template <class A>
struct SgdUpdate {
    A momentum, one_minus_dampening, weight_decay;
    bool nesterov;

    METAGAN_INLINE explicit SgdUpdate(const SgdOptions& options)
        : momentum(static_cast<A>(options.momentum)),
          one_minus_dampening(static_cast<A>(1 - options.dampening)),
          weight_decay(static_cast<A>(options.weight_decay)),
          nesterov(options.nesterov) {}

    METAGAN_INLINE A decayed(A grad, A param) const { return weight_decay != 0 ? grad + weight_decay * param : grad; }

    METAGAN_INLINE void operator()(A& param, A grad, A lr) const { param = param - lr * decayed(grad, param); }

    METAGAN_INLINE void operator()(A& param, A grad, A& buffer, A lr) const {
        grad = decayed(grad, param);
        buffer = momentum * buffer + one_minus_dampening * grad;
        param = param - lr * (nesterov ? grad + momentum * buffer : buffer);
    }
};

template <class A>
struct AdamUpdate {
    A beta1, one_minus_beta1, beta2, one_minus_beta2, inverse_bias1, inverse_bias2, eps, eps_root, weight_decay;
    bool decoupled;

    METAGAN_INLINE explicit AdamUpdate(const AdamOptions& options)
        : beta1(static_cast<A>(options.beta1)),
          one_minus_beta1(static_cast<A>(1 - options.beta1)),
          beta2(static_cast<A>(options.beta2)),
          one_minus_beta2(static_cast<A>(1 - options.beta2)),
          inverse_bias1(static_cast<A>(options.inverse_bias1)),
          inverse_bias2(static_cast<A>(options.inverse_bias2)),
          eps(static_cast<A>(options.eps)),
          eps_root(static_cast<A>(options.eps_root)),
          weight_decay(static_cast<A>(options.weight_decay)),
          decoupled(options.decoupled) {}

    METAGAN_INLINE void operator()(A& param, A grad, A& exp_avg, A& exp_avg_sq, A lr) const {
        if (weight_decay != 0) {
            if (decoupled)
                param = param - (lr * weight_decay) * param;
            else
                grad = grad + weight_decay * param;
        }
        exp_avg = beta1 * exp_avg + one_minus_beta1 * grad;
        exp_avg_sq = beta2 * exp_avg_sq + one_minus_beta2 * (grad * grad);
        const A denominator = square_root(exp_avg_sq * inverse_bias2 + eps_root) + eps;
        param = param - (lr * (exp_avg * inverse_bias1)) / denominator;
    }
};

template <class A>
struct RmspropUpdate {
    A alpha, one_minus_alpha, eps, weight_decay, momentum;

    METAGAN_INLINE explicit RmspropUpdate(const RmspropOptions& options)
        : alpha(static_cast<A>(options.alpha)),
          one_minus_alpha(static_cast<A>(1 - options.alpha)),
          eps(static_cast<A>(options.eps)),
          weight_decay(static_cast<A>(options.weight_decay)),
          momentum(static_cast<A>(options.momentum)) {}

    // Null buffers are absent: without `buffer` there is no momentum, without `grad_avg` no centering.
    METAGAN_INLINE void operator()(A& param, A grad, A& square_avg, A* buffer, A* grad_avg, A lr) const {
        if (weight_decay != 0) grad = grad + weight_decay * param;
        square_avg = alpha * square_avg + one_minus_alpha * (grad * grad);
        A variance = square_avg;
        if (grad_avg) {
            *grad_avg = alpha * *grad_avg + one_minus_alpha * grad;
            variance = square_avg - *grad_avg * *grad_avg;
            variance = variance < 0 ? A(0) : variance;  // rounding may leave it just below zero
        }
        A direction = grad / (square_root(variance) + eps);
        if (buffer) direction = *buffer = momentum * *buffer + direction;
        param = param - lr * direction;
    }
};

// One task's contribution to `reptile_gradient`; `reptile_interpolate` takes it with the operands exchanged.
template <class A>
METAGAN_INLINE A reptile_difference(A minuend, A subtrahend) {
    return minuend - subtrahend;
}

template <class A>
METAGAN_INLINE A reptile_interpolate(A initial, A total, A step_size) {
    return initial + step_size * total;
}

template <class A>
METAGAN_INLINE A ema_update(A average, A param, A one_minus_decay) {
    return average + one_minus_decay * (param - average);
}

// The factor that brings a row of this norm to at most `max_norm`. A norm of NaN gives NaN, an infinite one 0.
METAGAN_INLINE double clip_scale(double norm, double max_norm) {
    const double scale = max_norm / (norm + 1e-6);
    return scale > 1 ? 1 : scale;
}

}  // namespace metagan
