"""Updates from the gradients of a loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from torch import Tensor, nn

from .._gradients import gradients


class ParameterUpdate(nn.Module):
    """Differentiate a loss and pass each gradient through its parameter's transform.

    Args:
        parameters: parameters to update.
        transform: takes a parameter; returns a module from its gradient to its update, or None for the identity.

    Raises:
        ValueError: `transform` returns something else.
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
        """Return one update per parameter, in the order of the constructor's parameters.

        Args:
            loss: tensor of one element.
            parameters: the parameters' current tensors.
            create_graph: make the updates differentiable.
            retain_graph: keep the loss's graph; implied by `create_graph`.
            allow_unused: return None for parameters on which the loss does not depend.
            allow_nograd: return None for parameters that do not require grad.

        Raises:
            RuntimeError: the loss has no graph, or a parameter is unused or frozen without the option that allows it.
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
