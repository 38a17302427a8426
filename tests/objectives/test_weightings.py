"""How much a pair weighs, and losses of pairs where numbers are extreme."""

from __future__ import annotations

import itertools
import math
from decimal import Decimal, getcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from posttrain.objectives import preferences, weightings
from tests.objectives.test_preferences import (
    DEFAULTS,
    Case,
    alphapo,
    apo_down,
    apo_zero,
    every,
    exo_pair,
    gradient_of,
    hinge,
    orpo,
    wide,
)

FADING = (apo_zero, apo_down, exo_pair)
"""Bounded losses, whose slope goes to 0 on either side, as the papers have it."""
getcontext().prec = 60
rows = st.lists(
    st.tuples(st.sampled_from([3, -1, 8]), st.sampled_from([0.0, 1.0]) | st.floats(-3, 3), st.floats(-6, 1)),
    min_size=1,
    max_size=10,
)


class TestWeights:
    @given(rows)
    def test_of_best_and_worst_response_of_every_group(self, rows: list) -> None:
        names, r, aligned = (list(column) for column in zip(*rows, strict=True))
        expected = []
        for name in sorted(set(names)):
            members = [i for i, n in enumerate(names) if n == name]
            best, worst = max(members, key=lambda i: r[i]), min(members, key=lambda i: r[i])
            expected.append(math.exp(aligned[best]) * math.exp(aligned[worst]) if r[best] > r[worst] else 1.0)
        found = weightings.policy_probability(wide(r), wide(aligned), torch.tensor(names))
        assert found.tolist() == pytest.approx(expected, rel=1e-12)
        plain = weightings.none(wide(r), wide(aligned), torch.tensor(names))
        assert plain.tolist() == [1.0] * len(expected)
        assert plain.dtype == found.dtype == torch.float64

    @pytest.mark.parametrize("weighting", [weightings.none, weightings.policy_probability])
    def test_no_gradient_flows_through_a_weight(self, weighting: object) -> None:
        scores, aligned = wide([1.0, 0.0]).requires_grad_(), wide([-0.1, -0.2]).requires_grad_()
        assert not weighting(scores, aligned, torch.tensor([0, 0])).requires_grad

    @pytest.mark.parametrize("weighting", [weightings.none, weightings.policy_probability])
    def test_no_group_has_no_weight(self, weighting: object) -> None:
        assert weighting(wide([]), wide([]), torch.tensor([], dtype=torch.long)).shape == (0,)

    def test_tokens_drawn_uniformly_from_a_few_weigh_one(self) -> None:
        aligned = []
        for count in (2, 5, 7):
            logits = torch.full((9,), -math.inf, dtype=torch.float64)
            logits[:count] = 0.3
            logp = logits.log_softmax(0)
            aligned.append(float(logp[0] - logp.exp().square().sum().log()))
        found = weightings.policy_probability(wide([0.5, 1.0, 0.0]), wide(aligned), torch.zeros(3).long())
        assert found.tolist() == pytest.approx([1.0], rel=1e-12)


class TestExtremes:
    @every
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_log_ratios_of_ten_thousand_leave_loss_and_gradient_finite(self, case: Case, dtype: torch.dtype) -> None:
        far = (-1e4, -30.0, -1e-9, 0.0) if case.likely else (-1e4, -30.0, 0.0, 30.0, 1e4)
        values = list(itertools.product(far, far))
        log_ratios = torch.tensor(values, dtype=dtype).flatten().requires_grad_()
        scores = torch.tensor([1.0, 0.0], dtype=dtype).repeat(len(values))
        found = case.loss(log_ratios, scores, torch.arange(len(values)).repeat_interleave(2))
        assert bool(found.isfinite().all())
        (gradient,) = torch.autograd.grad(found.sum(), log_ratios)
        assert bool(gradient.isfinite().all())
        if case.slow in FADING or case.parameters.get("alphapo_alpha"):
            return
        # The pair that is most wrong is still put right, in both responses.
        wrong = values.index((min(far), max(far)))
        up, down = gradient[2 * wrong : 2 * wrong + 2].tolist()
        assert up < 0 < down, (up, down)

    def test_what_fades_does_so_beyond_what_training_meets(self) -> None:
        for case in DEFAULTS:
            if case.slow in FADING:
                at = wide([-30.0, 30.0]).requires_grad_()
                slopes = gradient_of(case.loss(at, wide([1.0, 0.0]), torch.tensor([0, 0])), at)
                assert slopes[1] > 0, case.name

    def test_alphapo_stops_where_its_reward_is_too_large_for_a_float(self) -> None:
        at = wide([-319.0, -321.0]).requires_grad_()
        found = Case(alphapo, {"alphapo_alpha": 0.25}).loss(at, wide([1.0, 0.0]), torch.tensor([0, 0]))
        slopes = gradient_of(found, at)
        # exp(-319 x -.25) is below the bound of exp(80), exp(-321 x -.25) is not.
        assert found.tolist() == [0.0]
        assert slopes == [0.0, 0.0]
        at = wide([-321.0, -319.0]).requires_grad_()
        found = Case(alphapo, {"alphapo_alpha": 0.25}).loss(at, wide([1.0, 0.0]), torch.tensor([0, 0]))
        slopes = gradient_of(found, at)
        assert slopes[0] == 0.0
        assert slopes[1] == pytest.approx(0.1 * math.exp(0.25 * 319))

    def test_a_pair_at_the_edge_of_the_hinge_is_left_alone(self) -> None:
        at = wide([10.0, 0.0]).requires_grad_()
        found = Case(hinge, {}).loss(at, wide([1.0, 0.0]), torch.tensor([0, 0]))
        assert [found.tolist(), gradient_of(found, at)] == [[0.0], [0.0, 0.0]]


def exact_orpo(b: float, w: float) -> tuple[float, float, float]:
    """With sixty digits, weight 1."""
    odds = [x.exp() / (1 - x.exp()) for x in (Decimal(b), Decimal(w))]
    wrong = odds[1] / (odds[0] + odds[1])
    up, down = (1 / (1 - Decimal(x).exp()) for x in (b, w))
    return float(-(1 - wrong).ln()), float(-wrong * up), float(wrong * down)


class TestOdds:
    @pytest.mark.parametrize("b", [-1e-12, -1e-6, -0.3, -math.log(2), -3.0, -40.0, -90.0])
    @pytest.mark.parametrize("w", [-1e-12, -1e-6, -0.3, -0.7, -3.0, -40.0, -90.0])
    def test_near_certainty_and_near_impossibility_are_exact(self, b: float, w: float) -> None:
        at = wide([b, w]).requires_grad_()
        found = Case(orpo, {"odds_weight": 1.0}).loss(at, wide([1.0, 0.0]), torch.tensor([0, 0]))
        value, up, down = exact_orpo(b, w)
        assert found.tolist() == pytest.approx([value], rel=1e-9)
        # 1 - p of fp64 next to p = 1 is known to 1e-16 / 1e-12.
        assert gradient_of(found, at) == pytest.approx([up, down], rel=1e-3 if -1e-12 in (b, w) else 1e-9)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_a_response_that_is_certain_has_the_odds_of_the_last_number_below_one(self, dtype: torch.dtype) -> None:
        eps = torch.finfo(dtype).eps
        at = torch.tensor([-1.0, 0.0], dtype=dtype).requires_grad_()
        found = preferences.orpo(at, torch.tensor([1.0, 0.0]), torch.tensor([0, 0]), odds_weight=1.0)
        gap = math.log(1 / eps) + math.log(math.e - 1)
        assert found.tolist() == pytest.approx([gap], rel=1e-6)
        up, down = gradient_of(found, at)
        assert up == pytest.approx(-1 / (1 - math.exp(-1)), rel=1e-6)
        assert down == pytest.approx(1 / eps, rel=1e-6)
