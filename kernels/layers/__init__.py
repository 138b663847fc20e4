"""Triton kernels of the per-task layers: linear, convolution, transposed convolution, layer norm."""
