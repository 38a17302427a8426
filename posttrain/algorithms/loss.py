"""A micro-batch's share of the optimiser step's loss: the row's cells composed, and nothing else."""

from __future__ import annotations

import torch
from torch import Tensor

from posttrain.algorithms.bound import formula
from posttrain.algorithms.table import Algorithm
from posttrain.metrics import Report
from posttrain.objectives import penalties
from posttrain.types import Batch


def batch_loss(algorithm: Algorithm, logprobs: Tensor, batch: Batch, max_tokens: int) -> tuple[Tensor, Report]:
    """`[N]` log-probabilities (meaningful where the mask is) and a Batch to the loss `[]` and what to report of it.

    The previous policy is the batch's `previous` log-probabilities, or, where a step has one update, the present ones:
    the ratio is then 1 in value and the policy gradient in its derivative.
    """
    mask, segment = batch.mask, batch.segment
    previous = logprobs.detach() if batch.previous is None else batch.previous
    zero = torch.zeros_like(logprobs)
    log_ratio = formula(algorithm.ratio)(torch.where(mask, logprobs - previous, zero), mask, segment)
    gap = torch.where(mask, previous - batch.behaviour, zero)
    weights = formula(algorithm.correction)(gap)
    loss = weights * formula(algorithm.objective)(log_ratio, batch.advantages)
    report = _about(log_ratio.detach(), gap, weights, mask)
    if algorithm.kl.kind == "in_loss":
        assert batch.reference is not None
        reference = torch.where(mask, batch.reference, zero)
        estimate = getattr(penalties, algorithm.kl["kl_estimator"])(torch.where(mask, logprobs, zero), reference)
        loss = loss + algorithm.kl["kl_coefficient"] * estimate
        report += Report.mean("learn/kl", float((estimate.detach() * mask).sum()), int(mask.sum()))
    reduce = formula(algorithm.reduction, constant_length=max_tokens)
    return reduce(loss, mask, segment, batch.total_tokens, batch.total_sequences), report


def _about(log_ratio: Tensor, gap: Tensor, weights: Tensor, mask: Tensor) -> Report:
    """Ratio, and engine/trainer mismatch, over the masked tokens."""
    count = int(mask.sum())
    if not count:
        return Report()
    ratio, gap, weights = log_ratio[mask].exp(), gap[mask].double(), weights[mask].double()
    return (
        Report.mean("learn/ratio_mean", float(ratio.double().sum()), count)
        + Report.maximum("learn/ratio_max", float(ratio.max()))
        + Report.mean("parity/mean_abs_gap", float(gap.abs().sum()), count)
        + Report.maximum("parity/max_abs_gap", float(gap.abs().max()))
        + Report.mean("learn/correction_mean", float(weights.sum()), count)
    )
