"""From a loss to updates."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, nn

from .._gradients import gradients


class ParameterUpdate(nn.Module):
    """Differentiate a loss as `torch.autograd.grad` does, and pass each gradient through a transform of its own.

    Args:
        parameters: those to update.
        transform: takes a parameter, returns a module from its gradient to its update, or None for the gradient.

    Raises:
        ValueError: the transform of a parameter is something else.
    """

    def __init__(self, parameters: Iterable[Tensor], transform: Callable[[Tensor], nn.Module | None]) -> None:
        super().__init__()
        self.transforms_modules = nn.ModuleList()
        self.transforms_indices: list[int | None] = []
        for parameter in parameters:
            made = transform(parameter)
            if made is None:
                self.transforms_indices.append(None)
            elif isinstance(made, nn.Module):
                self.transforms_indices.append(len(self.transforms_modules))
                self.transforms_modules.append(made)
            else:
                raise ValueError(f"expected transform(parameter) to be a module or None, got {type(made).__name__}")

    def forward(
        self,
        loss: Tensor,
        parameters: Iterable[Tensor],
        create_graph: bool = False,
        retain_graph: bool = False,
        allow_unused: bool = False,
        allow_nograd: bool = False,
    ) -> list[Tensor | None]:
        """Return one update for each of `parameters`, in the order of those that this was made for.

        Args:
            loss: one element.
            parameters: their present tensors.
            create_graph: make the updates differentiable.
            retain_graph: keep the loss's graph; `create_graph` keeps it too.
            allow_unused: the update is None where the loss does not depend on a parameter.
            allow_nograd: the update is None where a parameter does not require grad.

        Raises:
            RuntimeError: the loss has no graph, or not of all parameters.
        """
        found = gradients(
            loss,
            {f"parameter {index}": x for index, x in enumerate(parameters)},
            create_graph=create_graph,
            retain_graph=create_graph or retain_graph,
            allow_unused=allow_unused,
            allow_nograd=allow_nograd,
        )
        return [
            gradient if index is None or gradient is None else self.transforms_modules[index](gradient)
            for gradient, index in zip(found, self.transforms_indices, strict=False)
        ]
