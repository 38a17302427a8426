"""The policies that training must not leave far behind: frozen copies, other checkpoints, or an adapter's own base."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.errors import TrainingError
from posttrain.learner.backbone import Backbone
from posttrain.learner.masters import Masters


class References:
    """`models` are frozen; None stands for the base under the policy's adapter."""

    def __init__(self, models: Sequence[nn.Module | None]) -> None:
        self.models = [None if m is None else m.eval().requires_grad_(False) for m in models]
        self._backbones = [None if m is None else Backbone(m) for m in self.models]
        # In bf16 a moving average with a decay near 1 would never move.
        self.average: list[Tensor] | None = None
        self.learnt: list[Tensor] | None = None
        """The policy at the last copy, before it went on by momentum."""

    def each(self, policy: Any, policy_backbone: Backbone) -> Iterator[Backbone]:
        """The backbone of every reference in turn, ready to be run."""
        for backbone in self._backbones:
            if backbone is not None:
                yield backbone
            elif hasattr(policy, "disable_adapter"):
                with policy.disable_adapter():
                    yield policy_backbone
            else:
                raise TrainingError("the base of an adapter is asked for as reference, but the policy has no adapter")

    @torch.no_grad()
    def refresh(self, policy: Masters, decay: float) -> None:
        """The first reference becomes decay x itself + (1 - decay) x the policy (2404.10719; decay 0 copies it)."""
        first = self.first()
        parameters = list(first.parameters())
        if self.average is None:
            self.average = [p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True) for p in parameters]
        for mean, own, parameter in zip(self.average, policy.parameters, parameters, strict=True):
            mean.mul_(decay).add_(own.detach().to(mean), alpha=1 - decay)
            parameter.copy_(mean)

    @torch.no_grad()
    def carry_on(self, policy: Masters, momentum: float) -> None:
        """The policy becomes itself + momentum x (itself - what it was here the last time, before it went on), and the
        first reference becomes that (2410.06293, in the space of parameters).
        """
        parameters = list(self.first().parameters())
        before = [p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True) for p in parameters]
        before = self.learnt or before
        self.learnt = [own.detach().to(was, copy=True) for own, was in zip(policy.parameters, before, strict=True)]
        for own, was in zip(policy.parameters, before, strict=True):
            own.add_(own.detach() - was.to(own), alpha=momentum)
        self.refresh(policy, 0.0)

    def first(self) -> nn.Module:
        """The one that moves, and that responses are drawn from. Raises TrainingError where it is an adapter's base."""
        if self.models[0] is None:
            raise TrainingError(
                "reference: an adapter's base is no model of its own, so it cannot move; leave model.lora out"
            )
        return self.models[0]

    @torch.no_grad()
    def load(self, average: list[Tensor]) -> None:
        """Go on from a saved average."""
        first = self.first()
        self.average = [mean.clone() for mean in average]
        for mean, parameter in zip(self.average, first.parameters(), strict=True):
            parameter.copy_(mean)
