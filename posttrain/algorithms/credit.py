"""Groups to Samples: who gets how much credit, token by token."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from posttrain.algorithms.bound import formula
from posttrain.algorithms.table import Algorithm
from posttrain.metrics import Report
from posttrain.objectives import penalties
from posttrain.types import Annotation, Group, Rollout, Sample


def informative(algorithm: Algorithm, group: Group) -> bool:
    """Whether a group can teach: enough graded responses, and, under dynamic selection, not all of one score."""
    scores = [v.score for v in group.verdicts if v.score is not None]
    if len(scores) < algorithm.needs.min_group:
        return False
    return algorithm.selection.kind != "dynamic" or len(set(scores)) > 1


def assign_credit(
    algorithm: Algorithm, groups: Sequence[Group], annotations: Sequence[Annotation], max_tokens: int
) -> tuple[list[Sample], Report]:
    """Groups and what the learner noted about them to Samples with per-token advantages `[T]`.

    A response without a score leaves its group and the group's baseline; a group with fewer graded responses than
    the row compares teaches nothing. Both are counted in the Report.
    """
    credit, report, samples = formula(algorithm.credit), Report(), []
    for index, (group, annotation) in enumerate(zip(groups, annotations, strict=True)):
        graded = [i for i, verdict in enumerate(group.verdicts) if verdict.score is not None]
        report += Report.mean("learn/ungraded_fraction", len(group.verdicts) - len(graded), len(group.verdicts))
        usable = len(graded) >= algorithm.needs.min_group
        report += Report.mean("learn/unusable_groups", float(not usable), 1)
        if not usable:
            continue
        scores = torch.stack([_score(algorithm, group, annotation, i, max_tokens) for i in graded])
        advantages = credit(scores)
        report += Report.mean("learn/zero_advantage_groups", float(not advantages.any()), 1)
        for i, advantage in zip(graded, advantages, strict=True):
            samples.append(_sample(algorithm, group.rollouts[i], index, advantage, annotation, i))
    return samples, report


def _score(algorithm: Algorithm, group: Group, annotation: Annotation, i: int, max_tokens: int) -> Tensor:
    """The verdict's score with what shaping and a KL in the reward add, in float64 so that equal stays equal."""
    rollout, score = group.rollouts[i], group.verdicts[i].score
    assert score is not None
    score += formula(algorithm.shaping)(rollout.length, max_tokens)
    out = torch.tensor(score, dtype=torch.float64)
    if algorithm.kl.kind == "in_reward":
        assert annotation.reference is not None
        assert rollout.logprobs is not None
        policy = torch.tensor(rollout.logprobs) if annotation.previous is None else annotation.previous[i]
        estimate = getattr(penalties, algorithm.kl["kl_estimator"])(policy.double(), annotation.reference[i].double())
        out = out - algorithm.kl["kl_coefficient"] * (estimate * torch.tensor(rollout.mask)).sum()
    return out


def _sample(
    algorithm: Algorithm, rollout: Rollout, group: int, advantage: Tensor, annotation: Annotation, i: int
) -> Sample:
    mask = torch.tensor(rollout.mask)
    if algorithm.truncated.kind == "mask" and rollout.truncated:
        mask = torch.zeros_like(mask)
    return Sample(
        rollout=rollout,
        group=group,
        mask=mask,
        advantages=advantage * mask,
        previous=None if annotation.previous is None else annotation.previous[i],
        reference=None if annotation.reference is None else annotation.reference[i],
    )
