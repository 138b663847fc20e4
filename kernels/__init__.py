"""Triton kernels: `updates` for the fused ops, `layers` for the per-task layers, `blocks` for the loads both share.

`updates/formulas.py` is the twin of `csrc/ops/formulas.h`: same names, same order of operations. Each op has one file
with its kernel and launcher. Triton is imported when an op first runs.
"""
