"""Executor selection: the one asked for by name, or for "auto" the native one with the torch one as fallback."""

from __future__ import annotations

import logging

import torch
from torch import Tensor

from .._utils.log import log_once
from .._utils.pair import Pair
from ..inner import InnerLoop
from ..losses import Loss
from .base import Executor, Network
from .native.executor import NativeExecutor
from .torch.executor import TorchExecutor

logger = logging.getLogger(__name__)

EXECUTORS = ("auto", "torch", "native")
PRECISIONS = ("float32", "bf16")


def choose(
    name: str,
    networks: Pair[Network],
    like: Tensor,
    *,
    latent_dim: int,
    loss: Loss,
    inner: InnerLoop,
    second_order: bool,
    precision: str,
    allow_random: bool,
) -> Executor:
    """Build the executor called `name`; for "auto", native if it supports the networks and settings, else torch.

    Args:
        name: one of `EXECUTORS`.
        networks: generator and discriminator.
        like: flat parameters, of which dtype and device are read.
        latent_dim: elements of a latent vector.
        loss: the GAN loss of the inner loop.
        inner: the inner loop's settings.
        second_order: True if the meta-gradient goes through the inner loop (MAML).
        precision: one of `PRECISIONS`.
        allow_random: let the modules draw random numbers (torch executor only).

    Raises:
        ValueError: native was asked for by name and does not support them, or the torch executor does not.
    """
    reason = 'executor="torch" was asked for'
    if name != "torch":
        is_float32_on_cpu = like.is_cpu and like.dtype == torch.float32
        try:
            if not is_float32_on_cpu:
                raise ValueError(f"it takes float32 modules on a CPU, got {like.dtype} on {like.device}")
            if second_order:
                NativeExecutor.check_second_order(loss, inner)
            return NativeExecutor(networks, latent_dim=latent_dim, loss=loss, inner=inner, precision=precision)
        except ValueError as error:
            if name == "native":
                raise ValueError(f'executor="native" cannot run this: {error}; use executor="auto"') from error
            reason = str(error)
            if is_float32_on_cpu:
                message = f"the torch executor runs the inner loops, expect less speed: {error}"
                log_once(logger, logging.WARNING, message)
    autocast = precision == "bf16"
    return TorchExecutor(networks, loss=loss, inner=inner, allow_random=allow_random, autocast=autocast, reason=reason)
