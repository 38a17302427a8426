"""Losses of the best response against the worst: each against its formula in plain numbers, with slopes by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from posttrain.objectives import margins, preferences
from posttrain.objectives.sets import Sequences

Slow = Callable[..., tuple[float, float, float]]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softplus(x: float) -> float:
    """-log sigmoid(-x)."""
    return max(x, 0) + math.log1p(math.exp(-abs(x)))


def logistic(margin: float, at_best: float, at_worst: float) -> tuple[float, float, float]:
    """-log sigmoid of a margin whose slopes in the two log-ratios are given."""
    slope = -sigmoid(-margin)
    return softplus(-margin), slope * at_best, slope * at_worst


def smoothed(margin: float, at_best: float, at_worst: float, e: float) -> tuple[float, float, float]:
    right, wrong = logistic(margin, at_best, at_worst), logistic(-margin, -at_best, -at_worst)
    return tuple((1 - e) * a + e * b for a, b in zip(right, wrong, strict=True))


def hinge(b: float, w: float, gap: float, contrast_beta: float = 0.1) -> tuple[float, float, float]:
    short = 1 - contrast_beta * (b - w)
    return (short, -contrast_beta, contrast_beta) if short > 0 else (0.0, 0.0, 0.0)


def nca_pair(b: float, w: float, gap: float, contrast_beta: float = 0.1) -> tuple[float, float, float]:
    x, y = contrast_beta * b, contrast_beta * w
    value = softplus(-x) + softplus(x) / 2 + softplus(y) / 2
    return value, contrast_beta * (-sigmoid(-x) + sigmoid(x) / 2), contrast_beta * sigmoid(y) / 2


def exo_pair(
    b: float, w: float, gap: float, contrast_beta: float = 0.1, label_smoothing: float = 1e-3
) -> tuple[float, float, float]:
    h = contrast_beta * (b - w)
    q, p = (sigmoid(h), sigmoid(-h)), (1 - label_smoothing, label_smoothing)
    value = sum(a * math.log(a / c) for a, c in zip(q, p, strict=True))
    slope = contrast_beta * q[0] * q[1] * (math.log(q[0] / p[0]) - math.log(q[1] / p[1]))
    return value, slope, -slope


def robust(
    b: float, w: float, gap: float, contrast_beta: float = 0.1, label_smoothing: float = 0.1
) -> tuple[float, float, float]:
    e, h = label_smoothing, contrast_beta * (b - w)
    value = ((1 - e) * softplus(-h) - e * softplus(h)) / (1 - 2 * e)
    slope = contrast_beta * (-(1 - e) * sigmoid(-h) - e * sigmoid(h)) / (1 - 2 * e)
    return value, slope, -slope


def sppo_hard(b: float, w: float, gap: float, contrast_beta: float = 0.1) -> tuple[float, float, float]:
    up, down = b - 1 / (2 * contrast_beta), w + 1 / (2 * contrast_beta)
    return up**2 + down**2, 2 * up, 2 * down


def apo_zero(b: float, w: float, gap: float, contrast_beta: float = 0.1) -> tuple[float, float, float]:
    x, y = sigmoid(contrast_beta * b), sigmoid(contrast_beta * w)
    return 1 - x + y, -contrast_beta * x * (1 - x), contrast_beta * y * (1 - y)


def apo_down(b: float, w: float, gap: float, contrast_beta: float = 0.1) -> tuple[float, float, float]:
    x, h = sigmoid(contrast_beta * b), sigmoid(contrast_beta * (b - w))
    return x + 1 - h, contrast_beta * (x * (1 - x) - h * (1 - h)), contrast_beta * h * (1 - h)


def discopop(
    b: float, w: float, gap: float, contrast_beta: float = 0.1, discopop_tau: float = 0.05
) -> tuple[float, float, float]:
    h = contrast_beta * (b - w)
    m = sigmoid(h / discopop_tau)
    of_m = m * sigmoid(-h / discopop_tau) / discopop_tau
    value = softplus(-h) * sigmoid(-h / discopop_tau) + math.exp(-h) * m
    slope = -sigmoid(-h) * sigmoid(-h / discopop_tau) - softplus(-h) * of_m - math.exp(-h) * m + math.exp(-h) * of_m
    return value, contrast_beta * slope, -contrast_beta * slope


BASELINE = 0.7


def bco_pair(b: float, w: float, gap: float, contrast_beta: float = 0.1) -> tuple[float, float, float]:
    x, y = contrast_beta * (b - BASELINE), contrast_beta * (w - BASELINE)
    return softplus(-x) + softplus(y), -contrast_beta * sigmoid(-x), contrast_beta * sigmoid(y)


def simpo(
    b: float, w: float, gap: float, contrast_beta: float = 2.0, simpo_gamma: float = 0.5
) -> tuple[float, float, float]:
    return logistic(contrast_beta * (b - w - simpo_gamma / contrast_beta), contrast_beta, -contrast_beta)


def alphapo(
    b: float, w: float, gap: float, contrast_beta: float = 0.1, alphapo_alpha: float = 0.0, simpo_gamma: float = 0.5
) -> tuple[float, float, float]:
    if alphapo_alpha == 0:
        return simpo(b, w, gap, contrast_beta, simpo_gamma)
    d = (math.exp(-alphapo_alpha * w) - math.exp(-alphapo_alpha * b)) / alphapo_alpha
    slopes = contrast_beta * math.exp(-alphapo_alpha * b), -contrast_beta * math.exp(-alphapo_alpha * w)
    return logistic(contrast_beta * d - simpo_gamma, *slopes)


def orpo(b: float, w: float, gap: float, odds_weight: float = 0.1) -> tuple[float, float, float]:
    p, q = math.exp(b), math.exp(w)
    row = logistic(math.log(p / (1 - p)) - math.log(q / (1 - q)), 1 / (1 - p), -1 / (1 - q))
    return tuple(odds_weight * x for x in row)


def margin_sigmoid(
    b: float, w: float, gap: float, contrast_beta: float = 0.1, label_smoothing: float = 0.0
) -> tuple[float, float, float]:
    return smoothed(contrast_beta * (b - w) - gap, contrast_beta, -contrast_beta, label_smoothing)


def modpo(
    b: float, w: float, gap: float, contrast_beta: float = 0.1, objective_weight: float = 0.5
) -> tuple[float, float, float]:
    slope = contrast_beta / objective_weight
    return logistic((contrast_beta * (b - w) - gap) / objective_weight, slope, -slope)


def cpl(
    b: float, w: float, gap: float, contrast_beta: float = 0.1, cpl_lambda: float = 1.0
) -> tuple[float, float, float]:
    good, bad = math.exp(contrast_beta * b), math.exp(cpl_lambda * contrast_beta * w)
    share = bad / (good + bad)
    return -math.log(good / (good + bad)), -contrast_beta * share, cpl_lambda * contrast_beta * share


def positive_sigmoid(
    b: float, w: float, gap: float, contrast_beta: float = 0.1, positive_penalty: float = 5.0
) -> tuple[float, float, float]:
    fallen = b < 0
    margin = contrast_beta * (b - w - (positive_penalty * -b if fallen else 0))
    return logistic(margin, contrast_beta * (1 + positive_penalty * fallen), -contrast_beta)


def mpo(
    b: float, w: float, gap: float, contrast_beta: float = 0.1, sigmoid_weight: float = 0.8, bco_weight: float = 0.2
) -> tuple[float, float, float]:
    dpo = logistic(contrast_beta * (b - w), contrast_beta, -contrast_beta)
    quality = bco_pair(b, w, gap, contrast_beta)
    return tuple(sigmoid_weight * x + bco_weight * y for x, y in zip(dpo, quality, strict=True))


class Case(NamedTuple):
    slow: Slow
    parameters: dict[str, float]

    @property
    def name(self) -> str:
        return self.slow.__name__

    @property
    def likely(self) -> bool:
        """Whether the loss is one of log-probabilities, below 0."""
        return self.slow is orpo

    def loss(self, log_ratios: Tensor, scores: Tensor, groups: Tensor) -> Tensor:
        ones = torch.ones_like(log_ratios.detach())
        sequences = Sequences(-ones, ones, ones.long(), torch.tensor(BASELINE, dtype=ones.dtype))
        given = (sequences,) if self.slow in (bco_pair, mpo) else ()
        module = margins if self.slow in (margin_sigmoid, modpo) else preferences
        return getattr(module, self.name)(log_ratios, scores, groups, *given, **self.parameters)


OTHER: dict[Slow, dict[str, float]] = {
    hinge: {},
    nca_pair: {},
    exo_pair: {"label_smoothing": 0.2},
    robust: {"label_smoothing": 0.4},
    sppo_hard: {},
    apo_zero: {},
    apo_down: {},
    discopop: {"discopop_tau": 0.5},
    bco_pair: {},
    simpo: {"simpo_gamma": 1.5},
    alphapo: {"alphapo_alpha": 0.25, "simpo_gamma": 0.1},
    orpo: {"odds_weight": 2.0},
    margin_sigmoid: {"label_smoothing": 0.2},
    modpo: {"objective_weight": 0.3},
    cpl: {"cpl_lambda": 0.5},
    positive_sigmoid: {"positive_penalty": 50.0},
    mpo: {"sigmoid_weight": 0.3, "bco_weight": 2.0},
}
DEFAULTS = [Case(slow, {}) for slow in OTHER]
CASES = [*DEFAULTS, *(Case(s, p if s is orpo else {"contrast_beta": 0.9, **p}) for s, p in OTHER.items())]
every = pytest.mark.parametrize(
    "case", CASES, ids=[f"{c.name}-{'other' if c.parameters else 'default'}" for c in CASES]
)
every_loss = pytest.mark.parametrize("case", DEFAULTS, ids=[c.name for c in DEFAULTS])
responses = st.lists(
    st.tuples(
        st.sampled_from([-7, 0, 1, 3, 90]),
        st.sampled_from([0.0, 0.5, 1.0]) | st.floats(-3, 3, width=32),
        st.floats(-4, 4, width=32),
    ),
    min_size=1,
    max_size=14,
)


def wide(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def gradient_of(losses: Tensor, log_ratios: Tensor) -> list[float]:
    """Of the losses weighed 1, 2, 3, ... so that a gradient under the wrong group shows."""
    weights = torch.arange(1, len(losses) + 1, dtype=losses.dtype)
    (found,) = torch.autograd.grad((losses * weights).sum(), log_ratios)
    return found.tolist()


class TestAgainstPlainNumbers:
    @every
    @settings(max_examples=60)
    @given(rows=responses)
    def test_value_and_gradient_over_ragged_interleaved_groups_with_ties(self, case: Case, rows: list) -> None:
        names, r, lr = (list(column) for column in zip(*rows, strict=True))
        lr = [a - 4.1 for a in lr] if case.likely else lr
        expected, gradient = [], [0.0] * len(rows)
        for k, group in enumerate(sorted(set(names)), start=1):
            members = [i for i, n in enumerate(names) if n == group]
            # Of several best or worst the first counts.
            best = max(members, key=lambda i: r[i])
            worst = min(members, key=lambda i: r[i])
            if r[best] == r[worst]:
                expected.append(0.0)
                continue
            value, up, down = case.slow(lr[best], lr[worst], r[best] - r[worst], **case.parameters)
            expected.append(value)
            gradient[best], gradient[worst] = k * up, k * down
        log_ratios = wide(lr).requires_grad_()
        found = case.loss(log_ratios, wide(r), torch.tensor(names))
        assert found.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)
        assert gradient_of(found, log_ratios) == pytest.approx(gradient, rel=1e-9, abs=1e-9)

    @every
    def test_finite_differences(self, case: Case) -> None:
        torch.manual_seed(0)
        log_ratios = (torch.randn(9, dtype=torch.float64) - 4.1 * case.likely).requires_grad_()
        scores, groups = torch.randn(9, dtype=torch.float64), torch.tensor([2, 0, 2, 5, 0, 2, 2, 0, 7])
        assert torch.autograd.gradcheck(lambda x: case.loss(x, scores, groups), (log_ratios,))

    @every_loss
    def test_groups_of_one_and_ties_give_exactly_nothing_and_can_be_differentiated(self, case: Case) -> None:
        log_ratios = torch.tensor([-3.0, -2.0, 0.0, 0.0]).requires_grad_()
        found = case.loss(log_ratios, torch.tensor([1.0, 0.0, 4.0, 4.0]), torch.tensor([4, 2, 9, 9]))
        assert found.tolist() == [0.0, 0.0, 0.0]
        assert gradient_of(found, log_ratios) == [0.0] * 4

    @every_loss
    def test_no_group_at_all_gives_no_loss(self, case: Case) -> None:
        assert case.loss(torch.zeros(0), torch.zeros(0), torch.zeros(0, dtype=torch.long)).shape == (0,)

    @every_loss
    def test_scores_are_data(self, case: Case) -> None:
        scores = torch.tensor([1.0, 0.0, 0.5]).requires_grad_()
        log_ratios = torch.tensor([-0.9, -0.2, -0.3]).requires_grad_()
        case.loss(log_ratios, scores, torch.zeros(3, dtype=torch.long)).sum().backward()
        assert scores.grad is None
        assert bool((log_ratios.grad[:2] != 0).all())
        assert float(log_ratios.grad[2]) == 0
