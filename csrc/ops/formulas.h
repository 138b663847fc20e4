// Formulas of the fused ops for one element, for the host compiler and nvcc alike. Order of operations and rounding
// match metagan_fast/ops/reference.py, so compile with contraction off. Options are rounded to the arithmetic type
// once, here.
#pragma once

#include "dtypes.h"
#include "launch.h"

namespace metagan {

// A is the arithmetic type; V, the type of the operands, is A or a vector of A, and so is R, the learning rate's.
// References are updated in place.

template <class A>
struct SgdUpdate {
    A momentum, one_minus_dampening, weight_decay;
    bool nesterov;

    METAGAN_INLINE explicit SgdUpdate(const SgdOptions& options)
        : momentum(static_cast<A>(options.momentum)),
          one_minus_dampening(static_cast<A>(1 - options.dampening)),
          weight_decay(static_cast<A>(options.weight_decay)),
          nesterov(options.nesterov) {}

    template <class V, class R>
    METAGAN_INLINE void operator()(V& param, V grad, R lr) const {
        if (weight_decay != 0) grad = grad + weight_decay * param;
        param = param - lr * grad;
    }

    template <class V, class R>
    METAGAN_INLINE void operator()(V& param, V grad, V& buffer, R lr) const {
        if (weight_decay != 0) grad = grad + weight_decay * param;
        buffer = momentum * buffer + one_minus_dampening * grad;
        if (nesterov)
            param = param - lr * (grad + momentum * buffer);
        else
            param = param - lr * buffer;
    }
};

// Bias corrections that lie in memory are unknown at construction: the kernel that reads them sets `inverse_bias1` and
// `inverse_bias2`.
template <class A>
struct AdamUpdate {
    A beta1, one_minus_beta1, beta2, one_minus_beta2, inverse_bias1, inverse_bias2, eps, eps_root, weight_decay;
    bool decoupled;

    METAGAN_INLINE explicit AdamUpdate(const AdamOptions& options)
        : beta1(static_cast<A>(options.beta1)),
          one_minus_beta1(static_cast<A>(1 - options.beta1)),
          beta2(static_cast<A>(options.beta2)),
          one_minus_beta2(static_cast<A>(1 - options.beta2)),
          inverse_bias1(static_cast<A>(options.inverse_bias1.value)),
          inverse_bias2(static_cast<A>(options.inverse_bias2.value)),
          eps(static_cast<A>(options.eps)),
          eps_root(static_cast<A>(options.eps_root)),
          weight_decay(static_cast<A>(options.weight_decay)),
          decoupled(options.decoupled) {}

    template <class V, class R>
    METAGAN_INLINE void operator()(V& param, V grad, V& exp_avg, V& exp_avg_sq, R lr) const {
        V* const none = nullptr;
        (*this)(param, grad, exp_avg, exp_avg_sq, none, lr);
    }

    // AMSGrad if `max_exp_avg_sq`, the running maximum of exp_avg_sq, is not null.
    template <class V, class R>
    METAGAN_INLINE void operator()(V& param, V grad, V& exp_avg, V& exp_avg_sq, V* max_exp_avg_sq, R lr) const {
        if (weight_decay != 0) {
            if (decoupled)
                param = param - (lr * weight_decay) * param;
            else
                grad = grad + weight_decay * param;
        }
        exp_avg = beta1 * exp_avg + one_minus_beta1 * grad;
        exp_avg_sq = beta2 * exp_avg_sq + one_minus_beta2 * (grad * grad);
        V second = exp_avg_sq;
        if (max_exp_avg_sq) second = *max_exp_avg_sq = *max_exp_avg_sq > exp_avg_sq ? *max_exp_avg_sq : exp_avg_sq;
        const V denominator = square_root(second * inverse_bias2 + eps_root) + eps;
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

    // `buffer` null: no momentum. `grad_avg` null: not centered.
    template <class V, class R>
    METAGAN_INLINE void operator()(V& param, V grad, V& square_avg, V* buffer, V* grad_avg, R lr) const {
        if (weight_decay != 0) grad = grad + weight_decay * param;
        square_avg = alpha * square_avg + one_minus_alpha * (grad * grad);
        V variance = square_avg;
        if (grad_avg) {
            *grad_avg = alpha * *grad_avg + one_minus_alpha * grad;
            variance = square_avg - *grad_avg * *grad_avg;
            variance = variance < 0 ? V{} : variance;  // rounding may leave it just below zero
        }
        V direction = grad / (square_root(variance) + eps);
        if (buffer) direction = *buffer = momentum * *buffer + direction;
        param = param - lr * direction;
    }
};

// One task's contribution to `reptile_gradient`, and with the operands exchanged to `reptile_interpolate`.
template <class V>
METAGAN_INLINE V reptile_difference(V minuend, V subtrahend) {
    return minuend - subtrahend;
}

template <class V, class A>
METAGAN_INLINE V reptile_interpolate(V initial, V total, A step_size) {
    return initial + step_size * total;
}

template <class V, class A>
METAGAN_INLINE V ema_update(V average, V param, A one_minus_decay) {
    return average + one_minus_decay * (param - average);
}

// Factor that scales a row of this norm to at most `max_norm`; NaN for a NaN norm, 0 for an infinite one.
METAGAN_INLINE double clip_scale(double norm, double max_norm) {
    const double scale = max_norm / (norm + 1e-6);
    return scale > 1 ? 1 : scale;
}

}  // namespace metagan
