"""Losses of games: the policy against its own responses, an earlier policy's, or a critic.

`log_ratios [S]` carry the gradient, `scores [S]` none; `groups [S]` names each response's group, and the author of a
response is `sequences.author [S]`. Every function gives `[K]`, one loss per distinct group in ascending order of its
name. A group of one has nobody to play against: loss 0, gradient 0.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from posttrain.objectives.sets import DATA, OPPONENT, POLICY, Sequences, best_worst, decided, each


def sppo(log_ratios: Tensor, scores: Tensor, groups: Tensor, contrast_beta: float = 0.1) -> Tensor:
    """`[S]` to `[K]`: mean over the group of (lr - (P - 1/2) / beta)^2, P the win rate in [0, 1] (SPPO, 2405.00675).

    Log-ratios are to the previous iterate; the paper's eta is 1 / beta. The target is the step of multiplicative
    weights, exp(P / beta), whose normaliser the paper takes to be exp(1 / (2 beta)). So lr itself is pulled to a place,
    and not only its differences within the group.
    """
    target = (scores.detach().to(log_ratios.dtype) - 0.5) / contrast_beta
    return each(torch.mean, groups, (log_ratios - target).square())


def soft_pairs(log_ratios: Tensor, scores: Tensor, groups: Tensor, contrast_beta: float = 0.1) -> Tensor:
    """`[S]` to `[K]`: mean over pairs i < j of the cross-entropy -p log sigmoid(m) - (1 - p) log sigmoid(-m) with
    p = sigmoid(r_i - r_j), m = beta (lr_i - lr_j) (DNO, 2404.03715).

    r is the expected win rate. It is least where beta lr = r up to a constant: equal scores ask for equal log-ratios.
    Two responses give DPO with label smoothing 1 - p.
    """

    def loss(lr: Tensor, r: Tensor) -> Tensor:
        i, j = torch.triu_indices(len(lr), len(lr), offset=1, device=lr.device)
        margin, ahead = contrast_beta * (lr[i] - lr[j]), r[i] - r[j]
        return -(ahead.sigmoid() * logsigmoid(margin) + (-ahead).sigmoid() * logsigmoid(-margin)).mean()

    return each(loss, groups, log_ratios, scores.detach().to(log_ratios.dtype))


def spin(
    log_ratios: Tensor, scores: Tensor, groups: Tensor, sequences: Sequences, contrast_beta: float = 0.1
) -> Tensor:
    """`[S]` to `[K]`: mean of -log sigmoid(beta (lr_d - lr_o)) over the responses d of the data and the others o (SPIN,
    2401.01335).

    No score is read: the data's response is the better one whoever said the other. With one of each it is DPO. A group
    without one of either kind: loss 0, gradient 0.
    """

    def loss(lr: Tensor, author: Tensor) -> Tensor:
        given = author == DATA
        margins = contrast_beta * (lr[given][:, None] - lr[~given][None, :])
        return -logsigmoid(margins).sum() / max(margins.numel(), 1)

    return each(loss, groups, log_ratios, sequences.author)


def xpo(
    log_ratios: Tensor,
    scores: Tensor,
    groups: Tensor,
    sequences: Sequences,
    contrast_beta: float = 0.1,
    xpo_alpha: float = 1e-5,
) -> Tensor:
    """`[S]` to `[K]`: DPO of the best against the worst, plus alpha times the mean log-probability of the opponent's
    responses (XPO, 2405.21046).

    Optimism: what the opponent (the reference) already says becomes less likely, so the policy looks elsewhere. A
    log-probability is a response's sum over tokens, from `sequences.logprobs`. Equal scores drop the first term, no
    opponent the second.
    """

    def loss(lr: Tensor, r: Tensor, logprobs: Tensor, author: Tensor) -> Tensor:
        best, worst = best_worst(lr, r)
        contrast = decided(-logsigmoid(contrast_beta * (best - worst)), r)
        theirs = logprobs[author == OPPONENT]
        return contrast + xpo_alpha * theirs.sum() / max(len(theirs), 1)

    rated = scores.detach().to(log_ratios.dtype)
    return each(loss, groups, log_ratios, rated, sequences.logprobs, sequences.author)


def spac(
    log_ratios: Tensor,
    scores: Tensor,
    groups: Tensor,
    sequences: Sequences,
    contrast_beta: float = 0.1,
    spac_lambda: float = 1.0,
) -> Tensor:
    """`[S]` to `[K]`: lambda DPO(best, worst of the data) + beta (mean lr of the policy's own responses - lr of the
    data's best) (after SPAC, 2406.04274).

    Derived from the paper's game, not taken from its listing. The critic is the reward with the least
    E_policy[r] - E_data[r] + lambda E[-log sigmoid(r_best - r_worst)], and the policy answers it with the mirror step
    next(y) proportional to policy(y) exp(r(y) / beta). That step says r = beta log(next / policy) + a constant of the
    prompt, which every term cancels, so one model plays both: its log-ratios to the previous iterate are the critic.
    What stands for E_data is ours: the data's best response, so that all terms see one pair.

    Pessimism is the sign of the second term: among the critics that fit the preferences, take the one that thinks
    least of what the policy says now. A response of its own is lowered unless preferences hold it up, the data's best
    is raised. (`xpo` lowers the opponent's responses instead: there the unseen is worth more, here less.) The term is
    linear, so nothing bounds it from below: the anchor must follow after few updates, and a larger lambda is safer.

    Only the data's scores are read. Equal ones drop the first term, no response of the policy's own the second; without
    the data's responses the loss is 0.
    """

    def loss(lr: Tensor, r: Tensor, author: Tensor) -> Tensor:
        given, own = author == DATA, author == POLICY
        if not bool(given.any()):
            return lr[:0].sum()
        best, worst = best_worst(lr[given], r[given])
        fitted = spac_lambda * decided(-logsigmoid(contrast_beta * (best - worst)), r[given])
        return fitted + contrast_beta * (lr[own].mean() - best) if bool(own.any()) else fitted

    return each(loss, groups, log_ratios, scores.detach().to(log_ratios.dtype), sequences.author)
