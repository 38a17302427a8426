"""Roll-outs as a reward model reads them, and its loss on what it said of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from posttrain.algorithms.bound import formula
from posttrain.algorithms.row import Algorithm
from posttrain.metrics import Report
from posttrain.objectives import values
from posttrain.types import Batch, Group, Sample, Scored


def label(algorithm: Algorithm, groups: Sequence[Group]) -> tuple[list[Sample], Report]:
    """Groups to Samples whose mask is where the model is read: the last token that was said, or the last of each step,
    whose labels are the sample's `returns`; every token that was said where the row learns from states.

    A response without a score is left out, and a group with too few others; both are counted.
    """
    samples, report = [], Report()
    for index, group in enumerate(groups):
        graded = [i for i, verdict in enumerate(group.verdicts) if verdict.score is not None]
        report += Report.mean("learn/ungraded_fraction", len(group.verdicts) - len(graded), len(group.verdicts))
        enough = len(graded) >= algorithm.needs.min_group
        report += Report.mean("learn/unusable_groups", float(not enough), 1)
        samples += [_sample(algorithm, group, index, i) for i in graded] if enough else []
    return samples, report


def _sample(algorithm: Algorithm, group: Group, index: int, i: int) -> Sample:
    rollout, verdict = group.rollouts[i], group.verdicts[i]
    assert verdict.score is not None
    said = torch.tensor(rollout.mask).nonzero()[:, 0]
    mask, labels = torch.zeros(len(rollout.tokens), dtype=torch.bool), None
    if algorithm.needs.steps:
        labels = torch.zeros(len(rollout.tokens), dtype=torch.float64)
        at = said[[at for at, _ in verdict.steps]]
        mask[at] = True
        labels[at] = torch.tensor([value for _, value in verdict.steps], dtype=torch.float64)
    else:
        mask[said if algorithm.needs.states else said[-1:]] = True
    zeros = torch.zeros(len(rollout.tokens), dtype=torch.float64)
    return Sample(rollout, index, mask, zeros, score=verdict.score, offset=verdict.offset, returns=labels)


def scorer_loss(algorithm: Algorithm, scored: Scored, batch: Batch) -> tuple[Tensor, Report]:
    """What a reward model said of a Batch, `scored.values [N, B]`, to the loss `[]` and what to report of it."""
    assert scored.values is not None
    if algorithm.objective.entry.level == "scorer_token":
        assert batch.returns is not None
        losses = formula(algorithm.objective)(scored.values, batch.returns)
        loss = formula(algorithm.reduction)(
            losses, batch.mask, batch.segment, batch.total_tokens, batch.total_sequences
        )
        said = scored.values.detach()[batch.mask].mean(-1)
        right = ((said > 0) == (batch.returns[batch.mask] >= 0.5)).double()
        return loss, Report.mean("learn/step_accuracy", float(right.sum()), len(right))
    # In the order of the update's samples: of equals the first counts, whatever the packing made of their order.
    order = batch.index.argsort()
    outputs, scores, groups = last_outputs(scored.values, batch)[order], batch.scores[order], batch.groups[order]
    more = {"offsets": batch.offsets[order]} if "offsets" in algorithm.objective.entry.takes else {}
    losses = formula(algorithm.objective)(outputs, scores, groups, **more)
    loss = formula(algorithm.reduction)(losses, batch.total_groups)
    if algorithm.contrast.kind != "none":
        assert scored.states is not None
        segment = order.argsort()[batch.segment]
        losses = formula(algorithm.contrast)(scored.states, segment, batch.mask, scores, groups)
        loss = loss + algorithm.contrast["contrast_coefficient"] * formula(algorithm.reduction)(
            losses, batch.total_groups
        )
    return loss, _about(algorithm, outputs.detach(), scores, groups)


def last_outputs(outputs: Tensor, batch: Batch) -> Tensor:
    """`[N, B]` to `[S, B]`: what was said after each sequence's last masked token."""
    at = batch.mask.nonzero()[:, 0]
    last = torch.zeros(len(batch.lengths), dtype=torch.long).scatter_reduce(0, batch.segment[at], at, "amax")
    return outputs[last]


def read_scores(algorithm: Algorithm, outputs: Tensor) -> Tensor:
    """`[S, B]` outputs to `[S, M]` scores, one for each member of an ensemble."""
    if "value_bins" in algorithm.objective.settings:
        cell = algorithm.objective
        return values.read_hl_gauss(outputs, cell["value_low"], cell["value_high"])[:, None]
    return outputs


def _about(algorithm: Algorithm, outputs: Tensor, worth: Tensor, groups: Tensor) -> Report:
    """How often the better response scores higher, by how much, and where scores lie."""
    scores = read_scores(algorithm, outputs).mean(-1).double()
    report = Report.mean("learn/score", float(scores.sum()), len(scores))
    for name in groups.unique():
        said, due = scores[groups == name], worth[groups == name]
        if len(due) > 1 and bool(due.max() > due.min()):
            margin = float(said[due.argmax()] - said[due.argmin()])
            report += Report.mean("learn/preferred", 1.0 if margin > 0 else 0.5 if margin == 0 else 0.0, 1)
            report += Report.mean("learn/margin", margin, 1)
    return report
