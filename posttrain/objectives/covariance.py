"""Per-token losses that choose tokens by comparing all those of an update.

The choice is right only if every masked token of the optimiser step is seen at once: the same function on the
micro-batches of a step chooses others. Everything outside the mask is left out of means, counts and choices.
"""

import torch
from torch import Tensor

from posttrain.objectives.surrogates import clip
from posttrain.objectives.tokens import Tokens


def second_moment(log_ratio: Tensor, advantages: Tensor, tokens: Tokens, second_moment_budget: float = 0.04) -> Tensor:
    """`[N]`: -ratio A, without gradient for the tokens that take the second moment over its budget (M2PO, 2510.01161).

    Only tokens that already moved the way A pushes them (A > 0 and ratio > 1, A < 0 and ratio < 1) are counted. Those
    with the largest squared log-ratio are dropped until the mean square of the others is within the budget; within it
    from the start, nothing is dropped. Equal squares go together, so that the order of tokens has no say. The
    authors' code turns the same budget into bounds for PPO's clip; this is the paper's mask.
    """
    square = log_ratio.detach().square()
    outward = tokens.mask & (advantages * log_ratio.detach() > 0)
    ordered = square[outward].sort().values
    mean = ordered.cumsum(0) / torch.arange(1, len(ordered) + 1, device=ordered.device)
    last_of_equals = torch.ones_like(ordered, dtype=torch.bool)
    last_of_equals[:-1] = ordered[1:] > ordered[:-1]
    within = ordered[last_of_equals & (mean <= second_moment_budget)]
    largest = within[-1] if len(within) else torch.full_like(square[:1], -1.0)
    loss = -log_ratio.exp() * advantages
    return torch.where(outward & (square > largest), loss.detach(), loss)


def _covariances(advantages: Tensor, tokens: Tokens) -> Tensor:
    """`[M]` for the M masked tokens in order: (A - mean A)(log pi - mean log pi)."""
    credit, logprobs = advantages[tokens.mask], tokens.logprobs.detach()[tokens.mask]
    return (credit - credit.mean()) * (logprobs - logprobs.mean())


def _share(fraction: float, total: int) -> int:
    """How many of `total` tokens a fraction is; at least one, as in the paper's code."""
    return max(int(fraction * total), 1)


def clip_cov(
    log_ratio: Tensor,
    advantages: Tensor,
    tokens: Tokens,
    cov_low: float = 1.0,
    cov_high: float = 5.0,
    cov_fraction: float = 2e-4,
    clip_range: float = 0.2,
) -> Tensor:
    """`[N]`: PPO's clip, without gradient for a few tokens of high covariance (Clip-Cov, 2505.22617).

    Candidates have (A - mean A)(log pi - mean log pi) strictly between `cov_low` and `cov_high` and are not clipped
    already. The paper takes `cov_fraction` of all masked tokens (at least one) from them at random; here they are
    sorted by covariance and taken at even distances, so that a step can be repeated without a random state. The order
    of tokens decides between equal covariances only.
    """
    loss = clip(log_ratio, advantages, clip_range, clip_range)
    place = tokens.mask.nonzero().squeeze(-1)
    covariance = _covariances(advantages, tokens)
    unclipped = -log_ratio.detach().exp() * advantages >= loss.detach()
    candidates = ((covariance > cov_low) & (covariance < cov_high) & unclipped[place]).nonzero().squeeze(-1)
    chosen = min(_share(cov_fraction, len(place)), len(candidates))
    ranked = candidates[covariance[candidates].sort(stable=True).indices]
    # The middle of each of `chosen` equal stretches.
    even = (2 * torch.arange(chosen, device=place.device) + 1) * len(candidates) // max(2 * chosen, 1)
    stopped = torch.zeros_like(tokens.mask)
    stopped[place[ranked[even]]] = True
    return torch.where(stopped, loss.detach(), loss)


def kl_cov(
    log_ratio: Tensor, advantages: Tensor, tokens: Tokens, cov_fraction: float = 2e-4, cov_penalty: float = 1.0
) -> Tensor:
    """`[N]`: -ratio A, plus penalty x |log-ratio| for the tokens of highest covariance (KL-Cov, 2505.22617).

    `cov_fraction` of all masked tokens (at least one) are chosen. |log-ratio| is what the paper's code uses for the KL
    to the previous policy: not an estimate of it, but a pull towards ratio 1. It has no gradient at ratio 1. The order
    of tokens decides between equal covariances only.
    """
    place = tokens.mask.nonzero().squeeze(-1)
    ranked = _covariances(advantages, tokens).sort(descending=True, stable=True).indices
    penalty = torch.zeros_like(log_ratio)
    penalty[place[ranked[: _share(cov_fraction, len(place))]]] = cov_penalty
    return -log_ratio.exp() * advantages + penalty * log_ratio.abs()
