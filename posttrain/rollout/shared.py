"""Engines and a grader on several ranks, seen from each as one."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import cast

from torch import Tensor

from posttrain.errors import SyncError
from posttrain.rollout import Adaptable, Fillable, Parts, Piece, Request, Sampler
from posttrain.rollout.collect import Grades, Groups, Told
from posttrain.rollout.intake import refusal
from posttrain.types import Rollout, Sampling, Verdict
from posttrain.world import World


class SharedSampler:
    """Implements `Sampler` over one engine for every `span` ranks, which lie side by side: each engine draws a share of
    the responses, and every rank knows them all.
    """

    def __init__(self, own: Sampler, world: World, span: int = 1) -> None:
        self.own, self.world, self.span = own, world, span
        self._failed = False

    @property
    def version(self) -> int | None:
        return None if self._failed else self.own.version

    @property
    def parts(self) -> Parts | None:
        return getattr(self.own, "parts", None)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Rollout]:
        refusal(self.version)
        engines = self.world.size // self.span
        first, last = share(len(requests), self.world.rank // self.span, engines)
        drawn = self.own.generate(requests[first:last], sampling) if first < last else []
        # All ranks of one engine have drawn the same.
        return list(chain.from_iterable(self.world.gather(drawn)[:: self.span]))

    def load(self, weights: Iterator[tuple[str, Tensor]], version: int) -> None:
        self._failed = True
        self.own.load(weights, version)
        self._failed = False

    def fill(self, pieces: Iterator[Piece], version: int) -> None:
        self._failed, reason = True, None
        try:
            cast(Fillable, self.own).fill(pieces, version)
        except SyncError as error:
            reason = str(error)
            # What the other ranks wait for is sent all the same: they are to hear the reason, not to hang.
            deque(pieces, maxlen=0)
        told = self.world.gather(reason)
        wrong = [f"rank {rank}: {each}" for rank, each in enumerate(told) if each is not None]
        if wrong:
            raise SyncError("; ".join(wrong))
        self._failed = False

    @property
    def unadapted(self) -> str | None:
        return getattr(self.own, "unadapted", "the engine takes whole weights")

    @property
    def based(self) -> bool:
        return cast(Adaptable, self.own).based

    def hold(self, base: Iterator[tuple[str, Tensor]]) -> None:
        self._failed = True
        cast(Adaptable, self.own).hold(base)

    def attach(self, adapter: Iterator[tuple[str, Tensor]], version: int) -> None:
        self._failed = True
        cast(Adaptable, self.own).attach(adapter, version)
        self._failed = False

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
