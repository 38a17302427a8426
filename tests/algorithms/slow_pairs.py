"""Losses of a best response against a worst one, each written out, and what there is to know of a response.

Numbers that carry no gradient are floats. Nothing here shares a formula with `posttrain.objectives`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

from posttrain.algorithms.cells import Cell


@dataclass
class Member:
    """One response: its log-ratio through the row's divergence, and what else an objective may know of it."""

    lr: Tensor
    score: float
    logp: Tensor
    """Of the whole response."""
    author: str
    value: Tensor | None
    """The critic's, of the state before it."""
    aligned: float = 0.0
    """Mean over tokens of its log-probability less the log of the chance that two draws are one token."""
    count: int = 1
    offset: float = 0.0
    """Its part of its group's margins."""


Members = list[Member]
"""One group."""
Loss = Callable[[Members, Cell, float], Tensor]
"""A group, the row's cell, and the log-ratio that the run takes for usual, to the group's loss."""


def nothing(m: Members) -> Tensor:
    return 0 * m[0].lr


def best(m: Members) -> Member:
    """The first of those with the highest score."""
    return next(x for x in m if x.score == max(y.score for y in m))


def worst(m: Members) -> Member:
    return next(x for x in m if x.score == min(y.score for y in m))


def decides(m: Members) -> bool:
    return max(x.score for x in m) > min(x.score for x in m)


def softplus(x: Tensor) -> Tensor:
    """-log sigmoid(-x)."""
    return (1 + x.exp()).log()


def sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + (-x).exp())


def mean(values: Iterable[Tensor]) -> Tensor:
    found = list(values)
    return sum(found) / len(found)


def pair(loss: Callable[[Tensor, Tensor, Cell], Tensor]) -> Loss:
    """A loss of the log-ratios of the best and the worst response; where none is better, nothing."""
    return lambda m, c, usual: loss(best(m).lr, worst(m).lr, c) if decides(m) else nothing(m)


def smoothed(margin: Tensor, smoothing: float = 0.0) -> Tensor:
    return (1 - smoothing) * softplus(-margin) + smoothing * softplus(margin)


def _exo_pair(b: Tensor, w: Tensor, c: Cell) -> Tensor:
    q, e = sigmoid(c["contrast_beta"] * (b - w)), c["label_smoothing"]
    return q * (q / (1 - e)).log() + (1 - q) * ((1 - q) / e).log()


def _robust(b: Tensor, w: Tensor, c: Cell) -> Tensor:
    d, e = c["contrast_beta"] * (b - w), c["label_smoothing"]
    return ((1 - e) * softplus(-d) - e * softplus(d)) / (1 - 2 * e)


def _nca(b: Tensor, w: Tensor, c: Cell) -> Tensor:
    b, w = c["contrast_beta"] * b, c["contrast_beta"] * w
    return -sigmoid(b).log() - (1 - sigmoid(b)).log() / 2 - (1 - sigmoid(w)).log() / 2


def _discopop(b: Tensor, w: Tensor, c: Cell) -> Tensor:
    h = c["contrast_beta"] * (b - w)
    gate = sigmoid(h / c["discopop_tau"])
    return (1 - gate) * softplus(-h) + gate * (-h).exp()


def _alphapo(b: Tensor, w: Tensor, c: Cell) -> Tensor:
    a = c["alphapo_alpha"]
    rewards = [(1 - (-a * x).exp()) / a if a else x for x in (b, w)]
    return softplus(c["simpo_gamma"] - c["contrast_beta"] * (rewards[0] - rewards[1]))


def _orpo(b: Tensor, w: Tensor, c: Cell) -> Tensor:
    odds = [x.exp() / (1 - x.exp()) for x in (b, w)]
    return c["odds_weight"] * softplus(odds[1].log() - odds[0].log())


def _positive(b: Tensor, w: Tensor, c: Cell) -> Tensor:
    fallen = -b if b.item() < 0 else 0 * b
    return softplus(-c["contrast_beta"] * (b - w - c["positive_penalty"] * fallen))


def _sppo_hard(b: Tensor, w: Tensor, c: Cell) -> Tensor:
    return (b - 1 / (2 * c["contrast_beta"])) ** 2 + (w + 1 / (2 * c["contrast_beta"])) ** 2


def _told_apart(m: Members, c: Cell, usual: float) -> Tensor:
    """The best response is good and the worst is bad, held against what is usual."""
    up, down = (c["contrast_beta"] * (x.lr - usual) for x in (best(m), worst(m)))
    return softplus(-up) + softplus(down) if decides(m) else nothing(m)


def _mpo(m: Members, c: Cell, usual: float) -> Tensor:
    return c["sigmoid_weight"] * dpo(m, c, usual) + c["bco_weight"] * _told_apart(m, c, usual)


def _short_of_the_gap(m: Members, c: Cell) -> Tensor:
    return c["contrast_beta"] * (best(m).lr - worst(m).lr) - (best(m).offset - worst(m).offset)


dpo: Loss = pair(lambda b, w, c: softplus(-c["contrast_beta"] * (b - w)))


PAIRS: dict[str, Loss] = {
    "best_worst_sigmoid": pair(lambda b, w, c: smoothed(c["contrast_beta"] * (b - w), c["label_smoothing"])),
    "best_worst_squared": pair(lambda b, w, c: (b - w - 1 / (2 * c["contrast_beta"])) ** 2),
    "hinge": pair(lambda b, w, c: (1 - c["contrast_beta"] * (b - w)).clamp(min=0)),
    "nca_pair": pair(_nca),
    "exo_pair": pair(_exo_pair),
    "robust": pair(_robust),
    "bco_pair": _told_apart,
    "sppo_hard": pair(_sppo_hard),
    "apo_zero": pair(lambda b, w, c: 1 - sigmoid(c["contrast_beta"] * b) + sigmoid(c["contrast_beta"] * w)),
    "apo_down": pair(lambda b, w, c: sigmoid(c["contrast_beta"] * b) + sigmoid(-c["contrast_beta"] * (b - w))),
    "discopop": pair(_discopop),
    "positive_sigmoid": pair(_positive),
    "margin_sigmoid": lambda m, c, usual: (
        smoothed(_short_of_the_gap(m, c), c["label_smoothing"]) if decides(m) else nothing(m)
    ),
    "mpo": _mpo,
    "simpo": pair(lambda b, w, c: softplus(c["simpo_gamma"] - c["contrast_beta"] * (b - w))),
    "alphapo": pair(_alphapo),
    "orpo": pair(_orpo),
    "modpo": lambda m, c, usual: (
        softplus(-_short_of_the_gap(m, c) / c["objective_weight"]) if decides(m) else nothing(m)
    ),
    "cpl": pair(lambda b, w, c: softplus(c["contrast_beta"] * (c["cpl_lambda"] * w - b))),
}
