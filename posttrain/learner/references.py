"""The policies that training must not leave far behind: frozen copies, other checkpoints, or an adapter's own base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.errors import TrainingError
from posttrain.learner.backbone import Backbone
from posttrain.learner.masters import Movable
from posttrain.learner.sharding import WHOLE, Asking, Reader, Sharding


class References:
    """`models` are frozen; None stands for the base under the policy's adapter."""

    def __init__(self, models: Sequence[nn.Module | None]) -> None:
        self.models = [None if m is None else m.eval().requires_grad_(False) for m in models]
        self._backbones = [None if m is None else Backbone(m) for m in self.models]
        self._readers: list[Asking | None] = [None if m is None else Reader(m) for m in self.models]
        self._sharding: Sharding = WHOLE
        # In bf16 a moving average with a decay near 1 would never move.
        self.average: list[Tensor] | None = None
        self.learnt: list[Tensor] | None = None
        """The policy at the last copy, before it went on by momentum."""

    @property
    def readers(self) -> list[Asking]:
        """One for every model that is not the policy's own base."""
        return [reader for reader in self._readers if reader is not None]

    def place(self, sharding: Sharding) -> None:
        """Lay the models over the ranks as the policy is."""
        self._sharding = sharding
        self._readers = [None if m is None else sharding.place(Reader(m)) for m in self.models]

    def each(self, policy: Any, policy_reader: Asking, policy_backbone: Backbone) -> Iterator[tuple[Asking, Backbone]]:
        """Reader and backbone of every reference in turn, ready to be run."""
        for reader, backbone in zip(self._readers, self._backbones, strict=True):
            if reader is not None and backbone is not None:
                yield reader, backbone
            elif hasattr(policy, "disable_adapter"):
                with policy.disable_adapter():
                    yield policy_reader, policy_backbone
            else:
                raise TrainingError("the base of an adapter is asked for as reference, but the policy has no adapter")

    @torch.no_grad()
    def refresh(self, policy: Movable, decay: float) -> None:
        """The first reference becomes decay x itself + (1 - decay) x the policy (2404.10719; decay 0 copies it)."""
        first = self.first()
        parameters = list(first.parameters())
        if self.average is None:
            self.average = [self._sharding.master(p) for p in parameters]
        for mean, own, parameter in zip(self.average, policy.parameters, parameters, strict=True):
            mean.mul_(decay).add_(own.detach().to(mean), alpha=1 - decay)
            self._sharding.write(parameter, mean)

    @torch.no_grad()
    def carry_on(self, policy: Movable, momentum: float) -> None:
        """The policy becomes itself + momentum x (itself - what it was here the last time, before it went on), and the
        first reference becomes that (2410.06293, in the space of parameters).
        """
        before = self.learnt or [self._sharding.master(p) for p in self.first().parameters()]
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

    def state(self) -> dict[str, Tensor]:
        """What has moved, by kind and parameter: `average/NAME`, `learnt/NAME`."""
        out: dict[str, Tensor] = {}
        for kind, tensors in (("average", self.average), ("learnt", self.learnt)):
            if tensors is not None:
                names = [name for name, _ in self.first().named_parameters()]
                out |= {f"{kind}/{name}": tensor for name, tensor in zip(names, tensors, strict=True)}
        return out

    def room(self, names: Sequence[str]) -> dict[str, Tensor]:
        """Memory for a state of these names, laid out as this rank holds it."""
        if not names:
            return {}
        parameters = dict(self.first().named_parameters())
        return {name: self._sharding.master(parameters[name.partition("/")[2]]) for name in names}

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a saved state."""
        parameters = list(self.first().named_parameters())
        self.average = [state[f"average/{name}"] for name, _ in parameters]
        if f"learnt/{parameters[0][0]}" in state:
            self.learnt = [state[f"learnt/{name}"] for name, _ in parameters]
        for mean, (_, parameter) in zip(self.average, parameters, strict=True):
            self._sharding.write(parameter, mean)
