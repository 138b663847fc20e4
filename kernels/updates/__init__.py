"""Triton kernels of the fused updates, one file an op; `formulas` holds the update rules."""
