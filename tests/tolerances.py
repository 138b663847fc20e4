"""Every tolerance of the test suite, each with the reason why it is not smaller."""

from __future__ import annotations

TOLERANCES: dict[str, tuple[float, str]] = {
    "float64-parity": (
        1e-9,
        "same mathematics in another order, float64: rounding grows over a GAN's inner steps",
    ),
    "float64-rounding": (1e-12, "a handful of float64 operations in another order"),
    "float32-rounding": (2e-6, "a handful of float32 operations in another order"),
    "finite-difference": (
        1e-6,
        "central differences in float64, step 1e-5: truncation 1e-10, cancellation 1e-11",
    ),
    "float32-inner-step": (
        1e-5,
        "one inner step in float32, of its change: the floor below which no loop is asked",
    ),
    "bf16-inner-loop": (0.1, "two inner steps in bf16, 8 bits a number, of the difference they make"),
    "float64-square-root": (
        1e-15,
        "torch.sqrt in float64 on a CPU (MKL) is off by an ulp now and then, the kernels are not",
    ),
    "float32-other-library": (
        1e-2,
        "change over two float32 inner steps, other libraries: the penalty amplifies rounding",
    ),
    "float32-derivative": (
        1e-5,
        "a gradient in float32 by another formula, divided by roots that magnify rounding",
    ),
    "bf16-derivative": (
        0.03,
        "a gradient from moments stored in bf16 (8 bits) against one from the unrounded ones",
    ),
    "gpu-loop": (
        1e-3,
        "change over a few float32 steps on a GPU, whose libraries sum in an order of their own, atomics included",
    ),
    "engine-pass": (
        1e-5,
        "one pass through a float32 network, second derivatives included: rounding grows over a dozen layers",
    ),
    "engine-loop": (
        1e-2,
        "change of 1e-4 over three float32 inner steps at parameters near 1, whose ulp is 1e-7; kinks magnify it",
    ),
    "engine-maml": (
        1e-4,
        "a meta-gradient through float32 inner steps against float64 autograd, as for the first-order one",
    ),
    "resumed-run": (
        1e-4,
        "change over two meta-steps of ten float32 inner steps, by another instruction set: 3e-6 measured",
    ),
    "engine-layer": (
        1e-5,
        "a layer's passes in float32: sums of up to a few thousand terms, and their squares in a normalisation",
    ),
    "bf16-operands": (
        2e-6,
        "float32 sums of up to a few thousand products of bf16 operands, which are exact, in any order",
    ),
    "bf16-transforms": (
        0.02,
        "Winograd's transforms of 8 points, their results rounded to bf16, against rounded pixels: on random numbers 4 "
        "times the 2.4e-3 by which rounding pixels alone changes a sum",
    ),
    "bf16-emulated": (
        2e-3,
        "float32 sums between products of bf16 operands: 1e-7 from exact ones, but for one in some thousands that lies "
        "so near the middle of two bf16 numbers that it is rounded to the other, 2**-8 away",
    ),
    "bf16-smooth": (
        0.016,
        "operands off by up to 2**-9 each, through up to four products there and four back: 8 times 2**-9",
    ),
    "bf16-loop": (
        0.05,
        "inner steps with operands of 8 bits, of the change that float32 makes",
    ),
    "task-layer": (
        2e-6,
        "sums of up to a few hundred float32 products against float64",
    ),
    "task-layer-reduced": (
        2e-2,
        "products of operands rounded to 8 (bf16) or 11 bits (tf32), results in the operands' dtype",
    ),
    "layer-norm-twice": (
        2e-4,
        "second derivatives of a float32 layer norm: inputs close to one another count most, and their differences and "
        "the means of products cancel; PyTorch's own are as far from float64",
    ),
    "engine-times-float32": (
        5.0,
        "where PyTorch's float32 is farther from float64: times its distance, the orders of summation differ",
    ),
    "interpreted-bf16": (
        0.008,
        "Triton's interpreter truncates to bf16 where a GPU rounds: one ulp",
    ),
    "optimizer-steps": (
        1e-5,
        "a few float32 steps against torch.optim's in float32; a centered variance is a difference, which magnifies "
        "rounding where two steps' gradients are alike",
    ),
    "optimizer-times-torch": (
        3.0,
        "a few float32 steps, of torch.optim's own distance from its float64 self: roundings of other operations",
    ),
    "bf16-store": (
        4e-3,
        "results rounded to bf16 after float32 operations in another order: at most an ulp apart, 2**-8",
    ),
    "logistic-solver": (
        5e-3,
        "coefficients, of the largest, where the solver stops: at partial derivatives below 1e-3",
    ),
    "exported-images": (
        1e-4,
        "float32 images in [-1, 1] of another program, ONNX's in NumPy: sums in another order through a few layers",
    ),
    "clip-norm": (
        5e-7,
        "a sum of squares in another order, in float64: 2 ulp of float32 for the norm, 4 for a scaled row",
    ),
}


def tolerance(name: str) -> float:
    """Return the value of the named tolerance."""
    return TOLERANCES[name][0]
