"""The WGAN-GP inner loop in JAX: one step of one task, `vmap` over tasks, `jit`.

The networks are translated from torch modules of the layers below and keep torch's parameter names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from torch import Tensor, nn

Array = Any
Named = dict[str, Array]
Apply = Callable[[Named, Array], Array]


def translate(module: nn.Module, prefix: str = "") -> Apply:
    """Translate a torch module into a JAX function of (parameters by name, inputs).

    Raises:
        ValueError: a layer without a translation.
    """
    if isinstance(module, nn.Sequential):
        layers = [translate(child, f"{prefix}{name}.") for name, child in module.named_children()]

        def sequence(p: Named, x: Array) -> Array:
            for layer in layers:
                x = layer(p, x)
            return x

        return sequence
    weight, bias = f"{prefix}weight", f"{prefix}bias"
    if isinstance(module, nn.Linear):
        return lambda p, x: x @ p[weight].T + p[bias]
    if isinstance(module, nn.Conv2d):
        padding = [(side, side) for side in module.padding if not isinstance(side, str)]
        return lambda p, x: jax.lax.conv_general_dilated(x, p[weight], module.stride, padding) + p[bias][:, None, None]
    if isinstance(module, nn.LayerNorm):
        axes = tuple(range(-len(module.normalized_shape), 0))

        def layer_norm(p: Named, x: Array) -> Array:
            centred = x - x.mean(axes, keepdims=True)
            return centred * jax.lax.rsqrt((centred**2).mean(axes, keepdims=True) + module.eps) * p[weight] + p[bias]

        return layer_norm
    if isinstance(module, nn.PReLU):

        def prelu(p: Named, x: Array) -> Array:
            slope = p[weight].reshape(-1, *[1] * (x.ndim - 2))
            return jnp.where(x > 0, x, slope * x)

        return prelu
    if isinstance(module, nn.LeakyReLU):
        return lambda p, x: jnp.where(x > 0, x, module.negative_slope * x)
    if isinstance(module, nn.Tanh):
        return lambda p, x: jnp.tanh(x)
    if isinstance(module, nn.Upsample) and module.mode == "nearest" and module.scale_factor == 2:
        return lambda p, x: x.repeat(2, axis=2).repeat(2, axis=3)
    if isinstance(module, nn.AvgPool2d) and module.kernel_size == module.stride == 2:
        return lambda p, x: x.reshape(*x.shape[:2], x.shape[2] // 2, 2, x.shape[3] // 2, 2).mean((3, 5))
    if isinstance(module, nn.Flatten):
        return lambda p, x: x.reshape(-1) if module.start_dim == 0 else x.reshape(x.shape[0], -1)
    if isinstance(module, nn.Unflatten):
        return lambda p, x: x.reshape(x.shape[0], *module.unflattened_size)
    raise ValueError(f"expected layers that the JAX baseline knows, got {type(module).__name__}")


def compiled_step(generator: nn.Module, discriminator: nn.Module, *, lr: float, weight: float = 10.0) -> Any:
    """Return one WGAN-GP inner step of a batch of tasks: (g, d, real, latents, weight, latents) -> (g, d)."""
    generate, score = translate(generator), translate(discriminator)

    def discriminator_loss(d: Named, g: Named, real: Array, latents: Array, interpolation: Array) -> Array:
        fake = generate(g, latents)
        real_scores, fake_scores = score(d, jnp.concatenate([real, fake])).reshape(2, -1)
        w = interpolation.reshape(-1, 1, 1, 1)
        gradient = jax.grad(lambda x: score(d, x).sum())(w * real + (1 - w) * fake)
        norm = jnp.sqrt((gradient.reshape(len(gradient), -1) ** 2).sum(1))
        return fake_scores.mean() - real_scores.mean() + weight * ((norm - 1) ** 2).mean()

    def generator_loss(g: Named, d: Named, latents: Array) -> Array:
        return -score(d, generate(g, latents)).mean()

    def descend(parameters: Named, gradients: Named) -> Named:
        return {name: parameters[name] - lr * gradients[name] for name in parameters}

    def step(
        g: Named, d: Named, real: Array, latents: Array, interpolation: Array, generator_latents: Array
    ) -> tuple[Named, Named]:
        d = descend(d, jax.grad(discriminator_loss)(d, g, real, latents, interpolation))
        return descend(g, jax.grad(generator_loss)(g, d, generator_latents)), d

    return jax.jit(jax.vmap(step))


def to_numpy(array: Array) -> Any:
    """Copy a JAX array to numpy."""
    return np.array(array)


def to_jax(tensor: Tensor) -> Array:
    """Copy a tensor to JAX."""
    return jnp.asarray(tensor.detach().numpy())


def inner_loop(
    generator: nn.Module,
    discriminator: nn.Module,
    support: Array,
    noise: dict[str, Array],
    *,
    step: Any,
    steps: int,
) -> tuple[Named, Named]:
    """Adapt to all tasks of `support` `[tasks, shots, C, H, W]`; block until the result is ready.

    Returns:
        The parameters of both networks by name, [tasks, *shape].
    """
    g, d = (
        {name: jnp.broadcast_to(to_jax(p), (len(support), *p.shape)) for name, p in network.named_parameters()}
        for network in (generator, discriminator)
    )
    for k in range(steps):
        latents, interpolation = noise["discriminator_latents"][k, 0], noise["interpolation"][k, 0]
        g, d = step(g, d, support, latents, interpolation, noise["generator_latents"][k])
    jax.block_until_ready((g, d))
    return g, d
