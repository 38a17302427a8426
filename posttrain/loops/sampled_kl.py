"""KL(policy || reference) on the policy's own responses, beside a loss of given ones (HyPO, 2406.01462)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from posttrain.algorithms.row import row
from posttrain.algorithms.set_loss import shared_out
from posttrain.algorithms.state import Coefficients
from posttrain.data.packing import pack
from posttrain.hybrid import Hybrid
from posttrain.learner import Learner
from posttrain.metrics import Report
from posttrain.rollout.collect import Draw, Ungraded, draw_groups
from posttrain.types import Group, Rollout, Sample

SCORE_FUNCTION = row(
    "sampled_kl", "2406.01462", credit="score", objective="reinforce", correction="none", reduction="sequence_sum"
)
"""A policy gradient whose reward is minus the log-ratio to the reference: in expectation the gradient of the KL."""


class SampledKl:
    """Adds coefficient x E[log pi - log ref] over responses drawn anew each step, with leave-one-out baselines where a
    prompt has several.
    """

    def __init__(self, engine: Hybrid, draw: Draw, coefficient: float, references: Sequence[float]) -> None:
        self.engine, self.settings, self.coefficient = engine, draw, coefficient
        self.references = references
        self.rollouts: list[list[Rollout]] = []

    def draw(self, groups: Sequence[Group], step: int) -> Report:
        """Respond to the prompts of a step's groups, under the present weights."""
        with self.engine.generating() as sampler:
            prompts = [group.prompt for group in groups]
            found, report = draw_groups(sampler, prompts, Ungraded(), self.settings, ("sampled_kl", step))
        self.rollouts = [list(group.rollouts) for group in found]
        spent = {name: e for name, e in report.entries.items() if name.startswith("rollout/")}
        return Report(spent)

    def accumulate(self, learner: Learner, step: int) -> Report:
        flat = [r for group in self.rollouts for r in group]
        own, other = learner.logprobs(flat), learner.logprobs(flat, "reference")
        sums = [
            float((p.double() - shared_out(q.double(), self.references))[torch.tensor(r.mask)].sum())
            for p, q, r in zip(own, other, flat, strict=True)
        ]
        samples, at = [], 0
        for index, group in enumerate(self.rollouts):
            rewards = [-kl for kl in sums[at : at + len(group)]]
            for k, rollout in enumerate(group):
                others = rewards[:k] + rewards[k + 1 :]
                advantage = rewards[k] - (sum(others) / len(others) if others else 0.0)
                mask = torch.tensor(rollout.mask)
                samples.append(Sample(rollout, index, mask, self.coefficient * advantage * mask.double()))
            at += len(group)
        batches = list(pack(samples, learner.packing))
        learner.accumulate(batches, SCORE_FUNCTION, Coefficients(constant_length=1))
        return Report.mean("learn/sampled_kl", sum(sums), len(sums))
