"""Losses of each response by itself: a thumb up or down, and a reference point that says what is usual.

A response is desirable where its score is at least `right_score`. `log_ratios [S]` carry the gradient; the reference
point is `sequences.baseline []`, in units of log-ratios and without gradient. `groups [S]` names each response's
group, and every function gives `[K]`, one loss per distinct group in ascending order of its name: the mean over its
members, of which one is enough.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from posttrain.objectives.sets import Sequences, each


def kto(
    log_ratios: Tensor,
    scores: Tensor,
    groups: Tensor,
    sequences: Sequences,
    contrast_beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    right_score: float = 0.5,
) -> Tensor:
    """`[S]` to `[K]`: w+ (1 - sigmoid(beta (lr - z))) where desirable, w- (1 - sigmoid(beta (z - lr))) where not (KTO,
    2402.01306).

    z is the baseline: an estimate of KL(policy, anchor), at least 0, from responses to other prompts. At lr = z the
    loss is half the weight and the slope steepest; far from z on either side it vanishes, so what is hopeless teaches
    as little as what is done.
    """
    gap = contrast_beta * (log_ratios - sequences.baseline)
    return _valued(gap, scores >= right_score, groups, desirable_weight, undesirable_weight)


def kto_apo_zero(
    log_ratios: Tensor,
    scores: Tensor,
    groups: Tensor,
    sequences: Sequences,
    contrast_beta: float = 0.1,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
    right_score: float = 0.5,
) -> Tensor:
    """`[S]` to `[K]`: w+ (1 - sigmoid(beta lr)) where desirable, w- sigmoid(beta lr) where not (APO-zero for unpaired
    responses, 2408.06266).

    `kto` with the reference point at 0, whatever the baseline: desirable responses become likelier than under the
    anchor, undesirable ones less.
    """
    return _valued(contrast_beta * log_ratios, scores >= right_score, groups, desirable_weight, undesirable_weight)


def bco(
    log_ratios: Tensor,
    scores: Tensor,
    groups: Tensor,
    sequences: Sequences,
    contrast_beta: float = 0.1,
    right_score: float = 0.5,
) -> Tensor:
    """`[S]` to `[K]`: -log sigmoid(beta (lr - d)) where desirable, -log sigmoid(beta (d - lr)) where not (BCO,
    2404.04656).

    Binary cross-entropy of a classifier whose logit is beta (lr - d). d is the baseline: the paper's reward shift over
    beta, an average log-ratio, which may be negative (the paper averages the means of the two kinds). Its weights for
    prompts that differ between the two kinds are not part of this.
    """
    logit = contrast_beta * (log_ratios - sequences.baseline)
    return each(torch.mean, groups, -logsigmoid(torch.where(scores >= right_score, logit, -logit)), least=1)


def _valued(gap: Tensor, desirable: Tensor, groups: Tensor, weight: float, other_weight: float) -> Tensor:
    """`[S]` gaps, which are good where desirable and bad where not, to `[K]` mean losses."""
    losses = torch.where(desirable, weight * (-gap).sigmoid(), other_weight * gap.sigmoid())
    return each(torch.mean, groups, losses, least=1)
