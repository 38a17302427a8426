"""The level of the log-ratio to the previous policy: `[N]` per token to `[N]` per token.

Only tokens inside the mask count. A sequence without any has the log-ratio 0.
"""

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


def sequence_token(log_ratio: Tensor, mask: Tensor, segment: Tensor) -> Tensor:
    """`[N]` to `[N]`: the value of `sequence`, the gradient of the token's own log-ratio (GSPO-token, 2507.18071).

    sg(mean) + lr - sg(lr). Where all tokens of a sequence have one advantage, the gradient of the whole sequence is
    that of `sequence`; with an advantage per token, each token is moved by its own.
    """
    return sequence(log_ratio, mask, segment).detach() + log_ratio - log_ratio.detach()


def sequence_sum(log_ratio: Tensor, mask: Tensor, segment: Tensor) -> Tensor:
    """`[N]` to `[N]`: every token carries the sum of its sequence, the log-ratio of the response as one action."""
    total, _ = per_segment(log_ratio, mask, segment)
    return total[segment]


def discounted_sum(log_ratio: Tensor, mask: Tensor, segment: Tensor, discount: float = 1.0) -> Tensor:
    """`[N]` to `[N]`: every token carries sum_t discount^t lr_t of its sequence (CPL, 2310.13639).

    t counts the sequence's masked tokens from 0. With discount 1 it is `sequence_sum`.
    """
    weight = torch.pow(discount, _place(mask, segment).to(log_ratio.dtype))
    return sequence_sum(weight * log_ratio, mask, segment)


def desensitised(log_ratio: Tensor, mask: Tensor, segment: Tensor, groups: Tensor, ld_alpha: float = 0.5) -> Tensor:
    """`[N]` to `[N]`: every token carries its sequence's sum, whose tail counts `ld_alpha` (LD-DPO, 2409.06411).

    `groups [S]` names each sequence's group. The tail is what lies beyond as many masked tokens as the group's shortest
    response has; a response that is the shortest has none.
    """
    _, names = groups.unique(return_inverse=True)
    counts = torch.zeros_like(names).scatter_add(0, segment, mask.to(names.dtype))
    shortest = torch.zeros_like(names).scatter_reduce(0, names, counts, "amin", include_self=False)
    tail = _place(mask, segment) >= shortest[names[segment]]
    return sequence_sum(torch.where(tail, ld_alpha * log_ratio, log_ratio), mask, segment)


def _place(mask: Tensor, segment: Tensor) -> Tensor:
    """`[N]` to `[N]` long: how many masked tokens of its sequence stand before a token."""
    order = segment.argsort(stable=True)
    inside = mask[order].long()
    before = inside.cumsum(0) - inside
    # Sorted, a sequence's tokens stand together, in their order; at its first one as many came before it in all.
    first = torch.searchsorted(segment[order], segment[order])
    return torch.empty_like(before).scatter(0, order, before - before[first])
