"""Losses of a ranked list: the responses of one group against graded scores, or any scores that order them.

`log_ratios [S]` carry the gradient, `scores [S]` none; `groups [S]` names each response's group. Every function gives
`[K]`, one loss per distinct group in ascending order of its name. A group of one has nothing to compare: loss 0,
gradient 0. All of them only see differences of log-ratios within a group. With two responses the pairwise ones,
`lambda_rank` up to its weight, `list_mle` and a cold `k_way` are DPO or SLiC, and `exo_best` is EXO on a pair.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from posttrain.objectives.sets import decided, each


def pairwise_logistic(log_ratios: Tensor, scores: Tensor, groups: Tensor, contrast_beta: float = 0.1) -> Tensor:
    """`[S]` to `[K]`: mean over the pairs with s_i > s_j of -log sigmoid(beta (lr_i - lr_j)) (LiPO, 2402.01878).

    Equal scores are no pair; where all are equal the loss and its gradient are 0.
    """
    return _pair_mean(lambda gap: -logsigmoid(gap), contrast_beta * log_ratios, scores, groups)


def pairwise_hinge(log_ratios: Tensor, scores: Tensor, groups: Tensor, contrast_beta: float = 0.1) -> Tensor:
    """`[S]` to `[K]`: mean over the pairs with s_i > s_j of max(0, 1 - beta (lr_i - lr_j)) (SLiC over a list,
    2402.01878). Equal scores as above.
    """
    return _pair_mean(lambda gap: torch.relu(1 - gap), contrast_beta * log_ratios, scores, groups)


def lambda_rank(log_ratios: Tensor, scores: Tensor, groups: Tensor, contrast_beta: float = 0.1) -> Tensor:
    """`[S]` to `[K]`: sum over the pairs with s_i > s_j of -w_ij log sigmoid(beta (lr_i - lr_j)) (LiPO-lambda,
    2402.01878).

    w_ij = |G_i - G_j| |1 / D(rank_i) - 1 / D(rank_j)| with gain G = 2^s - 1, discount D = log(1 + rank) and the rank,
    from 1, by log-ratio in the list: what the list's discounted gain would change by if the two swapped their places.
    It carries no gradient. A sum, as in the paper: the weights fall with the rank by themselves, and a mean over the
    pairs would make a pair count less because others of the list are tied.

    Scores are labels of a small range (the paper's are probabilities), since gains are exponential. Of equal
    log-ratios, as all are at a start from the reference, the higher score has the better rank, so the order in a file
    decides nothing. Two responses give DPO times (2^s_1 - 2^s_2) (1 / log 2 - 1 / log 3), which is .53 for scores of 1
    and 0. Equal scores are no pair.
    """

    def loss(lr: Tensor, r: Tensor) -> Tensor:
        better, worse = _ordered(r)
        gain, discount = torch.exp2(r), torch.log1p(_ranks(lr.detach(), r).to(lr.dtype))
        weight = (gain[better] - gain[worse]).abs() * (1 / discount[better] - 1 / discount[worse]).abs()
        return (-weight * logsigmoid(contrast_beta * (lr[better] - lr[worse]))).sum()

    return _each(loss, log_ratios, scores, groups)


def list_mle(log_ratios: Tensor, scores: Tensor, groups: Tensor, contrast_beta: float = 0.1) -> Tensor:
    """`[S]` to `[K]`: minus the log-likelihood of the scores' order under Plackett and Luce (DPO for rankings,
    2305.18290, appendix A.3; PRO, 2306.17492).

    A sum over the list of logsumexp(beta lr_j over i and all below i) - beta lr_i: each response is drawn from what is
    left. Equal scores: neither is drawn against the other, only against what is strictly below both, so the order in a
    file decides nothing and a list of equals has loss 0 and gradient 0. One best and the rest equal is the negative
    log-softmax of the best.
    """

    def loss(lr: Tensor, r: Tensor) -> Tensor:
        left = (r[:, None] > r[None, :]) | torch.eye(len(r), dtype=torch.bool, device=r.device)
        ahead = contrast_beta * (lr[None, :] - lr[:, None])
        return ahead.masked_fill(~left, -math.inf).logsumexp(-1).sum()

    return _each(loss, log_ratios, scores, groups)


def k_way(
    log_ratios: Tensor, scores: Tensor, groups: Tensor, contrast_beta: float = 0.1, target_temperature: float = 1.0
) -> Tensor:
    """`[S]` to `[K]`: cross-entropy -sum p log q of p = softmax(s / temperature) and q = softmax(beta lr) (EDA,
    2407.09024).

    The same formula as the softmax loss of lists (ListNet), and up to p's entropy the forward KL(p, q) whose reverse
    is `exo`. It is least, p's entropy, where beta lr = s / temperature up to a constant: equal scores ask for equal
    log-ratios. Two responses give DPO with label smoothing 1 - sigmoid((s_1 - s_2) / temperature).
    """

    def loss(lr: Tensor, r: Tensor) -> Tensor:
        return -((r / target_temperature).softmax(-1) * (contrast_beta * lr).log_softmax(-1)).sum()

    return _each(loss, log_ratios, scores, groups)


def exo(
    log_ratios: Tensor, scores: Tensor, groups: Tensor, contrast_beta: float = 0.1, target_temperature: float = 1.0
) -> Tensor:
    """`[S]` to `[K]`: reverse KL(q, p) of q = softmax(beta lr) to p = softmax(s / temperature) (EXO-rw, 2402.00856).

    0 where beta lr = s / temperature up to a constant; equal scores ask for equal log-ratios.
    """

    def loss(lr: Tensor, r: Tensor) -> Tensor:
        return _reverse_kl(contrast_beta * lr, (r / target_temperature).log_softmax(-1))

    return _each(loss, log_ratios, scores, groups)


def exo_best(
    log_ratios: Tensor, scores: Tensor, groups: Tensor, contrast_beta: float = 0.1, label_smoothing: float = 1e-3
) -> Tensor:
    """`[S]` to `[K]`: reverse KL(q, p) of q = softmax(beta lr) to p, which is 1 - e at the best response and
    e / (G - 1) at each other (EXO-pref, 2402.00856, for G responses).

    Of several best the first counts; a group of equal scores prefers nothing: loss 0, gradient 0. Raises ValueError
    unless 0 < e < 1: a target of 0 is infinitely far from every policy.
    """
    if not 0 < label_smoothing < 1:
        raise ValueError(
            f"label_smoothing is {label_smoothing}; exo_best needs one above 0 and below 1, the paper's is 0.001"
        )

    def loss(lr: Tensor, r: Tensor) -> Tensor:
        target = torch.full_like(lr, math.log(label_smoothing / (len(r) - 1)))
        target[r.argmax()] = math.log1p(-label_smoothing)
        return decided(_reverse_kl(contrast_beta * lr, target), r)

    return _each(loss, log_ratios, scores, groups)


def _each(loss: Callable[[Tensor, Tensor], Tensor], log_ratios: Tensor, scores: Tensor, groups: Tensor) -> Tensor:
    """`[S]` three times to `[K]`: the loss of every group of two or more."""
    return each(loss, groups, log_ratios, scores.detach().to(log_ratios.dtype))


def _ordered(scores: Tensor) -> tuple[Tensor, Tensor]:
    """`[G]` to `[P]` twice: the pairs (better, worse) of unequal scores."""
    better, worse = (scores[:, None] > scores[None, :]).nonzero(as_tuple=True)
    return better, worse


def _pair_mean(loss: Callable[[Tensor], Tensor], rated: Tensor, scores: Tensor, groups: Tensor) -> Tensor:
    """`[S]` three times to `[K]`: mean of the loss of x_better - x_worse over a group's pairs; 0 without any."""

    def mean(x: Tensor, r: Tensor) -> Tensor:
        better, worse = _ordered(r)
        return loss(x[better] - x[worse]).sum() / max(len(better), 1)

    return _each(mean, rated, scores, groups)


def _ranks(values: Tensor, scores: Tensor) -> Tensor:
    """`[G]` twice to `[G]`: places from 1 by descending value, then descending score, then as they stand."""
    by_score = scores.argsort(descending=True, stable=True)
    order = by_score[values[by_score].argsort(descending=True, stable=True)]
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(1, len(order) + 1, device=order.device)
    return ranks


def _reverse_kl(logits: Tensor, target: Tensor) -> Tensor:
    """`[G]` logits of q and `[G]` log-probabilities of p to `[]`: sum of q (log q - log p)."""
    log_q = logits.log_softmax(-1)
    return (log_q.exp() * (log_q - target)).sum()
