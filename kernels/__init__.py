"""Triton kernels, the GPU twins of `csrc/ops/formulas.h`: same names, same order of operations.

`updates.py` holds the formulas, `blocks.py` what a program reads and writes, `_launch.py` what the host passes, and
one file an op its kernel and the function that launches it. `task_linear.py`, `task_convolution.py` and
`task_transposed_convolution.py` are layers with weights of each task's own, `convolution_passes.py` what the last two
share, `activations.py` what they take of their results. Triton is imported when an op first runs.
"""
