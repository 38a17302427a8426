"""Losses of a group's best response against its worst: DPO (`contrasts.best_worst_sigmoid`) and what it was varied to.

`log_ratios [S]`, `scores [S]` and `groups [S]` to `[K]`, one loss per distinct group in ascending order of its name.
The gradient flows through the log-ratios and through nothing else. b and w are the log-ratios of the best and of the
worst response, d = b - w, gap their scores' difference. Of several best or worst the first counts. A group of one, or
of equal scores, prefers nothing: loss 0, gradient 0.

What a log-ratio is taken to, and whether it is a sum or a mean over the response's tokens, is the caller's choice; the
reference-free losses (SimPO, AlphaPO, ORPO) are defined on mean log-probabilities.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from posttrain.objectives.divergences import alpha
from posttrain.objectives.sets import Sequences, each


class Pairs(NamedTuple):
    """Best and worst response of each group, `[K]` places among all; `decided [K]` is false where none is preferred."""

    best: Tensor
    worst: Tensor
    decided: Tensor

    def of(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """`[S]` to `[K]` twice: the value of the best response and that of the worst."""
        return values[self.best], values[self.worst]

    def gap(self, values: Tensor) -> Tensor:
        """`[S]` to `[K]`: the value of the best response less that of the worst."""
        return values[self.best] - values[self.worst]

    def where(self, losses: Tensor) -> Tensor:
        """`[K]` to `[K]`: 0 where nothing is preferred."""
        return torch.where(self.decided, losses, torch.zeros_like(losses))


def pairs(scores: Tensor, groups: Tensor) -> Pairs:
    """`[S]` twice to the pair of each distinct group, in ascending order of its name."""
    places, values = torch.arange(len(groups), device=groups.device), scores.detach()
    best = each(lambda place, score: place[score.argmax()], groups, places, values, least=1)
    worst = each(lambda place, score: place[score.argmin()], groups, places, values, least=1)
    return Pairs(best, worst, values[best] > values[worst])


def hinge(log_ratios: Tensor, scores: Tensor, groups: Tensor, contrast_beta: float = 0.1) -> Tensor:
    """`[S]` to `[K]`: max(0, 1 - beta d) (SLiC-HF, 2305.10425: beta times its loss with the margin 1 / beta)."""
    pair = pairs(scores, groups)
    return pair.where(torch.relu(1 - contrast_beta * pair.gap(log_ratios)))


def nca_pair(log_ratios: Tensor, scores: Tensor, groups: Tensor, contrast_beta: float = 0.1) -> Tensor:
    """`[S]` to `[K]`: -log sigmoid(beta b) - (log sigmoid(-beta b) + log sigmoid(-beta w)) / 2 (NCA, 2402.05369).

    The likelihood of the best response cannot fall without cost, as it can under a loss of d alone.
    """
    pair = pairs(scores, groups)
    best, worst = pair.of(contrast_beta * log_ratios)
    return pair.where(-logsigmoid(best) - (logsigmoid(-best) + logsigmoid(-worst)) / 2)


def exo_pair(
    log_ratios: Tensor, scores: Tensor, groups: Tensor, contrast_beta: float = 0.1, label_smoothing: float = 1e-3
) -> Tensor:
    """`[S]` to `[K]`: KL(q || p) with q = sigmoid(+-beta d) and p = (1 - e, e) (EXO-pref, 2402.00856, eq. 16).

    DPO is the other direction, KL(p || q), up to a constant. e is the label smoothing; ValueError unless 0 < e < 1: the
    loss grows without bound as e goes to 0.
    """
    if not 0 < label_smoothing < 1:
        raise ValueError(f"exo_pair needs a label_smoothing above 0 and below 1; got {label_smoothing}")
    pair = pairs(scores, groups)
    margin = contrast_beta * pair.gap(log_ratios)
    right = margin.sigmoid() * (logsigmoid(margin) - math.log1p(-label_smoothing))
    wrong = (-margin).sigmoid() * (logsigmoid(-margin) - math.log(label_smoothing))
    return pair.where(right + wrong)


def robust(
    log_ratios: Tensor, scores: Tensor, groups: Tensor, contrast_beta: float = 0.1, label_smoothing: float = 0.1
) -> Tensor:
    """`[S]` to `[K]`: (-(1 - e) log sigmoid(beta d) + e log sigmoid(-beta d)) / (1 - 2 e) (rDPO, 2403.00409).

    If each label was flipped with probability e, its mean over the flips is DPO's loss of the true labels. It has no
    lower bound in d. ValueError unless 0 <= e < 1/2.
    """
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"robust needs a label_smoothing of at least 0 and below 1/2; got {label_smoothing}")
    pair = pairs(scores, groups)
    margin = contrast_beta * pair.gap(log_ratios)
    losses = -(1 - label_smoothing) * logsigmoid(margin) + label_smoothing * logsigmoid(-margin)
    return pair.where(losses / (1 - 2 * label_smoothing))


def sppo_hard(log_ratios: Tensor, scores: Tensor, groups: Tensor, contrast_beta: float = 0.1) -> Tensor:
    """`[S]` to `[K]`: (b - 1 / (2 beta))^2 + (w + 1 / (2 beta))^2 (SPPO, 2405.00675, win rates 1 and 0)."""
    pair = pairs(scores, groups)
    best, worst = pair.of(log_ratios)
    return pair.where((best - 0.5 / contrast_beta).square() + (worst + 0.5 / contrast_beta).square())


def aot(
    log_ratios: Tensor,
    scores: Tensor,
    groups: Tensor,
    sequences: Sequences,
    contrast_beta: float = 0.1,
    label_smoothing: float = 0.0,
) -> Tensor:
    """`[S]` to `[K]`: DPO's loss of the sorted margins of the policy less those of the anchor (AOT, 2406.05882).

    A margin is the log-probability of a group's best response minus that of its worst; the anchor's is the policy's
    less the log-ratio, so log-ratios must be sums over tokens. Both are sorted over all groups of the call and compared
    rank by rank: the policy's margins shall dominate the anchor's as a distribution. The losses stand in the order of
    their ranks, in the places of the groups that have a pair; a loss is not that of the group in whose place it stands.
    """
    pair = pairs(scores, groups)
    anchor = (sequences.logprobs - log_ratios).detach()
    return _ranked(pair, pair.gap(anchor + log_ratios), pair.gap(anchor), contrast_beta, label_smoothing)


def aot_unpaired(
    log_ratios: Tensor, scores: Tensor, groups: Tensor, contrast_beta: float = 0.1, label_smoothing: float = 0.0
) -> Tensor:
    """`[S]` to `[K]`: `aot` of the sorted log-ratios of the best responses less those of the worst (2406.05882).

    Which best and which worst response belong together does not matter.
    """
    pair = pairs(scores, groups)
    return _ranked(pair, *pair.of(log_ratios), contrast_beta, label_smoothing)


def apo_zero(log_ratios: Tensor, scores: Tensor, groups: Tensor, contrast_beta: float = 0.1) -> Tensor:
    """`[S]` to `[K]`: sigmoid(-beta b) + sigmoid(beta w) (APO-zero, 2408.06266): the best rises, the worst falls."""
    pair = pairs(scores, groups)
    best, worst = pair.of(contrast_beta * log_ratios)
    return pair.where((-best).sigmoid() + worst.sigmoid())


def apo_down(log_ratios: Tensor, scores: Tensor, groups: Tensor, contrast_beta: float = 0.1) -> Tensor:
    """`[S]` to `[K]`: sigmoid(beta b) + sigmoid(-beta d) (APO-down, 2408.06266): both fall, the worst more.

    For pairs whose best response is still worse than what the model says itself.
    """
    pair = pairs(scores, groups)
    best, worst = pair.of(contrast_beta * log_ratios)
    return pair.where(best.sigmoid() + (worst - best).sigmoid())


def discopop(
    log_ratios: Tensor, scores: Tensor, groups: Tensor, contrast_beta: float = 0.1, discopop_tau: float = 0.05
) -> Tensor:
    """`[S]` to `[K]`: -(1 - m) log sigmoid(h) + m exp(-h) with h = beta d, m = sigmoid(h / tau) (2406.08414, eq. 5).

    The gate m takes part in the gradient, and below tau = .1 it turns the slope at h = 0 round. Below tau = 1 no margin
    makes it overflow: the exponential is closed where it would be large.
    """
    pair = pairs(scores, groups)
    margin = contrast_beta * pair.gap(log_ratios)
    gate = margin / discopop_tau
    return pair.where(-logsigmoid(margin) * (-gate).sigmoid() + (logsigmoid(gate) - margin).exp())


def bco_pair(
    log_ratios: Tensor, scores: Tensor, groups: Tensor, sequences: Sequences, contrast_beta: float = 0.1
) -> Tensor:
    """`[S]` to `[K]`: -log sigmoid(beta (b - shift)) - log sigmoid(-beta (w - shift)) (BCO, 2404.04656).

    The shift is `sequences.baseline`, the mean log-ratio that the run has seen.
    """
    pair = pairs(scores, groups)
    return pair.where(_classified(*pair.of(contrast_beta * (log_ratios - sequences.baseline.detach()))))


def simpo(
    log_ratios: Tensor, scores: Tensor, groups: Tensor, contrast_beta: float = 2.0, simpo_gamma: float = 0.5
) -> Tensor:
    """`[S]` to `[K]`: -log sigmoid(beta d - gamma), of mean log-probabilities (SimPO, 2405.14734).

    As in the paper gamma is a margin of beta d; some write gamma / beta for the one of d.
    """
    pair = pairs(scores, groups)
    return pair.where(-logsigmoid(contrast_beta * pair.gap(log_ratios) - simpo_gamma))


def alphapo(
    log_ratios: Tensor,
    scores: Tensor,
    groups: Tensor,
    contrast_beta: float = 0.1,
    alphapo_alpha: float = 0.0,
    simpo_gamma: float = 0.5,
) -> Tensor:
    """`[S]` to `[K]`: `simpo` of the rewards (1 - p^-alpha) / alpha, p = exp(log-ratio) (AlphaPO, 2501.03884).

    The reward is that of `divergences.alpha` with the coefficient 1 - alpha, and bounded like it; alpha 0 is SimPO.
    """
    return simpo(alpha(log_ratios, 1 - alphapo_alpha), scores, groups, contrast_beta, simpo_gamma)


def orpo(log_ratios: Tensor, scores: Tensor, groups: Tensor, odds_weight: float = 0.1) -> Tensor:
    """`[S]` to `[K]`: -weight log sigmoid(log odds_b - log odds_w), odds = p / (1 - p), p = exp(mean log-probability).

    The odds-ratio term of ORPO (2403.07691, eq. 7) without its likelihood term. Log-probabilities count as at most -eps
    of their dtype, with the slope that the odds have there: at p = 1 odds and slope would be infinite.
    """
    pair = pairs(scores, groups)
    closest = log_ratios.detach().clamp(max=-torch.finfo(log_ratios.dtype).eps)
    logprobs = closest + log_ratios - log_ratios.detach()
    return pair.where(-odds_weight * logsigmoid(pair.gap(logprobs - (-logprobs.expm1()).log())))


def cpl(
    log_ratios: Tensor, scores: Tensor, groups: Tensor, contrast_beta: float = 0.1, cpl_lambda: float = 1.0
) -> Tensor:
    """`[S]` to `[K]`: -log (exp(beta b) / (exp(beta b) + exp(lambda beta w))) (CPL, 2310.13639).

    lambda < 1 keeps the policy near what was preferred; at 1 it is DPO. The paper's log-ratios are discounted sums
    (`ratios.discounted_sum`) of log-probabilities.
    """
    pair = pairs(scores, groups)
    best, worst = pair.of(contrast_beta * log_ratios)
    return pair.where(-logsigmoid(best - cpl_lambda * worst))


def positive_sigmoid(
    log_ratios: Tensor, scores: Tensor, groups: Tensor, contrast_beta: float = 0.1, positive_penalty: float = 5.0
) -> Tensor:
    """`[S]` to `[K]`: -log sigmoid(beta (d - penalty max(0, -b))) (DPO-Positive, 2402.13228).

    The best response may not become less likely than under the anchor.
    """
    pair = pairs(scores, groups)
    best, worst = pair.of(log_ratios)
    return pair.where(-logsigmoid(contrast_beta * (best - worst - positive_penalty * torch.relu(-best))))


def mpo(
    log_ratios: Tensor,
    scores: Tensor,
    groups: Tensor,
    sequences: Sequences,
    contrast_beta: float = 0.1,
    sigmoid_weight: float = 0.8,
    bco_weight: float = 0.2,
) -> Tensor:
    """`[S]` to `[K]`: weighted sum of DPO and `bco_pair` (MPO, 2411.10442), without the paper's likelihood term."""
    pair = pairs(scores, groups)
    best, worst = pair.of(contrast_beta * (log_ratios - sequences.baseline.detach()))
    return pair.where(-sigmoid_weight * logsigmoid(best - worst) + bco_weight * _classified(best, worst))


def _smoothed(margin: Tensor, label_smoothing: float) -> Tensor:
    """`[K]` to `[K]`: -log sigmoid of the margins, with probability e that they are those of a flipped pair."""
    return -(1 - label_smoothing) * logsigmoid(margin) - label_smoothing * logsigmoid(-margin)


def _classified(best: Tensor, worst: Tensor) -> Tensor:
    """`[K]` twice to `[K]`: the best response told to be good, the worst to be bad, each for itself."""
    return -logsigmoid(best) - logsigmoid(-worst)


def _ranked(pair: Pairs, upper: Tensor, lower: Tensor, contrast_beta: float, label_smoothing: float) -> Tensor:
    """`[K]` twice to `[K]`: DPO's loss of the groups' upper less lower values, each sorted; see `aot`."""
    above, below = (values[pair.decided].sort(stable=True).values for values in (upper, lower))
    losses = _smoothed(contrast_beta * (above - below), label_smoothing)
    return torch.zeros_like(upper).masked_scatter(pair.decided, losses)
