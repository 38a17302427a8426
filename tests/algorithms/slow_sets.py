"""Objectives of whole groups, each written out for the responses of one group, or of a step where it looks at all.

Numbers that carry no gradient are floats. Nothing here shares a formula with `posttrain.objectives`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations

from torch import Tensor

from posttrain.algorithms.cells import Cell
from tests.algorithms.slow_pairs import (
    PAIRS,
    Loss,
    Member,
    Members,
    best,
    decides,
    dpo,
    mean,
    nothing,
    sigmoid,
    smoothed,
    softplus,
    worst,
)


def _pairwise(loss: Callable[[Tensor, float], Tensor]) -> Callable[[Members], Tensor]:
    """The mean over all pairs of a loss of how far two responses are apart in log-ratio and in score."""
    return lambda m: mean(loss(a.lr - b.lr, a.score - b.score) for a, b in combinations(m, 2))


def _better(m: Members) -> list[tuple[Member, Member]]:
    return [(a, b) for a in m for b in m if a.score > b.score]


def _lambda_rank(m: Members, c: Cell, usual: float) -> Tensor:
    rank = {id(x): i for i, x in enumerate(sorted(m, key=lambda x: (-x.lr.item(), -x.score)), 1)}
    total = nothing(m)
    for a, b in _better(m):
        discounts = [1 / math.log(1 + rank[id(x)]) for x in (a, b)]
        weight = abs(2**a.score - 2**b.score) * abs(discounts[0] - discounts[1])
        total = total + weight * softplus(-c["contrast_beta"] * (a.lr - b.lr))
    return total


def _list_mle(m: Members, c: Cell, usual: float) -> Tensor:
    total = nothing(m)
    for a in m:
        left = [a, *(b for b in m if b.score < a.score)]
        total = total - ((c["contrast_beta"] * a.lr).exp() / sum((c["contrast_beta"] * b.lr).exp() for b in left)).log()
    return total


def _shares(values: list[Tensor]) -> list[Tensor]:
    return [v.exp() / sum(u.exp() for u in values) for v in values]


def _targets(m: Members, c: Cell) -> list[float]:
    odds = [math.exp(x.score / c["target_temperature"]) for x in m]
    return [o / sum(odds) for o in odds]


def _said(m: Members, c: Cell) -> list[Tensor]:
    return _shares([c["contrast_beta"] * x.lr for x in m])


def _exo_best(m: Members, c: Cell, usual: float) -> Tensor:
    if not decides(m):
        return nothing(m)
    e, top = c["label_smoothing"], best(m)
    wanted = [1 - e if x is top else e / (len(m) - 1) for x in m]
    return sum(q * (q / p).log() for p, q in zip(wanted, _said(m, c), strict=True))


def _thumbs(usual: bool) -> Loss:
    def loss(m: Members, c: Cell, point: float) -> Tensor:
        each = []
        for x in m:
            gap = c["contrast_beta"] * (x.lr - (point if usual else 0.0))
            good = x.score >= c["right_score"]
            each.append(c["desirable_weight"] * sigmoid(-gap) if good else c["undesirable_weight"] * sigmoid(gap))
        return mean(each)

    return loss


def _bco(m: Members, c: Cell, usual: float) -> Tensor:
    gaps = [(c["contrast_beta"] * (x.lr - usual), x.score >= c["right_score"]) for x in m]
    return mean(softplus(-gap) if good else softplus(gap) for gap, good in gaps)


def _kimi(m: Members, c: Cell, usual: float) -> Tensor:
    average = sum(x.score for x in m) / len(m)
    return mean(-(x.score - average) * x.lr + c["kimi_tau"] / 2 * x.lr * x.lr for x in m)


def _agro(m: Members, c: Cell, usual: float) -> Tensor:
    held = [x.score - c["contrast_beta"] * x.lr for x in m]
    return sum((h - mean(held)) ** 2 for h in held) / (len(held) - 1) / c["contrast_beta"]


def _soft_pairs(m: Members, c: Cell, usual: float) -> Tensor:
    def loss(apart: Tensor, ahead: float) -> Tensor:
        p = 1 / (1 + math.exp(-ahead))
        return p * softplus(-c["contrast_beta"] * apart) + (1 - p) * softplus(c["contrast_beta"] * apart)

    return _pairwise(loss)(m)


def _spin(m: Members, c: Cell, usual: float) -> Tensor:
    each = [a.lr - b.lr for a in m for b in m if a.author == "data" and b.author != "data"]
    return mean(softplus(-c["contrast_beta"] * apart) for apart in each) if each else nothing(m)


def _xpo(m: Members, c: Cell, usual: float) -> Tensor:
    theirs = [x.logp for x in m if x.author == "opponent"]
    return dpo(m, c, usual) + (c["xpo_alpha"] * mean(theirs) if theirs else 0.0)


def _spac(m: Members, c: Cell, usual: float) -> Tensor:
    given, own = ([x for x in m if x.author == who] for who in ("data", "policy"))
    if not given:
        return nothing(m)
    loss = c["spac_lambda"] * dpo(given, c, usual)
    return loss + c["contrast_beta"] * (mean(x.lr for x in own) - best(given).lr) if own else loss


SETS: dict[str, Loss] = PAIRS | {
    "rebel": lambda m, c, usual: _pairwise(lambda lr, r: (lr / c["rebel_eta"] - r) ** 2)(m),
    "copg": lambda m, c, usual: _pairwise(lambda lr, r: (r - c["contrast_beta"] * lr) ** 2 / (2 * c["contrast_beta"]))(
        m
    ),
    "agro": _agro,
    "squared_log_ratio": _kimi,
    "pairwise_logistic": lambda m, c, usual: (
        mean(softplus(-c["contrast_beta"] * (a.lr - b.lr)) for a, b in _better(m)) if decides(m) else nothing(m)
    ),
    "pairwise_hinge": lambda m, c, usual: (
        mean((1 - c["contrast_beta"] * (a.lr - b.lr)).clamp(min=0) for a, b in _better(m)) if decides(m) else nothing(m)
    ),
    "lambda_rank": _lambda_rank,
    "list_mle": _list_mle,
    "exo": lambda m, c, usual: sum(q * (q / p).log() for p, q in zip(_targets(m, c), _said(m, c), strict=True)),
    "exo_best": _exo_best,
    "k_way": lambda m, c, usual: -sum(p * q.log() for p, q in zip(_targets(m, c), _said(m, c), strict=True)),
    "kto": _thumbs(usual=True),
    "kto_apo_zero": _thumbs(usual=False),
    "bco": _bco,
    "dro": lambda m, c, usual: mean((x.score - x.value - c["dro_tau"] * x.lr) ** 2 / 2 for x in m),
    "sppo": lambda m, c, usual: mean((x.lr - (x.score - 0.5) / c["contrast_beta"]) ** 2 for x in m),
    "soft_pairs": _soft_pairs,
    "spin": _spin,
    "xpo": _xpo,
    "spac": _spac,
}


def _sorted_apart(above: list[Tensor], below: list[Tensor], c: Cell) -> Tensor:
    ranks = zip(sorted(above, key=Tensor.item), sorted(below, key=Tensor.item), strict=True)
    return sum(smoothed(c["contrast_beta"] * (a - b), c["label_smoothing"]) for a, b in ranks)


def _aot(groups: list[Members], c: Cell) -> Tensor:
    pairs = [(best(m), worst(m)) for m in groups if len(m) > 1 and decides(m)]
    policy = [b.logp - w.logp for b, w in pairs]
    anchor = [p.detach() - (b.lr - w.lr).detach() for p, (b, w) in zip(policy, pairs, strict=True)]
    return _sorted_apart(policy, anchor, c)


def _aot_unpaired(groups: list[Members], c: Cell) -> Tensor:
    pairs = [(best(m), worst(m)) for m in groups if len(m) > 1 and decides(m)]
    return _sorted_apart([b.lr for b, _ in pairs], [w.lr for _, w in pairs], c)


# The groups of a step to the sum of their losses.
WHOLE: dict[str, Callable[[list[Members], Cell], Tensor]] = {"aot": _aot, "aot_unpaired": _aot_unpaired}


# A log-ratio to what it counts for.
DIVERGENCES: dict[str, Callable[[Tensor, Cell], Tensor]] = {
    "reverse_kl": lambda lr, c: lr,
    "forward_kl": lambda lr, c: 1 - (-lr).exp(),
    "js": lambda lr, c: (2 * lr.exp() / (1 + lr.exp())).log(),
    "alpha": lambda lr, c: (
        ((c["alpha_coefficient"] - 1) * lr).exp() / (c["alpha_coefficient"] - 1) - 1 / (c["alpha_coefficient"] - 1)
    ),
}


# The scores and alignments of a group's responses to the weight of its loss.
WEIGHTINGS: dict[str, Callable[[Members], float]] = {
    "none": lambda m: 1.0,
    "policy_probability": lambda m: math.exp(best(m).aligned + worst(m).aligned) if decides(m) else 1.0,
}


def sets_loss(kind: str, groups: list[Members], c: Cell, usual: float, weigh: Callable[[Members], float]) -> Tensor:
    """The mean over groups of what their responses make of one another; one response alone is told nothing by others.

    What sorts all groups of a step has no loss of a single one that could be weighed.
    """
    if kind in WHOLE:
        return WHOLE[kind](groups, c) / len(groups)
    alone = ("kto", "kto_apo_zero", "bco", "dro")
    losses = [weigh(m) * SETS[kind](m, c, usual) if len(m) > 1 or kind in alone else nothing(m) for m in groups]
    return sum(losses) / len(losses)


def cloned(groups: list[Members]) -> Tensor:
    """The best responses' negative log-likelihood, a mean over all their tokens."""
    return -sum(best(m).logp for m in groups) / sum(best(m).count for m in groups)
