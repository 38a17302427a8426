"""What a step's passes cost: seconds of each kind, and the token positions that were computed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from posttrain.algorithms.row import Algorithm
from posttrain.algorithms.state import Coefficients
from posttrain.data.positions import count
from posttrain.learner import Learner, Policy
from posttrain.metrics import Report
from posttrain.types import Batch, Rollout, Sample

Read = Callable[[Sequence[Rollout]], list[Tensor]]


class Stopwatch:
    """A learner whose passes are timed; everything else is the learner's own. `report` has what they took.

    pass: forward and backward; optimizer: optimiser steps; reading, reference and values: log-probabilities of the
    policy and of references, and a critic's outputs, without gradient.
    """

    def __init__(self, learner: Learner) -> None:
        self._learner = learner
        self._skips = bool(getattr(getattr(learner, "computation", None), "skips", False))
        self.report = Report.sum("learn/pass_seconds", 0.0) + Report.sum("learn/optimizer_seconds", 0.0)

    @classmethod
    def around(cls, learner: Learner) -> tuple[Learner, Stopwatch]:
        """The learner to use, and where to read what it took."""
        watch = cls(learner)
        return cast(Learner, watch), watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._learner, name)

    def logprobs(self, rollouts: Sequence[Rollout], policy: Policy = "policy") -> list[Tensor]:
        kind = "reading" if policy == "policy" else "reference"
        return self._read(kind, rollouts, partial(self._learner.logprobs, policy=policy))

    def uniform(self, rollouts: Sequence[Rollout]) -> list[Tensor]:
        return self._read("reading", rollouts, self._learner.uniform)

    def values(self, rollouts: Sequence[Rollout]) -> list[Tensor]:
        return self._read("values", rollouts, self._learner.values)

    def accumulate(
        self, batches: Sequence[Batch], algorithm: Algorithm, coefficients: Coefficients
    ) -> tuple[Report, list[Tensor]]:
        found = count(batches, self._learner.packing, int(algorithm.needs.scorer))
        # An objective of the whole update sees all of it before its slopes are known, where it is cut.
        twice = algorithm.whole and len(batches) > 1
        numbers = {f"work/{name}": value for name, value in vars(found).items()}
        numbers["work/first_pass"] = found.computed if twice else 0
        read = [] if twice else self._read_only(batches, algorithm)
        numbers["work/silent_computed"] = count(read, self._learner.packing, int(algorithm.needs.scorer)).computed
        self.report += sum((Report.sum(name, value) for name, value in numbers.items()), Report())
        with self._timed("pass"):
            return self._learner.accumulate(batches, algorithm, coefficients)

    def _read_only(self, batches: Sequence[Batch], algorithm: Algorithm) -> list[Batch]:
        """The micro-batches that the learner reads without a backward pass. Of a loss of the whole update, which
        computes no such one a second time, that is not known before its slopes are.
        """
        if not self._skips or not algorithm.silent_at_zero:
            return []
        learns = [bool(batch.advantages[batch.mask].any()) for batch in batches]
        if not any(learns):
            # One at least has a backward pass, for the optimiser's sake.
            learns[:1] = [True]
        return [batch for batch, learnt in zip(batches, learns, strict=True) if not learnt]

    def step(self, policy: bool = True) -> Report:
        with self._timed("optimizer"):
            return self._learner.step(policy)

    def _read(self, kind: str, rollouts: Sequence[Rollout], read: Read) -> list[Tensor]:
        self.report += Report.sum(f"work/{kind}_tokens", sum(len(r.tokens) for r in rollouts))
        with self._timed(kind):
            return read(rollouts)

    @contextmanager
    def _timed(self, kind: str) -> Iterator[None]:
        started = _now()
        yield
        self.report += Report.sum(f"learn/{kind}_seconds", _now() - started)


def _now() -> float:
    """Seconds, all kernels that were started being over: those of a backward pass are no optimiser step's."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


def untaught(algorithm: Algorithm, samples: Sequence[Sample]) -> Report:
    """How many of a step's samples have something to learn from, and how many of these an advantage of 0 at every
    token, where that leaves no gradient: nothing of rows that learn by other terms too.
    """
    if not algorithm.silent_at_zero:
        return Report()
    learnt = [s for s in samples if bool(s.mask.any())]
    silent = sum(not bool(s.advantages[s.mask].any()) for s in learnt)
    return Report.sum("work/samples", len(learnt)) + Report.sum("work/silent_samples", silent)
