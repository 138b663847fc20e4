"""Networks, data and hand-written unrolls for tests of the stand-in for learn2learn."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from support import join

LR = 0.1


class Tied(nn.Module):
    """A weight that two submodules share."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(4, 4)
        self.decode = nn.Linear(4, 4)
        self.decode.weight = self.encode.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(torch.tanh(self.encode(x)))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.rnn = kind(4, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x.unsqueeze(1).expand(-1, 3, -1))[0][:, -1]


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2, padding=1), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(27, 3)
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "convolutional": convolutional,
    "tied": Tied,
    "rnn": lambda: Recurrent(nn.RNN),
    "lstm": lambda: Recurrent(nn.LSTM),
    "gru": lambda: Recurrent(nn.GRU),
}
every_network = pytest.mark.parametrize("network", NETWORKS)


def images(*sizes: int) -> tuple[Tensor, Tensor]:
    return torch.randn(*sizes, 4), torch.randn(*sizes, 1)


def loss_of(learner: Callable[[Tensor], Tensor], data: tuple[Tensor, Tensor]) -> Tensor:
    inputs, targets = data
    return (learner(inputs) - targets).pow(2).mean()


def unrolled(
    module: nn.Module,
    data: tuple[Tensor, Tensor],
    steps: int,
    *,
    rates: Mapping[str, Any] | None = None,
    first_order: bool = False,
) -> dict[str, Tensor]:
    """Return the parameters after gradient descent, as functions of the module's own."""
    params = dict(module.named_parameters())
    rates = rates or dict.fromkeys(params, LR)
    for _ in range(steps):
        loss = loss_of(lambda x, params=params: functional_call(module, params, (x,)), data)
        grads = torch.autograd.grad(loss, list(params.values()), create_graph=not first_order)
        params = {name: p - rates[name] * g for (name, p), g in zip(params.items(), grads, strict=True)}
    return params


def meta_gradient(loss: Tensor, wanted: Mapping[str, Tensor]) -> Tensor:
    grads = torch.autograd.grad(loss, list(wanted.values()))
    return join(dict(zip(wanted, grads, strict=True)))
