"""Scripted, compiled and traced generators in `MetaGAN`: they adapt as plain ones do, or the error names them."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import metagan_fast as mgf
from support import assert_close

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
compile_ = functools.partial(torch.compile, backend="eager")  # the compiler's front end, without code generation


class Generator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 16)

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(self.layer(z)).reshape(-1, 1, 4, 4)


def in_place(module: nn.Module) -> nn.Module:
    module.compile(backend="eager")
    return module


def closed(module: nn.Module) -> nn.Module:
    module.forward = compile_(module.forward)
    return module


def meta_step(generator: nn.Module, executor: str) -> Tensor:
    """Return the generator's parameters after one meta-step."""
    torch.manual_seed(0)
    discriminator = nn.Sequential(nn.Flatten(), nn.Linear(16, 1))
    learner = mgf.MetaGAN(generator, discriminator, latent_dim=3, loss="wgan-gp", executor=executor, seed=0)
    learner.meta_step(mgf.TaskBatch(support=torch.rand(2, 3, 1, 4, 4) * 2 - 1))
    return learner.generator_parameters


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (torch.jit.script, "expected a generator .* the module itself, of type RecursiveScriptModule, is scripted"),
        (lambda module: nn.Sequential(closed(module)), "its part '0', of type Generator, was assigned the function"),
        (nn.DataParallel, r"pass generator\.module instead"),
        (lambda module: nn.Sequential(nn.DataParallel(module)), r"pass generator\.0\.module instead"),
    ],
    ids=["scripted", "compiled-forward", "data-parallel", "data-parallel-part"],
)
def test_the_torch_executor_refuses_what_it_cannot_adapt(change: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        meta_step(change(Generator()), "torch")


@pytest.mark.parametrize("executor", ["auto", "torch"])
@pytest.mark.parametrize(
    "change",
    [
        compile_,
        in_place,
        lambda module: nn.Sequential(torch.jit.script(module)),
        torch.fx.symbolic_trace,
    ],
    ids=["compiled", "compiled-in-place", "scripted-part", "fx"],
)
def test_executors_adapt_other_forms_of_a_module(change: Any, executor: str) -> None:
    generator = Generator()
    expected = meta_step(copy.deepcopy(generator), executor)
    actual = meta_step(change(copy.deepcopy(generator)), executor)
    start = generator.layer.weight.detach()
    assert not torch.equal(expected[: start.numel()].reshape(start.shape), start)
    assert_close(actual, expected, "float32-rounding")
