"""Engines and a grader on several ranks, seen from each as one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from torch import Tensor

from posttrain.rollout import Request, Sampler
from posttrain.rollout.collect import Grades, Groups, Told
from posttrain.types import Rollout, Sampling, Verdict
from posttrain.world import World


class SharedSampler:
    """Implements `Sampler` over one engine for every `span` ranks, which lie side by side: each engine draws a share of
    the responses, and every rank knows them all.
    """

    def __init__(self, own: Sampler, world: World, span: int = 1) -> None:
        self.own, self.world, self.span = own, world, span

    @property
    def version(self) -> int | None:
        return self.own.version

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Rollout]:
        engines = self.world.size // self.span
        first, last = share(len(requests), self.world.rank // self.span, engines)
        drawn = self.own.generate(requests[first:last], sampling) if first < last else []
        # All ranks of one engine have drawn the same.
        return list(chain.from_iterable(self.world.gather(drawn)[:: self.span]))

    def load(self, weights: Iterator[tuple[str, Tensor]], version: int) -> None:
        self.own.load(weights, version)

    def sleep(self) -> None:
        self.own.sleep()

    def wake(self) -> None:
        self.own.wake()


def share(count: int, part: int, parts: int) -> tuple[int, int]:
    """First and last + 1 of a contiguous part, as even as it goes: responses to one prompt mostly stay together."""
    return count * part // parts, count * (part + 1) // parts


class SharedGrader:
    """Grades on the first rank, for all: one pool, one cache, one budget. The other ranks have no grader."""

    def __init__(self, own: Grades | None, world: World) -> None:
        self.own, self.world = own, world

    def grade(self, groups: Groups, told: Told = None) -> list[tuple[Verdict, ...]]:
        def graded() -> list[tuple[Verdict, ...]]:
            assert self.own is not None
            return self.own.grade(groups, told)

        return self.world.shared(graded)
