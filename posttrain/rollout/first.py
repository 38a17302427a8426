"""A sampler that the first rank has, seen from every rank."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from torch import Tensor

from posttrain.metrics import Report
from posttrain.rollout import Request, Sampler
from posttrain.rollout.intake import refusal
from posttrain.types import Rollout, Sampling
from posttrain.world import World


class FirstRankSampler:
    """Implements `Sampler` over engines apart from training: the first rank speaks with them, for all."""

    def __init__(self, own: Sampler | None, world: World) -> None:
        self.own, self.world = own, world
        self.version: int | None = None

    def _first(self) -> Sampler:
        assert self.own is not None
        return self.own

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Rollout]:
        refusal(self.version)
        return self.world.shared(lambda: self._first().generate(requests, sampling))

    def load(self, weights: Iterator[tuple[str, Tensor]], version: int) -> None:
        self.version = None
        if self.own is not None:
            self.own.load(weights, version)
        else:
            # Each tensor is brought together by all ranks.
            deque(weights, maxlen=0)
        self.world.wait()
        self.version = version

    def sleep(self) -> None:
        self.version = self.world.shared(self._slept)

    def _slept(self) -> int | None:
        self._first().sleep()
        return self._first().version

    def wake(self) -> None:
        if self.own is not None:
            self.own.wake()
        self.world.wait()

    def take_report(self) -> Report:
        """Engines lost and started again since this was last asked, on the rank that speaks with them."""
        take = getattr(self.own, "take_report", Report)
        report: Report = take()
        return report
