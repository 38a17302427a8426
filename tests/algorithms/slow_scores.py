"""Losses of a reward model, each written out for the responses of one group. Floats carry no gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations

from torch import Tensor

from posttrain.algorithms.cells import Cell
from tests.algorithms.slow_pairs import softplus

Scores = list[tuple[list[Tensor], float]]
"""Of each response of a group: what every output says of it, and what it is worth."""


def nothing(m: Scores) -> Tensor:
    return 0 * m[0][0][0]


def _mean(values: list[Tensor], m: Scores) -> Tensor:
    return sum(values) / len(values) if values else nothing(m)


def _by_head(loss: Callable[[list[tuple[Tensor, float]], Cell], Tensor]) -> Callable[[Scores, Cell], Tensor]:
    """The mean over heads of a loss of one score for each response."""

    def losses(m: Scores, c: Cell) -> Tensor:
        heads = range(len(m[0][0]))
        return _mean([loss([(said[head], worth) for said, worth in m], c) for head in heads], m)

    return losses


One = list[tuple[Tensor, float]]
"""One head's scores."""


def _better(m: One) -> list[tuple[tuple[Tensor, float], tuple[Tensor, float]]]:
    return [(a, b) for a in m for b in m if a[1] > b[1]]


def _pairs(m: One, loss: Callable[[Tensor, Tensor, float], Tensor]) -> Tensor:
    each = [loss(r, q, s - w) for (r, s), (q, w) in _better(m)]
    return sum(each) / len(each) if each else 0 * m[0][0]


def _ties(m: One, c: Cell) -> Tensor:
    theta, each = c["tie_theta"], []
    for (r, s), (q, w) in combinations(m, 2):
        one, two = r.exp() / (r.exp() + theta * q.exp()), q.exp() / (q.exp() + theta * r.exp())
        each.append(-(one if s > w else two if s < w else 1 - one - two).log())
    return sum(each) / len(each)


def _plackett_luce(m: One, c: Cell) -> Tensor:
    return sum((r.exp() + sum(q.exp() for q, w in m if w < s)).log() - r for r, s in m)


def _gap(m: One, c: Cell) -> Tensor:
    if not _better(m):
        return 0 * m[0][0]
    best = next(r for r, s in m if s == max(w for _, w in m))
    worst = next(r for r, s in m if s == min(w for _, w in m))
    return softplus(-best) + softplus(worst)


def histogram(worth: float, bins: int, c: Cell) -> list[float]:
    """The mass of a Gaussian around a score in equal bins, what falls outside shared out."""
    low, width = c["value_low"], (c["value_high"] - c["value_low"]) / bins
    held, spread = min(max(worth, low), c["value_high"]), c["value_sigma"] * width * math.sqrt(2)
    below = [0.5 * (1 + math.erf((low + i * width - held) / spread)) for i in range(bins + 1)]
    return [(below[i + 1] - below[i]) / (below[-1] - below[0]) for i in range(bins)]


def _binned(m: Scores, c: Cell) -> Tensor:
    each = []
    for said, worth in m:
        total = sum(x.exp() for x in said).log()
        each.append(-sum(p * (x - total) for p, x in zip(histogram(worth, len(said), c), said, strict=True)))
    return _mean(each, m)


SCORES: dict[str, Callable[[Scores, Cell], Tensor]] = {
    "bradley_terry": _by_head(
        lambda m, c: _pairs(m, lambda r, q, ahead: softplus(q - r) + c["centring"] * (r + q) ** 2)
    ),
    "margin_bradley_terry": _by_head(
        lambda m, c: _pairs(m, lambda r, q, ahead: softplus(q - r + ahead) + c["centring"] * (r + q) ** 2)
    ),
    "bradley_terry_ties": _by_head(_ties),
    "plackett_luce": _by_head(_plackett_luce),
    "gap": _by_head(_gap),
    "regression": _by_head(lambda m, c: sum((r - s) ** 2 for r, s in m) / len(m)),
    "binary": _by_head(lambda m, c: sum(s * softplus(-r) + (1 - s) * softplus(r) for r, s in m) / len(m)),
    "binned": _binned,
}


def step_loss(said: list[Tensor], right: float) -> Tensor:
    """Of one step, from every output after its last token."""
    return sum(right * softplus(-r) + (1 - right) * softplus(r) for r in said) / len(said)


def _cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / ((a * a).sum() * (b * b).sum()) ** 0.5


def goal_loss(states: list[Tensor], scores: list[float], temperature: float) -> Tensor:
    """`states`: of each response the `[T, H]` last hidden states after what was said."""
    if min(scores) == max(scores):
        return 0 * states[0].sum()
    best, worst = states[scores.index(max(scores))], states[scores.index(min(scores))]
    each = []
    for t in range(len(best) - 1):
        goal = (len(best) + t) // 2
        apart = _cosine(best[t], best[goal]) - _cosine(best[t], worst[min(goal, len(worst) - 1)])
        each.append(softplus(-apart / temperature))
    return sum(each) / len(each) if each else 0 * best.sum()
