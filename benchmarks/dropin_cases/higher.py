"""Training loops of `higher`'s users."""

from __future__ import annotations

import functools
from typing import Any

import torch
from metagan_fast.benchmarks.contenders import Prepared
from metagan_fast.benchmarks.dropin_cases import DropInCase, conv4, maml32
from torch import Tensor
from torch.nn.functional import cross_entropy

from metagan_fast.dropin import higher as ours


def _maml32(quick: bool) -> dict[str, Prepared[Tensor]]:
    from metagan_fast.benchmarks.baselines.higher_maml import maml_gradient

    return maml32.prepare(
        quick, {"higher": maml_gradient, "metagan_fast": functools.partial(maml_gradient, library=ours)}
    )


def _conv4(quick: bool) -> dict[str, Prepared[Tensor]]:
    from metagan_fast.benchmarks.baselines.higher_maml import higher

    libraries = {"higher": higher, "metagan_fast": ours}
    return conv4.contenders(quick, {name: functools.partial(_meta_step, x) for name, x in libraries.items()})


def _meta_step(library: Any, episodes: conv4.Episodes) -> None:
    network = episodes.network
    network.zero_grad(set_to_none=True)
    optimizer = torch.optim.SGD(network.parameters(), lr=episodes.lr)
    for support, query in zip(episodes.support, episodes.query, strict=True):
        with library.innerloop_ctx(network, optimizer, copy_initial_weights=False) as (fmodel, diffopt):
            for _ in range(episodes.steps):
                diffopt.step(cross_entropy(fmodel(support), episodes.support_labels))
            cross_entropy(fmodel(query), episodes.query_labels).backward()


CASES = (
    DropInCase("higher-maml-32", _maml32, package="higher"),
    DropInCase("higher-conv4", _conv4, package="higher"),
)
