"""Per-token losses as functions of the log-ratio to the previous policy and the advantage, and the ratio's level."""

import torch
from torch import Tensor

from posttrain.objectives.reductions import per_segment


def token(log_ratio: Tensor, mask: Tensor, segment: Tensor) -> Tensor:
    """`[N]` to `[N]`: every token keeps its own log-ratio."""
    return log_ratio


def sequence(log_ratio: Tensor, mask: Tensor, segment: Tensor) -> Tensor:
    """`[N]` to `[N]`: every token carries the mean log-ratio of its sequence (GSPO, 2507.18071, eq. 7)."""
    total, count = per_segment(log_ratio, mask, segment)
    return (total / count.clamp(min=1))[segment]


def reinforce(log_ratio: Tensor, advantages: Tensor) -> Tensor:
    """`[N]`: -A, with the gradient -A grad log pi, whatever the ratio's value (Williams 1992)."""
    return -(log_ratio - log_ratio.detach()).exp() * advantages


def clip(log_ratio: Tensor, advantages: Tensor, clip_low: float = 0.2, clip_high: float = 0.2) -> Tensor:
    """`[N]`: -min(ratio A, clip(ratio, 1 - low, 1 + high) A) (PPO, 1707.06347; unequal bounds: DAPO, 2503.14476)."""
    ratio = log_ratio.exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)
