"""Losses that compare the responses of one group as whole sequences.

`log_ratios [S]` are sums over a response's tokens of log pi - log anchor; the gradient flows through them and through
nothing else. The anchor is the reference (CoPG, AGRO, online DPO, IPO) or the previous policy (REBEL, Kimi k1.5).
`groups [S]` names each response's group, in any order and of any size. Every function gives `[K]`, one loss per
distinct group in ascending order of its name. A group of one has nothing to compare: loss 0, gradient 0.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from posttrain.objectives.sets import best_worst, decided, each


def rebel(log_ratios: Tensor, scores: Tensor, groups: Tensor, rebel_eta: float = 1.0) -> Tensor:
    """`[S]` to `[K]`: mean over pairs of ((lr_i - lr_j) / eta - (r_i - r_j))^2 (REBEL, 2404.16767).

    It is 0 exactly where log-ratios differ by eta times what the scores differ by. The paper regresses one pair per
    prompt; the mean over all pairs of the group has the same expectation.
    """
    return _each(lambda lr, r: _pair_mean(lr / rebel_eta - r), log_ratios, scores, groups)


def copg(log_ratios: Tensor, scores: Tensor, groups: Tensor, contrast_beta: float = 0.1) -> Tensor:
    """`[S]` to `[K]`: mean over pairs of (R_i - R_j)^2 / (2 beta) with R = r - beta lr (CoPG, 2406.19185).

    For two responses the gradient is (R_2 - R_1) (grad log pi_1 - grad log pi_2), whatever drew them. Scores half a
    point apart give beta / 2 times IPO.
    """
    return _each(lambda lr, r: _pair_mean(r - contrast_beta * lr) / (2 * contrast_beta), log_ratios, scores, groups)


def agro(log_ratios: Tensor, scores: Tensor, groups: Tensor, contrast_beta: float = 0.1) -> Tensor:
    """`[S]` to `[K]`: unbiased variance over the group of R = r - beta lr, over beta (AGRO, 2503.19612).

    The paper's loss is half the variance: beta / 2 times this one, which is scaled so that the gradient at lr = 0 does
    not depend on beta. An unbiased variance is half the mean squared difference of pairs, so this is `copg` for groups
    of every size. The off-policy form: what the policy draws is not differentiated through.
    """

    def variance(lr: Tensor, r: Tensor) -> Tensor:
        regularised = r - contrast_beta * lr
        return (regularised - regularised.mean()).square().sum() / (len(lr) - 1) / contrast_beta

    return _each(variance, log_ratios, scores, groups)


def best_worst_sigmoid(
    log_ratios: Tensor, scores: Tensor, groups: Tensor, contrast_beta: float = 0.1, label_smoothing: float = 0.0
) -> Tensor:
    """`[S]` to `[K]`: -log sigmoid(beta (lr_best - lr_worst)) (DPO, 2305.18290; online: 2402.04792).

    With label smoothing e it is (1 - e) of that plus e times the same for the flipped pair (cDPO: labels are wrong with
    probability e). Of several best or worst the first counts. A group of equal scores prefers nothing: loss 0,
    gradient 0.
    """

    def loss(lr: Tensor, r: Tensor) -> Tensor:
        margin = contrast_beta * _margin(lr, r)
        return decided(-(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin), r)

    return _each(loss, log_ratios, scores, groups)


def best_worst_squared(log_ratios: Tensor, scores: Tensor, groups: Tensor, contrast_beta: float = 0.1) -> Tensor:
    """`[S]` to `[K]`: (lr_best - lr_worst - 1 / (2 beta))^2 (IPO, 2310.12036), chosen as above."""
    return _each(
        lambda lr, r: decided((_margin(lr, r) - 1 / (2 * contrast_beta)).square(), r), log_ratios, scores, groups
    )


def squared_log_ratio(log_ratios: Tensor, scores: Tensor, groups: Tensor, kimi_tau: float = 0.1) -> Tensor:
    """`[S]` to `[K]`: mean over the group of -A lr + tau / 2 lr^2 with A = r - mean(r) (Kimi k1.5, 2501.12599).

    At lr = 0 the gradient is the policy gradient with the mean as baseline. Up to a constant it is the regression of
    tau lr on A, over 2 tau. The pull towards the previous policy is dropped too for a group of one.
    """
    return _each(lambda lr, r: ((r.mean() - r) * lr + kimi_tau / 2 * lr.square()).mean(), log_ratios, scores, groups)


def _each(loss: Callable[[Tensor, Tensor], Tensor], log_ratios: Tensor, scores: Tensor, groups: Tensor) -> Tensor:
    """`[S]` three times to `[K]`: the loss of every group of two or more."""
    return each(loss, groups, log_ratios, scores.detach().to(log_ratios.dtype))


def _pair_mean(values: Tensor) -> Tensor:
    """`[G]` to `[]`: mean of (v_i - v_j)^2 over the pairs i < j."""
    i, j = torch.triu_indices(len(values), len(values), offset=1, device=values.device)
    return (values[i] - values[j]).square().mean()


def _margin(log_ratios: Tensor, scores: Tensor) -> Tensor:
    """`[G]` to `[]`: log-ratio of the best response minus that of the worst."""
    best, worst = best_worst(log_ratios, scores)
    return best - worst
