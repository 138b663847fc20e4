"""Triton kernels, the GPU twins of `csrc/updates.h`: same names, same order of operations. None so far."""
