"""Texts learnt beside the roll-outs: a likelihood term with a schedule, in the same optimiser steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from posttrain.algorithms.row import row
from posttrain.algorithms.state import Coefficients
from posttrain.data.packing import pack
from posttrain.data.stream import PromptStream
from posttrain.learner import Learner
from posttrain.metrics import Report
from posttrain.recipe import Auxiliary as Settings
from posttrain.types import Group, Sample

LIKELIHOOD = row(
    "auxiliary", "2203.02155", credit="ones", objective="likelihood", correction="none", reduction="token_mean"
)
"""Negative log-likelihood, a mean over the tokens of an update's texts."""


class Auxiliary:
    """Adds coefficient x mean negative log-likelihood of some texts to each update (InstructGPT's ptx, 2203.02155)."""

    def __init__(self, groups: Sequence[Group], settings: Settings, seed: int, steps: int) -> None:
        self.settings, self.steps = settings, steps
        self.groups = {group.prompt.id: group for group in groups}
        self.stream = PromptStream([group.prompt for group in groups], seed)

    def coefficient(self, step: int) -> float:
        """The term's weight at a step, from 1."""
        first, last = self.settings.coefficient, self.settings.final_coefficient
        if last is None or self.steps == 1:
            return first
        return first + (last - first) * (step - 1) / (self.steps - 1)

    def accumulate(self, learner: Learner, step: int) -> Report:
        """Add the term's gradient to what the learner has accumulated."""
        weight = self.coefficient(step)
        samples = []
        for index, prompt in enumerate(self.stream.take(self.settings.examples_per_update)):
            rollout = max(
                zip(self.groups[prompt.id].rollouts, self.groups[prompt.id].verdicts, strict=True),
                key=lambda pair: pair[1].score or 0.0,
            )[0]
            mask = torch.tensor(rollout.mask)
            samples.append(Sample(rollout, index, mask, weight * mask.double()))
        batches = list(pack(samples, learner.packing))
        found, _ = learner.accumulate(batches, LIKELIHOOD, Coefficients(constant_length=1))
        values = found.values()
        out = Report.sum("learn/auxiliary_loss", values.get("learn/loss", 0.0))
        return out + Report.value("learn/auxiliary_coefficient", weight)

    def state(self) -> dict[str, Any]:
        """The position, ready for JSON."""
        return self.stream.state()

    def restore(self, state: dict[str, Any]) -> None:
        self.stream.restore(state)
