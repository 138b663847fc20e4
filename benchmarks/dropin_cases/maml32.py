"""The workload `maml-32` for functions that return both networks' meta-gradients by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from metagan_fast.benchmarks.contenders import Prepared
from metagan_fast.benchmarks.problem import Problem, join
from torch import Tensor

import metagan_fast as mgf


def prepare(quick: bool, gradients: dict[str, Callable[..., Any]]) -> dict[str, Prepared[Tensor]]:
    """Set up contenders from functions with the signature of `baselines.meta_gradients.maml_gradient`."""
    problem = Problem.draw(
        "maml-32",
        algorithm="maml",
        loss="non-saturating",
        inner=mgf.InnerLoop(lr=1e-3, steps=2 if quick else 5),
        tasks=1 if quick else 8,
        shots=4,
        query=4,
    )
    arguments = problem.generator, problem.discriminator, problem.batch.support, problem.batch.query, problem.noise
    options: dict[str, Any] = {"loss": problem.loss, "lr": problem.lr, "steps": problem.steps}

    def prepared(gradient: Callable[..., Any]) -> Prepared[Tensor]:
        return Prepared(
            lambda: gradient(*arguments, **options), lambda named: torch.cat([join(network) for network in named])
        )

    return {name: prepared(gradient) for name, gradient in gradients.items()}
