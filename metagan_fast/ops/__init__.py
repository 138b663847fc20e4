"""The fused ops between `functional` and the backends, one file an op: what it accepts, how it derives.

Each file's `call` checks the arguments of the public function whose name it is given (a trailing underscore:
in place) and runs the op by one of three routes:

- No derivative is wanted: straight to a backend's kernel.
- A derivative is wanted, or a `torch.func` transform is at work: `sgd_step` and `adam_step` go through an
  `autograd.Function` around the kernel, with its own backward, jvp and vmap rule; the other ops are the plain
  PyTorch of `reference`.
- torch.compile or another tracer is looking: plain PyTorch, which a compiler can fuse.

`task_layers`, `activated_layers` and `task_layer_norm` are not public: layers with weights of each task's own, for the
torch executor.

There are no `torch.library` operators here on purpose. A tracer never meets a kernel, so nothing needs a
schema or a fake; `register_autograd` breaks `torch.func.grad`; and an operator that mutates gives wrong
gradients silently.
"""
