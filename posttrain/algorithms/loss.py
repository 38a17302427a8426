"""A micro-batch's share of the optimiser step's loss: the row's cells composed, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from posttrain.algorithms.bound import formula
from posttrain.algorithms.row import Algorithm
from posttrain.algorithms.set_loss import level, set_loss, shared_out
from posttrain.algorithms.state import Coefficients
from posttrain.metrics import Report
from posttrain.objectives import penalties
from posttrain.objectives.tokens import Tokens
from posttrain.types import Batch, Scored

Reduce = Callable[[Tensor], Tensor]
"""Losses of a Batch to their share of the step's loss `[]`."""


def batch_loss(algorithm: Algorithm, scored: Scored, batch: Batch, coefficients: Coefficients) -> tuple[Tensor, Report]:
    """What the learner said of a Batch to the loss `[]` and what to report of it.

    The previous policy is the batch's `previous` log-probabilities, or, where a step has one update, the present ones:
    the ratio is then 1 in value and the policy gradient in its derivative.
    """
    mask, segment = batch.mask, batch.segment
    logprobs = torch.where(mask, scored.logprobs, torch.zeros_like(scored.logprobs))
    previous = logprobs.detach() if batch.previous is None else batch.previous
    zero = torch.zeros_like(logprobs)
    log_ratio = torch.where(mask, logprobs - _anchor(algorithm, batch, previous, coefficients), zero)
    gap = torch.where(mask, previous - batch.behaviour, zero)
    weights = formula(algorithm.correction)(gap, mask, segment)
    if algorithm.objective.entry.level == "set":
        loss, of_sets = set_loss(algorithm, log_ratio, scored, batch, coefficients)
    else:
        losses = weights * _token_losses(algorithm, log_ratio, logprobs, scored, batch)
        loss = _reduction(algorithm, batch, coefficients)(losses)
        of_sets = Report()
    loss = coefficients.policy * loss
    report = _about(log_ratio.detach(), weights, mask) + of_sets
    for term, about in _penalties(algorithm, scored, batch, coefficients, logprobs - previous):
        loss, report = loss + term, report + about
    return loss, report


def _anchor(algorithm: Algorithm, batch: Batch, previous: Tensor, coefficients: Coefficients) -> Tensor:
    """`[N]` log-probabilities that log-ratios are taken to."""
    if algorithm.anchor.kind == "behaviour":
        return batch.behaviour
    if algorithm.anchor.kind == "none":
        return torch.zeros_like(previous)
    if algorithm.anchor.kind in ("reference", "iterate"):
        assert batch.reference is not None
        return shared_out(batch.reference, coefficients.references)
    return previous


def _token_losses(algorithm: Algorithm, log_ratio: Tensor, logprobs: Tensor, scored: Scored, batch: Batch) -> Tensor:
    """`[N]`: the objective of every token."""
    levelled = level(algorithm, log_ratio, batch)
    objective = formula(algorithm.objective)
    if "tokens" not in algorithm.objective.entry.takes:
        return objective(levelled, batch.advantages)
    uniform = _uniform_after(scored, batch) if algorithm.needs.uniform else None
    ends = None if batch.ends is None else batch.ends.bool()
    return objective(levelled, batch.advantages, Tokens(logprobs, batch.mask, batch.segment, uniform, ends))


def _uniform_after(scored: Scored, batch: Batch) -> Tensor:
    """`[N]`: the log-ratio averaged over the vocabulary at the next masked token's state, 0 where there is none."""
    assert scored.uniform is not None
    out = torch.zeros_like(scored.uniform)
    if batch.uniform is None:
        return out
    said = batch.mask.nonzero()[:, 0]
    here, after = said[:-1], said[1:]
    same = batch.segment[here] == batch.segment[after]
    out[here[same]] = (scored.uniform - batch.uniform).detach()[after[same]]
    return out


def _reduction(algorithm: Algorithm, batch: Batch, coefficients: Coefficients) -> Reduce:
    """The row's reduction with the step's denominators in it."""
    reduce = formula(algorithm.reduction, constant_length=coefficients.constant_length)
    return lambda loss: reduce(loss, batch.mask, batch.segment, batch.total_tokens, batch.total_sequences)


def _penalties(
    algorithm: Algorithm, scored: Scored, batch: Batch, coefficients: Coefficients, from_previous: Tensor
) -> Iterator[tuple[Tensor, Report]]:
    """(term, report) of each penalty the row has. Penalties are means over tokens where the objective is a set's."""
    mask, count = batch.mask, int(batch.mask.sum())
    sets = algorithm.objective.entry.level == "set"
    reduce = _token_mean(batch) if sets else _reduction(algorithm, batch, coefficients)
    if algorithm.kl.kind == "in_loss":
        estimate = _kl(algorithm, scored, batch, coefficients)
        yield (
            coefficients.policy * coefficients.kl * reduce(estimate),
            Report.mean("learn/kl", float((estimate.detach() * mask).sum()), count),
        )
    if algorithm.entropy.kind != "none":
        yield -coefficients.policy * coefficients.entropy * reduce(scored.entropy), Report()
    if algorithm.trust.kind in ("penalty", "fixup"):
        apart = torch.where(mask, from_previous, torch.zeros_like(from_previous))
        yield coefficients.trust * reduce(apart.exp() - 1 - apart), Report()
    if scored.values is not None and batch.returns is not None:
        error = formula(algorithm.critic)(scored.values, batch.returns, batch.values)
        term = algorithm.critic["value_coefficient"] * _token_mean(batch)(error)
        yield term, Report.mean("learn/value_loss", float((error.detach() * mask).sum()), count)


def _token_mean(batch: Batch) -> Reduce:
    return lambda loss: (loss * batch.mask.to(loss.dtype)).sum() / max(batch.total_tokens, 1)


def _kl(algorithm: Algorithm, scored: Scored, batch: Batch, coefficients: Coefficients) -> Tensor:
    """`[N]`: the row's estimate of KL(policy || reference), the references by their shares."""
    if algorithm.kl["kl_estimator"] == "exact":
        assert scored.kl is not None
        return shared_out(scored.kl, coefficients.references)
    assert batch.reference is not None
    zero = torch.zeros((), dtype=scored.logprobs.dtype, device=scored.logprobs.device)
    policy = torch.where(batch.mask, scored.logprobs, zero)[:, None]
    reference = torch.where(batch.mask[:, None], batch.reference, zero)
    estimate = getattr(penalties, algorithm.kl["kl_estimator"])(policy, reference)
    return shared_out(estimate, coefficients.references)


def _about(log_ratio: Tensor, weights: Tensor, mask: Tensor) -> Report:
    """Ratios and importance weights over the masked tokens."""
    count = int(mask.sum())
    if not count:
        return Report()
    ratio, weights = log_ratio[mask].exp(), weights[mask].double()
    return (
        Report.mean("learn/ratio_mean", float(ratio.double().sum()), count)
        + Report.maximum("learn/ratio_max", float(ratio.max()))
        + Report.mean("learn/correction_mean", float(weights.sum()), count)
        + Report.mean("learn/correction_masked", float((weights == 0).sum()), count)
    )
