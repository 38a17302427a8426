"""From the scores of one group to what each response was worth against the others."""

import torch
from torch import Tensor


def group_mean(scores: Tensor) -> Tensor:
    """`[G]` scores to `[G]` advantages: r - mean(r) (Dr. GRPO, 2503.20783). Equal scores give exactly 0."""
    if bool((scores == scores[0]).all()):
        return torch.zeros_like(scores)
    return scores - scores.mean()


def group_norm(scores: Tensor, std_floor: float = 1e-6) -> Tensor:
    """`[G]` scores to `[G]` advantages: (r - mean(r)) / std(r) (GRPO, 2402.03300).

    The standard deviation is the population's, so that |A| <= sqrt(G - 1). Scores that differ by less than
    `std_floor` of their own size are noise of the arithmetic and give 0 instead of a division by almost nothing.
    """
    centred = group_mean(scores)
    std = centred.square().mean().sqrt()
    if bool(std <= std_floor * scores.abs().max()):
        return torch.zeros_like(scores)
    return centred / std


def leave_one_out(scores: Tensor) -> Tensor:
    """`[G]` scores to `[G]` advantages: r minus the mean of the others (RLOO, 2402.14740). Needs G >= 2."""
    return group_mean(scores) * len(scores) / (len(scores) - 1)
