"""Full-precision master weights under a model that computes in fewer bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from posttrain.learner.sums import add_into


class Movable(Protocol):
    """Master weights that something beside the optimiser may move."""

    @property
    def parameters(self) -> Sequence[Tensor]:
        """One for each trainable parameter of the model, in its order, as this rank holds it."""

    def publish(self) -> None:
        """Bring the model to where they are. A collective."""


class Masters:
    """Implements `Movable`. fp32 copies of the trainable parameters, which the optimiser moves and the model follows.

    Gradients of each backward pass are added in fp32 as they arrive, so that their sum does not depend on how many
    micro-batches there were. A model that already computes in fp32 or fp64 is its own master.
    """

    def __init__(self, model: nn.Module) -> None:
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        self.names, self.model_parameters = [name for name, _ in trained], [p for _, p in trained]
        self.separate = [p.dtype in (torch.bfloat16, torch.float16) for p in self.model_parameters]
        self.parameters = [
            nn.Parameter(p.detach().float().clone()) if separate else p
            for p, separate in zip(self.model_parameters, self.separate, strict=True)
        ]
        for parameter, master, separate in zip(self.model_parameters, self.parameters, self.separate, strict=True):
            if separate:
                parameter.register_post_accumulate_grad_hook(_collect_into(master))

    @torch.no_grad()
    def publish(self) -> None:
        """Round the masters into the model."""
        for parameter, master, separate in zip(self.model_parameters, self.parameters, self.separate, strict=True):
            if separate:
                parameter.copy_(master)

    def named(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Every master with the name of the parameter it is the master of."""
        return zip(self.names, self.parameters, strict=True)

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None


def _collect_into(master: nn.Parameter) -> Callable[[Tensor], None]:
    def collect(parameter: Tensor) -> None:
        assert parameter.grad is not None
        if master.grad is None:
            master.grad = parameter.grad.to(master.dtype)
        else:
            add_into(master.grad, parameter.grad)
        parameter.grad = None

    return collect
