"""Which executor runs the inner loops: the one that the settings ask for, or the best one that can."""

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


class Choice(NamedTuple):
    """An executor and, where it is the torch one, why it is no better one."""

    executor: Executor
    why_torch: str


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
) -> Choice:
    """Return the executor called `name`, or for "auto" the native one where it can run these networks and settings.

    Raises:
        ValueError: the native executor is asked for by name and cannot run them, or the torch one cannot.
    """
    why_torch = 'executor="torch" was asked for'
    if name != "torch":
        like = params.generator
        try:
            if not _is_native_ground(params):
                raise ValueError(f"it takes float32 modules on a CPU, these are {like.dtype} on {like.device}")
            if second_order:
                NativeExecutor.check_second_order(loss, inner)
            native = NativeExecutor(
                *modules, *layouts, latent_dim=latent_dim, loss=loss, inner=inner, precision=precision
            )
            return Choice(native, "")
        except ValueError as error:
            if name == "native":
                raise ValueError(f'executor="native" cannot run this: {error}; use executor="auto"') from error
            why_torch = str(error)
            if _is_native_ground(params):
                message = f"the torch executor runs the inner loops, expect less speed: {error}"
                log_once(logger, logging.WARNING, message)
    autocast = precision == "bf16"
    executor = TorchExecutor(*modules, *layouts, loss=loss, inner=inner, allow_random=allow_random, autocast=autocast)
    return Choice(executor, why_torch)


def _is_native_ground(params: Parameters) -> bool:
    """Whether the networks are where the native executor works."""
    return params.generator.is_cpu and params.generator.dtype == torch.float32
