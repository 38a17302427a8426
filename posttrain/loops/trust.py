"""How far a step's updates may carry the policy: KL(old || new) measured, and what happens beyond its bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from posttrain.algorithms.row import Algorithm
from posttrain.algorithms.state import Coefficients
from posttrain.data.packing import pack
from posttrain.learner import Learner
from posttrain.metrics import Report
from posttrain.objectives.penalties import k3
from posttrain.types import Sample

Seen = Sequence[tuple[Sample, Tensor]]
"""Samples with `[T]` log-probabilities under some weights."""


class TrustRegion:
    """The row's `trust` cell over the updates of one step. KL(old || new) is the mean over tokens of r - 1 - log r,
    unbiased and never negative, r the ratio of new to old (TRPO, 1502.05477, with the bound measured, not modelled).
    """

    def __init__(self, learner: Learner, algorithm: Algorithm, coefficients: Coefficients) -> None:
        self.learner, self.algorithm, self.coefficients = learner, algorithm, coefficients
        self.kind = algorithm.trust.kind
        self.bound = algorithm.trust.settings.get("max_kl", float("inf"))

    def allows(self, present: Seen) -> bool:
        """Whether a further update may be taken: under `stop`, not beyond the bound; its gradient is dropped then."""
        if self.kind != "stop" or divergence([(s, now, _old(s, now)) for s, now in present]) <= self.bound:
            return True
        self.learner.discard()
        return False

    def step(self, moves: bool, present: Seen) -> tuple[bool, Report]:
        """Take the accumulated update; under `rollback`, take it back where it went beyond the bound (False then)."""
        if self.kind != "rollback" or not moves:
            return True, self.learner.step(policy=moves)
        before = self.learner.snapshot()
        report = self.learner.step()
        found = self._measured([(s, _old(s, now)) for s, now in present])
        if found <= self.bound:
            return True, report
        self.learner.roll_back(before)
        return False, report + Report.sum("learn/rolled_back_updates", 1) + Report.maximum(
            "learn/rolled_back_kl", found
        )

    def close(self, first: Seen) -> Report:
        """After the step's last update: measure, and under `fixup` come back below the bound by steps on KL alone.

        `first` are the log-probabilities of each sample's first update.
        """
        if self.kind == "none" or not first:
            return Report()
        old = [(s, _old(s, now)) for s, now in first]
        found, report = self._measured(old), Report()
        if self.kind == "fixup":
            samples = [replace(s, previous=before) for s, before in old]
            only = replace(self.coefficients, policy=0.0, trust=1.0)
            # The value function has learnt from this step already.
            plain = [replace(s, returns=None, values=None) for s in samples]
            for _ in range(int(self.algorithm.trust["fixup_steps"])):
                if found <= self.bound:
                    break
                self.learner.accumulate(list(pack(plain, self.learner.packing)), self.algorithm, only)
                self.learner.step()
                report += Report.sum("learn/fixup_steps", 1)
                found = self._measured(old)
        return report + Report.value("learn/kl_old_new", found)

    def _measured(self, old: Seen) -> float:
        """KL(old || new) under the learner's present weights."""
        now = self.learner.logprobs([s.rollout for s, _ in old])
        return divergence([(s, new, before) for (s, before), new in zip(old, now, strict=True)])


def _old(sample: Sample, first: Tensor) -> Tensor:
    """Where a step has one update, the log-probabilities its loss was made of are those from before it."""
    return first if sample.previous is None else sample.previous


def divergence(seen: Sequence[tuple[Any, Tensor, Tensor]]) -> float:
    """Mean over learnt tokens of KL(old || new), from (sample, new, old) log-probabilities."""
    apart = [k3(old.double(), new.double())[s.mask] for s, new, old in seen]
    flat = torch.cat(apart) if apart else torch.zeros(0)
    return float(flat.mean()) if len(flat) else 0.0
