"""The fused ops, one file each: argument checks, derivatives and dispatch to the backends.

Each file's `call` takes the name of the public function (a trailing underscore: in place), checks the arguments and
runs the op by one of three routes:

- No derivative is wanted: a backend's kernel.
- A derivative is wanted, or a `torch.func` transform is active: `sgd_step` and `adam_step` go through an
  `autograd.Function` around the kernel, with its own backward, jvp and vmap rule; the other ops are the plain
  PyTorch of `reference`.
- torch.compile or another tracer is active: plain PyTorch, which a compiler can fuse.

The ops are not `torch.library` operators, on purpose. A tracer never meets a kernel, so nothing needs a schema or a
fake; `register_autograd` breaks `torch.func.grad`; and an operator that mutates gives wrong gradients silently.
"""
