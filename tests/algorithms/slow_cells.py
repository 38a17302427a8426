"""The cells of a row, each written out for one token or one sequence. `.item()` is what stops a gradient.

Nothing here masks a tensor, shares a formula with `posttrain.objectives`, or looks at the fast way.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from posttrain.algorithms.cells import Cell
from posttrain.types import Sample


@dataclass
class Token:
    """One token the policy said."""

    sample: Sample
    t: int
    table: Tensor
    """[V]: log-probabilities of every token in its state."""
    others: list[Tensor]
    """The same under each reference."""
    outputs: Tensor | None
    """[B]: what the critic says of its state."""
    level: Any = None
    """Its log-ratio at the row's level."""

    @property
    def logp(self) -> Tensor:
        return self.table[self.sample.rollout.tokens[self.t]]

    @property
    def a(self) -> float:
        return self.sample.advantages[self.t].item()

    @property
    def old(self) -> float:
        return self.logp.item() if self.sample.previous is None else self.sample.previous[self.t].item()

    @property
    def gap(self) -> float:
        return self.old - self.sample.rollout.logprobs[self.t]


Row = list[Token]
"""The tokens of one sequence."""


# Log-ratios of a sequence's tokens, its cell, and how many tokens the group's shortest has, to what the objective sees.
LEVELS: dict[str, Callable[[list[Tensor], Cell, int], list[Tensor]]] = {
    "token": lambda each, c, shortest: each,
    "sequence": lambda each, c, shortest: [sum(each) / len(each)] * len(each),
    "sequence_token": lambda each, c, shortest: [sum(o.item() for o in each) / len(each) + o - o.item() for o in each],
    "sequence_sum": lambda each, c, shortest: [sum(each)] * len(each),
    "discounted_sum": lambda each, c, shortest: [sum(c["discount"] ** t * o for t, o in enumerate(each))] * len(each),
    "desensitised": lambda each, c, shortest: [sum(each[:shortest]) + c["ld_alpha"] * sum(each[shortest:])] * len(each),
}


def _bounded(ratio: float, a: float, low: float, high: float) -> float | None:
    """The bound that holds a ratio back, if one does."""
    bound = min(max(ratio, 1 - low), 1 + high)
    return bound if bound * a < ratio * a else None


def _clip(ratio: Tensor, a: float, low: float, high: float) -> Tensor:
    bound = _bounded(ratio.item(), a, low, high)
    return -ratio * a if bound is None else 0 * ratio - bound * a


def _dual_clip(x: Token, row: Row, step: Row, c: Cell) -> Tensor:
    loss = _clip(x.level.exp(), x.a, c["clip_low"], c["clip_high"])
    return 0 * loss - c["dual_clip"] * x.a if x.a < 0 and loss.item() > -c["dual_clip"] * x.a else loss


def _geometric_clip(x: Token, row: Row, step: Row, c: Cell) -> Tensor:
    total = 0
    for y in row:
        over, under = y.a > 0 and y.level.item() > c["clip_high"], y.a <= 0 and y.level.item() < -c["clip_low"]
        total = total + (c["clip_high"] if over else -c["clip_low"] if under else y.level)
    return -x.a * torch.as_tensor(total / len(row), dtype=torch.float64).exp() + 0 * x.logp


def _soft_gate(x: Token, row: Row, step: Row, c: Cell) -> Tensor:
    tau = c["tau_positive"] if x.a > 0 else c["tau_negative"]
    return -4 / tau / (1 + (-tau * (x.level.exp() - 1)).exp()) * x.a


def _within(x: Token, distance: float, c: Cell) -> Tensor:
    ratio, outward = x.level.exp(), x.a * x.level.item() > 0
    return 0 * ratio - ratio.item() * x.a if distance > c["max_divergence"] and outward else -ratio * x.a


def _binary_tv(x: Token, row: Row, step: Row, c: Cell) -> Tensor:
    return _within(x, abs(math.exp(x.logp.item()) - math.exp(x.logp.item() - x.level.item())), c)


def _binary_kl(x: Token, row: Row, step: Row, c: Cell) -> Tensor:
    p, q = math.exp(min(x.logp.item() - x.level.item(), 0.0)), math.exp(x.logp.item())
    return _within(x, p * math.log(p / q) + ((1 - p) * math.log((1 - p) / (1 - q)) if p < 1 else 0.0), c)


def _drift(x: Token, row: Row, step: Row, c: Cell) -> Tensor:
    ratio, alpha, beta = x.level.exp(), c["drift_alpha"], c["drift_beta"]
    if x.a >= 0:
        y = (ratio - 1) * x.a
        f = y - alpha * (y / alpha).tanh()
    else:
        y = x.level * x.a
        f = y - beta * (y / beta).tanh()
    return (f if f.item() > 0 else 0 * f) - ratio * x.a


def _kept_likelihood(x: Token, row: Row, step: Row, c: Cell) -> Tensor:
    ratio = math.exp(x.level.item())
    kept = ratio <= 1 + c["clip_high"] if x.a > 0 else ratio >= 1 - c["clip_low"]
    return -x.a * (x.logp if kept else 0 * x.logp + x.logp.item())


def _cloning(x: Token, row: Row, step: Row, c: Cell) -> Tensor:
    if x.a > 0:
        return -c["positive_weight"] * x.logp
    return -c["negative_weight"] * x.a * x.level.exp()


def _bellman(x: Token, row: Row, step: Row, c: Cell) -> Tensor:
    later = [y for y in row if y.t > x.t]
    expected = 0.0
    if later and later[0].sample.uniform is not None:
        expected = sum(later[0].table.tolist()) / len(later[0].table) - later[0].sample.uniform[later[0].t].item()
    return (c["rover_scale"] * x.level - x.a - c["rover_scale"] * expected) ** 2


def _step_regression(x: Token, row: Row, step: Row, c: Cell) -> Tensor:
    ends = [y.t for y in row if y.sample.ends[y.t].item() or y is row[-1]]
    if x.t not in ends:
        return 0 * x.logp
    start = max((t for t in ends if t < x.t), default=-1)
    total = sum(y.level for y in row if start < y.t <= x.t)
    return (total - x.a / c["contrast_beta"]) ** 2 / 2


def _second_moment(x: Token, row: Row, step: Row, c: Cell) -> Tensor:
    outward = [y.level.item() ** 2 for y in step if y.a * y.level.item() > 0]
    while outward and sum(outward) / len(outward) > c["second_moment_budget"]:
        outward = [square for square in outward if square < max(outward)]
    ratio, dropped = x.level.exp(), x.level.item() ** 2 > max(outward, default=-1.0)
    return 0 * ratio - ratio.item() * x.a if dropped and x.a * x.level.item() > 0 else -ratio * x.a


def _by_covariance(step: Row) -> list[tuple[float, Token]]:
    a, p = sum(y.a for y in step) / len(step), sum(y.logp.item() for y in step) / len(step)
    return sorted([((y.a - a) * (y.logp.item() - p), y) for y in step], key=lambda pair: pair[0])


def _clip_cov(x: Token, row: Row, step: Row, c: Cell) -> Tensor:
    def clipped(y: Token) -> bool:
        return _bounded(math.exp(y.level.item()), y.a, c["clip_range"], c["clip_range"]) is not None

    free = [y for v, y in _by_covariance(step) if c["cov_low"] < v < c["cov_high"] and not clipped(y)]
    count = min(max(int(c["cov_fraction"] * len(step)), 1), len(free))
    stopped = [free[math.floor((i + 0.5) * len(free) / count)] for i in range(count)]
    loss = _clip(x.level.exp(), x.a, c["clip_range"], c["clip_range"])
    return 0 * loss + loss.item() if any(x is y for y in stopped) else loss


def _kl_cov(x: Token, row: Row, step: Row, c: Cell) -> Tensor:
    pulled = [y for _, y in _by_covariance(step)][-max(int(c["cov_fraction"] * len(step)), 1) :]
    loss = -x.level.exp() * x.a
    return loss + c["cov_penalty"] * x.level.abs() if any(x is y for y in pulled) else loss


OBJECTIVES: dict[str, Callable[[Token, Row, Row, Cell], Tensor]] = {
    "reinforce": lambda x, row, step, c: -x.a * (1 + x.level - x.level.item()),
    "clip": lambda x, row, step, c: _clip(x.level.exp(), x.a, c["clip_low"], c["clip_high"]),
    "dual_clip": _dual_clip,
    "geometric_clip": _geometric_clip,
    "soft_gate": _soft_gate,
    "clipped_weight": lambda x, row, step, c: (
        -min(max(math.exp(x.level.item()), 1 - c["clip_low"]), 1 + c["clip_high"]) * x.a * x.logp
    ),
    "truncated_weight": lambda x, row, step, c: -min(math.exp(x.level.item()), c["weight_cap"]) * x.a * x.logp,
    "binary_tv": _binary_tv,
    "binary_kl": _binary_kl,
    "drift": _drift,
    "mirror_descent": lambda x, row, step, c: (
        (x.level.exp() * x.level - x.level.exp() + 1) / c["step_size"] - x.level.exp() * x.a
    ),
    "kl_penalised": lambda x, row, step, c: -x.level.exp() * x.a,
    "likelihood": lambda x, row, step, c: -x.a * x.logp,
    "kept_likelihood": _kept_likelihood,
    "tempered_likelihood": lambda x, row, step, c: -x.a * x.logp / (1 + c["temper"]),
    "shifted_likelihood": lambda x, row, step, c: -(x.a + c["shift"]) * x.logp,
    "positive_cloning": _cloning,
    "bellman": _bellman,
    "second_moment": _second_moment,
    "clip_cov": _clip_cov,
    "kl_cov": _kl_cov,
    "dynamic_likelihood": lambda x, row, step, c: -x.a * math.exp(x.logp.item()) * x.logp,
    "regressed": lambda x, row, step, c: (c["contrast_beta"] * x.level - x.a) ** 2 / 2,
    "step_regression": _step_regression,
}


def _capped(ratio: float, c: Cell) -> float:
    return min(ratio, c["importance_cap"])


def _masked(ratio: float, c: Cell) -> float:
    return ratio if ratio <= c["importance_cap"] else 0.0


def _inside(ratio: float, low: float, high: float) -> bool:
    return low <= ratio <= high


# The gaps of a sequence, and which of them, to a weight.
CORRECTIONS: dict[str, Callable[[list[float], int, Cell], float]] = {
    "none": lambda gaps, i, c: 1.0,
    "truncated_importance": lambda gaps, i, c: _capped(math.exp(gaps[i]), c),
    "masked_importance": lambda gaps, i, c: _masked(math.exp(gaps[i]), c),
    "two_sided_mask": lambda gaps, i, c: (
        math.exp(gaps[i]) * _inside(math.exp(gaps[i]), c["importance_low"], c["importance_high"])
    ),
    "sequence_truncated": lambda gaps, i, c: _capped(math.exp(sum(gaps)), c),
    "sequence_masked": lambda gaps, i, c: _masked(math.exp(sum(gaps)), c),
    "geometric_mask": lambda gaps, i, c: float(
        _inside(math.exp(sum(gaps) / len(gaps)), c["geometric_low"], c["geometric_high"])
    ),
}


# Losses of a step, sequence by sequence, and the constant length, to a scalar.
REDUCTIONS: dict[str, Callable[[list[list[Tensor]], int], Tensor]] = {
    "token_mean": lambda rows, length: sum(map(sum, rows)) / sum(map(len, rows)),
    "sequence_mean": lambda rows, length: sum(sum(row) / len(row) for row in rows) / len(rows),
    "sequence_sum": lambda rows, length: sum(map(sum, rows)) / len(rows),
    "constant": lambda rows, length: sum(map(sum, rows)) / length / len(rows),
}


def _squared(x: Token, c: Cell) -> Tensor:
    value, wanted, before = x.outputs[0], x.sample.returns[x.t].item(), x.sample.values[x.t].item()
    free, bound = (value - wanted) ** 2 / 2, c["value_clip"]
    if bound is None or abs(value.item() - before) <= bound:
        return free
    held = (before + math.copysign(bound, value.item() - before) - wanted) ** 2 / 2
    return 0 * free + held if held > free.item() else free


def _hl_gauss(x: Token, c: Cell) -> Tensor:
    bins, low, high = len(x.outputs), c["value_low"], c["value_high"]
    wanted, width = min(max(x.sample.returns[x.t].item(), low), high), (high - low) / bins

    def below(edge: float) -> float:
        return 0.5 * (1 + math.erf((edge - wanted) / (c["value_sigma"] * width * math.sqrt(2))))

    mass = [below(low + (i + 1) * width) - below(low + i * width) for i in range(bins)]
    said = x.outputs - x.outputs.exp().sum().log()
    return -sum(m / sum(mass) * s for m, s in zip(mass, said, strict=True))


VALUES: dict[str, Callable[[Token, Cell], Tensor]] = {"squared": _squared, "hl_gauss": _hl_gauss}
