"""Update rules of the fused ops, with the order of operations and the roundings of `csrc/ops/formulas.h`.

All arguments are blocks or scalars of one arithmetic type. Kernels are compiled without floating-point contraction.
"""

import triton
import triton.language as tl


@triton.jit
def square_root(x):
    """Return the correctly rounded square root; plain `tl.sqrt` is approximate in float32.

    Triton before 3.6 flushes subnormal float32 numbers to 0 here and in `divide`.
    """
    if x.dtype == tl.float32:
        return tl.sqrt_rn(x)
    else:
        return tl.sqrt(x)


@triton.jit
def divide(x, y):
    """Return the correctly rounded quotient; plain `/` is approximate in float32."""
    if x.dtype == tl.float32:
        return tl.div_rn(x, y)
    else:
        return x / y


@triton.jit
def sgd_update(param, grad, lr, weight_decay, DECAY: tl.constexpr):
    if DECAY:
        grad = grad + weight_decay * param
    return param - lr * grad


@triton.jit
def sgd_momentum_update(
    param,
    grad,
    buffer,
    lr,
    momentum,
    one_minus_dampening,
    weight_decay,
    DECAY: tl.constexpr,
    NESTEROV: tl.constexpr,
):
    if DECAY:
        grad = grad + weight_decay * param
    buffer = momentum * buffer + one_minus_dampening * grad
    if NESTEROV:
        param = param - lr * (grad + momentum * buffer)
    else:
        param = param - lr * buffer
    return param, buffer


@triton.jit
def adam_update(
    param,
    grad,
    exp_avg,
    exp_avg_sq,
    lr,
    beta1,
    one_minus_beta1,
    beta2,
    one_minus_beta2,
    inverse_bias1,
    inverse_bias2,
    eps,
    eps_root,
    weight_decay,
    DECAY: tl.constexpr,
    DECOUPLED: tl.constexpr,
):
    if DECAY:
        if DECOUPLED:
            param = param - (lr * weight_decay) * param
        else:
            grad = grad + weight_decay * param
    exp_avg = beta1 * exp_avg + one_minus_beta1 * grad
    exp_avg_sq = beta2 * exp_avg_sq + one_minus_beta2 * (grad * grad)
    denominator = square_root(exp_avg_sq * inverse_bias2 + eps_root) + eps
    param = param - divide(lr * (exp_avg * inverse_bias1), denominator)
    return param, exp_avg, exp_avg_sq


@triton.jit
def rmsprop_update(
    param,
    grad,
    square_avg,
    buffer,
    grad_avg,
    lr,
    alpha,
    one_minus_alpha,
    eps,
    weight_decay,
    momentum,
    DECAY: tl.constexpr,
    MOMENTUM: tl.constexpr,
    CENTERED: tl.constexpr,
):
    if DECAY:
        grad = grad + weight_decay * param
    square_avg = alpha * square_avg + one_minus_alpha * (grad * grad)
    variance = square_avg
    if CENTERED:
        grad_avg = alpha * grad_avg + one_minus_alpha * grad
        variance = square_avg - grad_avg * grad_avg
        variance = tl.where(variance < 0, 0.0, variance)  # rounding may leave it just below zero
    direction = divide(grad, square_root(variance) + eps)
    if MOMENTUM:
        direction = momentum * buffer + direction
        buffer = direction
    return param - lr * direction, square_avg, buffer, grad_avg


@triton.jit
def reptile_difference(minuend, subtrahend):
    return minuend - subtrahend


@triton.jit
def reptile_interpolate(initial, total, step_size):
    return initial + step_size * total


@triton.jit
def ema_update(average, param, one_minus_decay):
    return average + one_minus_decay * (param - average)


@triton.jit
def clip_scale(norm, max_norm):
    """Return the factor, in float64, that scales a row of this norm to at most `max_norm`; NaN for NaN."""
    scale = max_norm / (norm + 1e-6)
    return tl.where(scale > 1, 1.0, scale)
