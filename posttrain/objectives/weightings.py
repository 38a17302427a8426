"""How much a group's loss counts: `[S]` scores, `[S]` alignments and `[S]` groups to `[K]` weights without gradient.

`aligned` is a response's mean over tokens of log p(token) - log sum_v p(v)^2: how likely the policy is to say it
itself, 0 where it draws each token uniformly from a few. One weight per distinct group, in ascending order of its name.
"""

import torch
from torch import Tensor

from posttrain.objectives.preferences import pairs


def none(scores: Tensor, aligned: Tensor, groups: Tensor) -> Tensor:
    """`[S]` three times to `[K]`: every group weighs the same."""
    return torch.ones(len(groups.unique()), dtype=aligned.dtype, device=aligned.device)


def policy_probability(scores: Tensor, aligned: Tensor, groups: Tensor) -> Tensor:
    """`[S]` three times to `[K]`: exp(aligned_best + aligned_worst) (WPO, 2406.11827, its sampled alignment).

    Pairs that the policy could have said itself count most. A group without a best and a worst response weighs 1.
    """
    pair = pairs(scores, groups)
    best, worst = pair.of(aligned.detach())
    return torch.where(pair.decided, (best + worst).exp(), torch.ones_like(best))
