"""The loss of groups whose responses are compared as whole sequences, and what such comparisons say of the policy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from posttrain.algorithms.bound import formula
from posttrain.algorithms.row import Algorithm
from posttrain.algorithms.state import Coefficients
from posttrain.metrics import Report
from posttrain.objectives.reductions import per_segment
from posttrain.objectives.sets import Sequences, each
from posttrain.types import Batch, Scored


def shared_out(values: Tensor, shares: Sequence[float]) -> Tensor:
    """`[T, R]` numbers of R references to `[T]`, each by its share."""
    return values @ torch.tensor(shares, dtype=values.dtype, device=values.device)


def level(algorithm: Algorithm, log_ratio: Tensor, batch: Batch) -> Tensor:
    """`[N]` log-ratios to `[N]`, at the level of the row's ratio cell."""
    more = (batch.groups,) if "groups" in algorithm.ratio.entry.takes else ()
    return formula(algorithm.ratio)(log_ratio, batch.mask, batch.segment, *more)


def per_response(algorithm: Algorithm, log_ratio: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """`[N]` log-ratios to `[S]`, one for each sequence, and `[S]` counts of its masked tokens."""
    total, count = per_segment(level(algorithm, log_ratio, batch), batch.mask, batch.segment)
    return total / count.clamp(min=1), count


def set_loss(
    algorithm: Algorithm, log_ratio: Tensor, scored: Scored, batch: Batch, coefficients: Coefficients
) -> tuple[Tensor, Report]:
    """`[]`: the objective of every group through the row's divergence, weighting and reduction, and its cloning."""
    levelled, count = per_response(algorithm, log_ratio, batch)
    # In the order of the update's samples: of equals the first counts, whatever the packing made of their order.
    order = batch.index.argsort()
    learnt = order[count[order] > 0]
    ratios = formula(algorithm.divergence)(levelled[learnt])
    scores, groups = batch.scores[learnt], batch.groups[learnt]
    logprobs, _ = per_segment(scored.logprobs, batch.mask, batch.segment)
    inputs = []
    if "sequences" in algorithm.objective.entry.takes:
        baseline = torch.as_tensor(coefficients.baseline, dtype=ratios.dtype)
        values = _first_values(scored, batch)
        inputs.append(
            Sequences(
                logprobs[learnt],
                count[learnt],
                batch.author[learnt],
                baseline,
                None if values is None else values[learnt],
            )
        )
    more = {"offsets": batch.offsets[learnt]} if "offsets" in algorithm.objective.entry.takes else {}
    losses = formula(algorithm.objective)(ratios, scores, groups, *inputs, **more)
    if algorithm.weighting.kind != "none":
        losses = losses * formula(algorithm.weighting)(scores, _aligned(scored, batch)[learnt], groups)
    loss = formula(algorithm.reduction)(losses, batch.total_groups)
    if algorithm.cloning.kind != "none":
        loss = loss + algorithm.cloning["cloning_coefficient"] * _cloning(
            logprobs[learnt], count[learnt], scores, groups
        )
    return loss, _about(ratios.detach(), scores, groups)


def _cloning(logprobs: Tensor, counts: Tensor, scores: Tensor, groups: Tensor) -> Tensor:
    """`[]`: negative log-likelihood of the best responses, a mean over all their tokens."""
    pairs = torch.stack([logprobs, counts.to(logprobs.dtype)], dim=-1)
    total = each(lambda lr, s: lr[s.argmax(), 0], groups, pairs, scores, least=1).sum()
    tokens = each(lambda lr, s: lr[s.argmax(), 1], groups, pairs, scores, least=1).sum()
    return -total / tokens.detach().clamp(min=1)


def _first_values(scored: Scored, batch: Batch) -> Tensor | None:
    """`[S]`: the critic's value of the state before each response."""
    if scored.values is None:
        return None
    at = batch.mask.nonzero()[:, 0]
    nowhere = torch.full((len(batch.lengths),), len(batch.mask) - 1)
    first = nowhere.scatter_reduce(0, batch.segment[at], at, "amin")
    return scored.values[first, 0]


def _aligned(scored: Scored, batch: Batch) -> Tensor:
    """`[S]`: mean over tokens of log p(token) - log of the probability that two draws are the same token."""
    assert scored.collision is not None
    total, count = per_segment((scored.logprobs - scored.collision).detach(), batch.mask, batch.segment)
    return total / count.clamp(min=1)


def _about(log_ratios: Tensor, scores: Tensor, groups: Tensor) -> Report:
    """How often, and by how much, the better response has the larger log-ratio. Equal log-ratios are half right."""
    report = Report.mean("learn/log_ratio", float(log_ratios.double().sum()), len(log_ratios))
    right = margins = 0.0
    count = 0
    for name in groups.unique():
        member = groups == name
        lr, s = log_ratios[member].double(), scores[member]
        if len(s) > 1 and bool(s.max() > s.min()):
            margin = float(lr[s.argmax()] - lr[s.argmin()])
            right += 1.0 if margin > 0 else 0.5 if margin == 0 else 0.0
            margins, count = margins + margin, count + 1
    if not count:
        return report
    return report + Report.mean("learn/preferred", right, count) + Report.mean("learn/margin", margins, count)
