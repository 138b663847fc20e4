"""Executor selection: the one asked for by name, or for "auto" the native one with the torch one as fallback."""

from __future__ import annotations

import logging
from typing import NamedTuple

import torch
from torch import nn

from .._utils.log import log_once
from ..flat import FlatLayout
from ..inner import InnerLoop
from ..losses import Loss
from .base import Executor, Parameters
from .native.executor import NativeExecutor
from .torch.executor import TorchExecutor

logger = logging.getLogger(__name__)

EXECUTORS = ("auto", "torch", "native")
PRECISIONS = ("float32", "bf16")


class Selection(NamedTuple):
    """The executor, and why native was rejected ("" if it was not)."""

    executor: Executor
    rejection: str


def choose(
    name: str,
    modules: tuple[nn.Module, nn.Module],
    layouts: tuple[FlatLayout, FlatLayout],
    params: Parameters,
    *,
    latent_dim: int,
    loss: Loss,
    inner: InnerLoop,
    second_order: bool,
    precision: str,
    allow_random: bool,
) -> Selection:
    """Build the executor called `name`; for "auto", native if it supports the networks and settings, else torch.

    Args:
        name: one of `EXECUTORS`.
        modules: generator and discriminator.
        layouts: their flat layouts, in the same order.
        params: flat parameters `[numel]` each; only their dtype and device are read.
        latent_dim: elements of a latent vector.
        loss: the GAN loss of the inner loop.
        inner: the inner loop's settings.
        second_order: True if the meta-gradient goes through the inner loop (MAML).
        precision: one of `PRECISIONS`.
        allow_random: let the modules draw random numbers (torch executor only).

    Raises:
        ValueError: native was asked for by name and does not support them, or the torch executor does not.
    """
    rejection = 'executor="torch" was asked for'
    if name != "torch":
        like = params.generator
        try:
            if not _is_float32_on_cpu(params):
                raise ValueError(f"it takes float32 modules on a CPU, got {like.dtype} on {like.device}")
            if second_order:
                NativeExecutor.check_second_order(loss, inner)
            native = NativeExecutor(
                *modules, *layouts, latent_dim=latent_dim, loss=loss, inner=inner, precision=precision
            )
            return Selection(native, "")
        except ValueError as error:
            if name == "native":
                raise ValueError(f'executor="native" cannot run this: {error}; use executor="auto"') from error
            rejection = str(error)
            if _is_float32_on_cpu(params):
                message = f"the torch executor runs the inner loops, expect less speed: {error}"
                log_once(logger, logging.WARNING, message)
    autocast = precision == "bf16"
    executor = TorchExecutor(*modules, *layouts, loss=loss, inner=inner, allow_random=allow_random, autocast=autocast)
    return Selection(executor, rejection)


def _is_float32_on_cpu(params: Parameters) -> bool:
    return params.generator.is_cpu and params.generator.dtype == torch.float32
