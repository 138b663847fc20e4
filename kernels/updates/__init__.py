"""Triton kernels of the fused updates, one file an op; `formulas` has the update rules."""
