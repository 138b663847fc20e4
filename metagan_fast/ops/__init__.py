"""The fused ops, one file each.

An op's file has, in reading order: the public function with its docstring; the in-place twin, with a trailing
underscore; the argument checks, which both share; the call of the compiled kernel; the derivative, if it has one of its
own; and a line that defines the op (`Op`). `metagan_fast.functional` exports the functions, `reference` specifies them,
and `Op.run` runs a checked call by one of three routes:

- No derivative is wanted: a backend's kernel, which `_dispatch` selects.
- A derivative is wanted, or a `torch.func` transform is active: `sgd_step` and `adam_step` go through an
  `autograd.Function` around the kernel, with its own backward, jvp and vmap rule; the other ops are the plain
  PyTorch of `reference`.
- torch.compile or another tracer is active: plain PyTorch, which a compiler can fuse.

The ops are not `torch.library` operators, on purpose. A tracer never meets a kernel, so nothing needs a schema or a
fake; `register_autograd` breaks `torch.func.grad`; and an operator that mutates gives wrong gradients silently.
"""
