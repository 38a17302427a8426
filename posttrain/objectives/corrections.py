"""Weights for the gap between the engine that sampled and the trainer that learns.

`gap [N]` is trainer minus engine log-probability of each token; the ratio is exp(gap). Weights `[N]` are never
differentiated, and what the gap is outside the mask has no influence. A gap that is not a number gives a weight that
is not a number, so that a mask cannot hide it.
"""

import torch
from torch import Tensor

from posttrain.objectives.reductions import per_segment


def none(gap: Tensor, mask: Tensor, segment: Tensor) -> Tensor:
    """`[N]` ones: trust the engine."""
    return torch.ones_like(gap)


def truncated_importance(gap: Tensor, mask: Tensor, segment: Tensor, importance_cap: float = 2.0) -> Tensor:
    """`[N]`: min(ratio, cap) of each token.

    Truncated importance sampling between the sampling and the learning engine (IMPALA's truncation, 1802.01561, with
    the engine's distribution as behaviour policy).
    """
    return _token_ratio(gap, mask).clamp(max=importance_cap)


def masked_importance(gap: Tensor, mask: Tensor, segment: Tensor, importance_cap: float = 2.0) -> Tensor:
    """`[N]`: the ratio of each token, 0 where it is greater than the cap."""
    ratio = _token_ratio(gap, mask)
    return ratio.masked_fill(ratio > importance_cap, 0.0)


def two_sided_mask(
    gap: Tensor, mask: Tensor, segment: Tensor, importance_low: float = 0.5, importance_high: float = 5.0
) -> Tensor:
    """`[N]`: the ratio of each token inside [low, high], 0 outside (IcePop, 2510.18855)."""
    ratio = _token_ratio(gap, mask)
    return ratio.masked_fill((ratio < importance_low) | (ratio > importance_high), 0.0)


def sequence_truncated(gap: Tensor, mask: Tensor, segment: Tensor, importance_cap: float = 2.0) -> Tensor:
    """`[N]`: min(product of the sequence's ratios, cap), the same for each of its tokens."""
    return _sequence_ratio(gap, mask, segment).clamp(max=importance_cap)


def sequence_masked(gap: Tensor, mask: Tensor, segment: Tensor, importance_cap: float = 2.0) -> Tensor:
    """`[N]`: the product of the sequence's ratios, 0 for every token where it is greater than the cap."""
    ratio = _sequence_ratio(gap, mask, segment)
    return ratio.masked_fill(ratio > importance_cap, 0.0)


def geometric_mask(
    gap: Tensor, mask: Tensor, segment: Tensor, geometric_low: float = 0.99, geometric_high: float = 1.01
) -> Tensor:
    """`[N]`: 1 where the geometric mean of the sequence's ratios is inside [low, high], else 0.

    It chooses sequences and weighs none, so it does not make the estimate unbiased. Unlike the product, the mean does
    not grow with length. A sequence without masked tokens has the mean 1.
    """
    total, count = _per_sequence(gap, mask, segment)
    mean = (total / count.clamp(min=1)).exp()[segment]
    weights = torch.ones_like(mean).masked_fill((mean < geometric_low) | (mean > geometric_high), 0.0)
    return weights.masked_fill(mean.isnan(), torch.nan)


def effective_sample_size(weights: Tensor) -> Tensor:
    """`[M]` to `[]`: (sum w)^2 / (M sum w^2), between 1/M (one weight is all) and 1 (all equal); 0 if all are 0."""
    square = weights.square().sum() * len(weights)
    return torch.where(square == 0, torch.zeros_like(square), weights.sum().square() / square)


def _token_ratio(gap: Tensor, mask: Tensor) -> Tensor:
    return gap.detach().masked_fill(~mask, 0.0).exp()


def _sequence_ratio(gap: Tensor, mask: Tensor, segment: Tensor) -> Tensor:
    return _per_sequence(gap, mask, segment)[0].exp()[segment]


def _per_sequence(gap: Tensor, mask: Tensor, segment: Tensor) -> tuple[Tensor, Tensor]:
    return per_segment(gap.detach().masked_fill(~mask, 0.0), mask, segment)
