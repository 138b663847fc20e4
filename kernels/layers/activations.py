"""Activations of the per-task layers in float32, twins of `executors/torch/layers/activations.py`.

`NAME` and `NUMBER` are compile-time constants. Triton has no `expm1` and no `log1p`: they are series here, the Taylor
series for small arguments and the series of the inverse hyperbolic tangent, accurate to a few ulp.
"""

import triton
import triton.language as tl

INVERSE_ROOT_2 = tl.constexpr(0.7071067811865476)
INVERSE_ROOT_2PI = tl.constexpr(0.3989422804014327)


@triton.jit
def expm1(x):
    """Return exp(x) - 1."""
    small = 1 + x / 7
    small = 1 + x / 6 * small
    small = 1 + x / 5 * small
    small = 1 + x / 4 * small
    small = 1 + x / 3 * small
    small = 1 + x / 2 * small
    return tl.where(tl.abs(x) < 0.35, x * small, tl.exp(x) - 1)


@triton.jit
def log1p(x):
    """Return log(1 + x) for x from 0 to 1."""
    s = x / (2 + x)
    square = s * s
    terms = 1.0 / 13 + square / 15
    terms = 1.0 / 11 + square * terms
    terms = 1.0 / 9 + square * terms
    terms = 1.0 / 7 + square * terms
    terms = 1.0 / 5 + square * terms
    terms = 1.0 / 3 + square * terms
    return 2 * s * (1 + square * terms)


@triton.jit
def sigmoid(x):
    """Return 1 / (1 + exp(-x)) without overflow."""
    e = tl.exp(-tl.abs(x))
    return tl.where(x >= 0, 1.0, e) / (1 + e)


@triton.jit
def tanh(x):
    """Return the hyperbolic tangent."""
    e = expm1(-2 * tl.abs(x))
    size = -e / (2 + e)
    return tl.where(x < 0, -size, size)


@triton.jit
def normal_density(x):
    """Return the density of the standard normal distribution."""
    return tl.exp(-0.5 * x * x) * INVERSE_ROOT_2PI


@triton.jit
def activate(z, slope, NAME: tl.constexpr, NUMBER: tl.constexpr):
    """Return the activation of a pre-activation."""
    if NAME == "relu":
        y = tl.where(z <= 0, 0.0, z)
    elif NAME == "leaky_relu":
        y = tl.where(z > 0, z, z * NUMBER)
    elif NAME == "prelu":
        y = tl.where(z > 0, z, slope * z)
    elif NAME == "tanh":
        y = tanh(z)
    elif NAME == "sigmoid":
        y = sigmoid(z)
    elif NAME == "elu":
        y = tl.where(z > 0, z, NUMBER * expm1(z))
    elif NAME == "silu":
        y = z * sigmoid(z)
    elif NAME == "gelu":
        y = z * (0.5 + 0.5 * tl.math.erf(z * INVERSE_ROOT_2))
    elif NAME == "softplus":
        bz = NUMBER * z
        y = (tl.where(bz > 0, bz, 0.0) + log1p(tl.exp(-tl.abs(bz)))) / NUMBER
    else:
        tl.static_assert(NAME == "none", "an activation without a kernel")
        y = z
    return y


@triton.jit
def activation_derivative(saved, slope, NAME: tl.constexpr, NUMBER: tl.constexpr):
    """Return the derivative by the pre-activation, from the saved tensor."""
    if NAME == "relu":
        d = tl.where(saved <= 0, 0.0, 1.0)
    elif NAME == "leaky_relu":
        d = tl.where(saved > 0, 1.0, NUMBER)
    elif NAME == "prelu":
        d = tl.where(saved > 0, 1.0, slope)
    elif NAME == "tanh":
        d = 1 - saved * saved
    elif NAME == "sigmoid":
        d = saved * (1 - saved)
    elif NAME == "elu":
        d = tl.where(saved > 0, 1.0, saved + NUMBER)
    elif NAME == "silu":
        s = sigmoid(saved)
        d = s * (1 + saved * (1 - s))
    elif NAME == "gelu":
        d = 0.5 + 0.5 * tl.math.erf(saved * INVERSE_ROOT_2) + saved * normal_density(saved)
    else:
        tl.static_assert(NAME == "softplus", "an activation without a kernel")
        d = sigmoid(NUMBER * saved)
    return d


@triton.jit
def through_activation(dy, saved, slope, NAME: tl.constexpr, NUMBER: tl.constexpr):
    """Return dy times the activation's derivative by the pre-activation, rounded to dy's type."""
    derivative = activation_derivative(saved.to(tl.float32), slope, NAME, NUMBER)
    return (dy.to(tl.float32) * derivative).to(dy.dtype)


@triton.jit
def slope_terms(dy, saved):
    """Return dy times a PReLU's derivative by its slope, in float32."""
    return tl.where(saved > 0, 0.0, dy.to(tl.float32) * saved.to(tl.float32))


@triton.jit
def load_slopes(slope, offsets, mask):
    """Return a PReLU's slopes in float32, 0 for other activations."""
    if slope is None:
        return 0.0
    else:
        return tl.load(slope + offsets, mask, other=0.0).to(tl.float32)


@triton.jit
def load_through_activation(data, saved, offsets, mask, slope, NAME: tl.constexpr, NUMBER: tl.constexpr):
    """Return elements, 0 where masked; with `saved`, of the same layout, times the activation's derivative."""
    x = tl.load(data + offsets, mask, other=0.0)
    if saved is not None:
        x = through_activation(x, tl.load(saved + offsets, mask, other=0.0), slope, NAME, NUMBER)
    return x
