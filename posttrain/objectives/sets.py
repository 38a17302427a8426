"""How a loss of whole groups walks over them, and what it may know of a response beside its log-ratio and its score."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Sequences(NamedTuple):
    """The responses of an update, one number each.

    `logprobs [S]` are sums of the policy's log-probabilities over what it said, with gradient; `lengths [S]` count
    these tokens. `author [S]` (long) says who said it: 0 the policy, 1 the data, 2 an opponent. `baseline []` is a
    log-ratio that the run measured before the update, without gradient: a reference point for theirs. `values [S]` are
    the critic's of the state before a response, with gradient; None without a critic.
    """

    logprobs: Tensor
    lengths: Tensor
    author: Tensor
    baseline: Tensor
    values: Tensor | None = None


POLICY, DATA, OPPONENT = 0, 1, 2
"""Authors of a response."""


def each(loss: Callable[..., Tensor], groups: Tensor, *members: Tensor, least: int = 2) -> Tensor:
    """`[S]` groups and `[S, ...]` members to `[K]`: `loss(*members of one group) -> []` of every distinct group, in
    ascending order of its name. A group of fewer than `least` has nothing to compare: loss 0, gradient 0.
    """
    losses: list[Tensor] = []
    for name in groups.unique():
        member = groups == name
        # The empty sum is a 0 that is still part of the graph: backward works on a batch of groups of one.
        alone = int(member.sum()) < least
        losses.append(members[0][:0].sum() if alone else loss(*(m[member] for m in members)))
    return torch.stack(losses) if losses else members[0].flatten()[:0]


def best_worst(values: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
    """`[G]` twice to `[]` twice: the values of the best and of the worst response; of several the first counts."""
    return values[scores.argmax()], values[scores.argmin()]


def decided(loss: Tensor, scores: Tensor) -> Tensor:
    """`[]`: the loss where a best and a worst exist, 0 where all scores are equal."""
    return torch.where(scores.max() > scores.min(), loss, torch.zeros_like(loss))
