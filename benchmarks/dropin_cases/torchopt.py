"""Training loops of TorchOpt's users."""

from __future__ import annotations

import functools
from typing import Any

from metagan_fast.benchmarks.contenders import Prepared
from metagan_fast.benchmarks.dropin_cases import DropInCase, conv4, maml32
from torch import Tensor
from torch.nn.functional import cross_entropy

from metagan_fast.dropin import torchopt as ours


def _maml32(quick: bool) -> dict[str, Prepared[Tensor]]:
    from metagan_fast.benchmarks.baselines.torchopt_maml import maml_gradient

    return maml32.prepare(
        quick, {"torchopt": maml_gradient, "metagan_fast": functools.partial(maml_gradient, library=ours)}
    )


def _conv4(quick: bool) -> dict[str, Prepared[Tensor]]:
    import torchopt

    libraries = {"torchopt": torchopt, "metagan_fast": ours}
    return conv4.contenders(quick, {name: functools.partial(_meta_step, x) for name, x in libraries.items()})


def _meta_step(library: Any, episodes: conv4.Episodes) -> None:
    network = episodes.network
    network.zero_grad(set_to_none=True)
    optimizer = library.MetaSGD(network, lr=episodes.lr)
    network_state = library.extract_state_dict(network, by="reference", detach_buffers=True)
    optimizer_state = library.extract_state_dict(optimizer, by="reference")
    for support, query in zip(episodes.support, episodes.query, strict=True):
        for _ in range(episodes.steps):
            optimizer.step(cross_entropy(network(support), episodes.support_labels))
        cross_entropy(network(query), episodes.query_labels).backward()
        library.recover_state_dict(network, network_state)
        library.recover_state_dict(optimizer, optimizer_state)


CASES = (
    DropInCase("torchopt-maml-32", _maml32, package="torchopt"),
    DropInCase("torchopt-conv4", _conv4, package="torchopt"),
)
