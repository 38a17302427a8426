"""Losses of single responses with a thumb against one response at a time, and the points where their value is known."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from posttrain.objectives import unpaired
from posttrain.objectives.sets import Sequences
from tests.objectives.test_contrasts import gradient_of, responses, wide

Loss = Callable[..., Tensor]
Slow = Callable[..., tuple[float, float]]


def around(baseline: float, like: Tensor) -> Sequences:
    """Sequences of which only the reference point matters."""
    nothing = torch.full_like(like, math.nan)
    return Sequences(
        nothing, nothing, torch.zeros(len(like), dtype=torch.long), torch.tensor(baseline, dtype=torch.float64)
    )


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def slow_kto(lr: float, good: bool, z: float, beta: float, w: tuple[float, float] = (1.0, 1.0)) -> tuple[float, float]:
    """Value and slope: w (1 - sigmoid(x)) falls by w sigmoid(x) (1 - sigmoid(x))."""
    weight, side = (w[0], 1) if good else (w[1], -1)
    right = sigmoid(side * beta * (lr - z))
    return weight * (1 - right), -side * beta * weight * right * (1 - right)


def slow_apo(lr: float, good: bool, z: float, beta: float, w: tuple[float, float] = (1.0, 1.0)) -> tuple[float, float]:
    likelier = sigmoid(beta * lr)
    slope = beta * likelier * (1 - likelier)
    return (w[0] * (1 - likelier), -w[0] * slope) if good else (w[1] * likelier, w[1] * slope)


def slow_bco(lr: float, good: bool, z: float, beta: float, *_: object) -> tuple[float, float]:
    chance = sigmoid(beta * (lr - z))
    return (-math.log(chance), beta * (chance - 1)) if good else (-math.log(1 - chance), beta * chance)


ALL: list[tuple[Loss, Slow]] = [
    (unpaired.kto, slow_kto),
    (unpaired.kto_apo_zero, slow_apo),
    (unpaired.bco, slow_bco),
]
every = pytest.mark.parametrize(("loss", "slow"), ALL, ids=[entry[0].__name__ for entry in ALL])
every_loss = pytest.mark.parametrize("loss", [entry[0] for entry in ALL])
valued = pytest.mark.parametrize("loss", [unpaired.kto, unpaired.kto_apo_zero])
WEIGHTS = {"desirable_weight": 1 / 3, "undesirable_weight": 1.7}


def one(loss: Loss, lr: float, good: bool, z: float = 0.0, **params: float) -> tuple[float, float]:
    """Value and slope of a single response."""
    log_ratios = wide([lr]).requires_grad_()
    found = loss(log_ratios, wide([float(good)]), torch.tensor([3]), around(z, log_ratios), **params)
    return float(found.detach()), gradient_of(found, log_ratios)[0]


class TestAgainstSingles:
    @every
    @given(
        rows=responses,
        z=st.sampled_from([0.0, 0.7, -1.5]),
        beta=st.sampled_from([None, 0.3, 2.0]),
        weighed=st.booleans(),
    )
    def test_value_and_gradient_are_means_over_ragged_interleaved_groups(
        self, loss: Loss, slow: Slow, rows: list, z: float, beta: float | None, weighed: bool
    ) -> None:
        """Without settings, the defaults: beta .1, weights 1, right from a half on."""
        names, r, lr = (list(column) for column in zip(*rows, strict=True))
        params = {} if beta is None else {"contrast_beta": beta, "right_score": 0.2}
        weighed = weighed and loss is not unpaired.bco
        bar, weights = (0.5 if beta is None else 0.2), ((1 / 3, 1.7) if weighed else (1.0, 1.0))
        expected, gradient = [], [0.0] * len(rows)
        for k, group in enumerate(sorted(set(names)), start=1):
            members = [i for i, n in enumerate(names) if n == group]
            found = [slow(lr[i], r[i] >= bar, z, beta or 0.1, weights) for i in members]
            expected.append(sum(value for value, _ in found) / len(members))
            for i, (_, slope) in zip(members, found, strict=True):
                gradient[i] = k * slope / len(members)
        log_ratios = wide(lr).requires_grad_()
        given_ = around(z, log_ratios)
        losses = loss(log_ratios, wide(r), torch.tensor(names), given_, **params, **(WEIGHTS if weighed else {}))
        assert losses.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-12)
        assert gradient_of(losses, log_ratios) == pytest.approx(gradient, rel=1e-9, abs=1e-12)

    @every
    def test_finite_differences(self, loss: Loss, slow: Slow) -> None:
        torch.manual_seed(0)
        log_ratios = torch.randn(7, dtype=torch.float64).requires_grad_()
        scores, groups = torch.tensor([1.0, 0, 1, 0, 0.5, 0.4, 1]).double(), torch.tensor([2, 0, 2, 5, 0, 7, 7])
        extra = around(0.4, scores)
        assert torch.autograd.gradcheck(lambda x: loss(x, scores, groups, extra, contrast_beta=0.7), (log_ratios,))

    @every_loss
    def test_the_order_of_responses_only_orders_the_gradient(self, loss: Loss) -> None:
        torch.manual_seed(1)
        lr, r, groups = torch.randn(6).double(), wide([1, 0, 0, 1, 0, 1]), torch.tensor([1, 1, 0, 0, 0, 2])
        order = torch.tensor([5, 3, 0, 1, 4, 2])
        first, second = lr.clone().requires_grad_(), lr[order].clone().requires_grad_()
        found, other = loss(first, r, groups, around(0.3, lr)), loss(second, r[order], groups[order], around(0.3, lr))
        torch.testing.assert_close(found, other)
        torch.testing.assert_close(wide(gradient_of(found, first))[order], wide(gradient_of(other, second)))

    @every_loss
    def test_scores_are_data_and_no_response_gives_no_loss(self, loss: Loss) -> None:
        scores, lr = torch.tensor([1.0, 0.0]).requires_grad_(), torch.tensor([0.1, 0.2]).requires_grad_()
        loss(lr, scores, torch.tensor([0, 1]), around(0.0, lr.detach())).sum().backward()
        assert scores.grad is None
        empty = torch.zeros(0)
        assert loss(empty, empty, torch.zeros(0, dtype=torch.long), around(0.0, empty)).shape == (0,)

    @every_loss
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_far_log_ratios_give_finite_losses_and_gradients(self, loss: Loss, dtype: torch.dtype) -> None:
        """Right and wrong by 1e4. BCO pulls the wrong ones with all of beta; the value of KTO is flat out there."""
        log_ratios = torch.tensor([1e4, -1e4, 1e4, -1e4], dtype=dtype).requires_grad_()
        scores = torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=dtype)
        found = loss(log_ratios, scores, torch.arange(4), around(0.0, scores))
        (slopes,) = torch.autograd.grad(found.sum(), log_ratios)
        if loss is unpaired.bco:
            assert found.tolist() == pytest.approx([0.0, 0.0, 1000.0, 1000.0])
            assert slopes.tolist() == pytest.approx([0.0, 0.0, 0.1, -0.1])
        else:
            assert found.tolist() == pytest.approx([0.0, 0.0, 1.0, 1.0])
            assert slopes.tolist() == [0.0] * 4


class TestPoints:
    @given(st.floats(-3, 3), st.sampled_from([0.1, 2.0]), st.booleans())
    def test_at_the_reference_point_kto_is_half_its_weight_and_steepest(
        self, z: float, beta: float, good: bool
    ) -> None:
        weight = WEIGHTS["desirable_weight" if good else "undesirable_weight"]
        value, slope = one(unpaired.kto, z, good, z, contrast_beta=beta, **WEIGHTS)
        assert value == pytest.approx(weight / 2)
        assert slope == pytest.approx((-1 if good else 1) * weight * beta / 4)
        for away in (-0.5, 0.5):
            beside = one(unpaired.kto, z + away / beta, good, z, contrast_beta=beta, **WEIGHTS)
            assert abs(beside[1]) < abs(slope)

    @every_loss
    @given(st.floats(-5, 5), st.floats(-2, 2), st.booleans())
    def test_a_thumb_turned_round_is_the_log_ratio_mirrored_at_the_reference_point(
        self, loss: Loss, lr: float, z: float, good: bool
    ) -> None:
        z = 0.0 if loss is unpaired.kto_apo_zero else z
        value, slope = one(loss, lr, good, z)
        other, turned = one(loss, 2 * z - lr, not good, z)
        assert value == pytest.approx(other)
        assert slope == pytest.approx(-turned)

    @valued
    @given(st.floats(-5, 5))
    def test_both_thumbs_on_one_response_cancel(self, loss: Loss, lr: float) -> None:
        up, down = (one(loss, lr, good, 0.4) for good in (True, False))
        assert up[0] + down[0] == pytest.approx(1.0)
        assert up[1] + down[1] == pytest.approx(0.0, abs=1e-12)

    @given(st.floats(-5, 5), st.booleans())
    def test_apo_zero_is_kto_around_zero_whatever_was_measured(self, lr: float, good: bool) -> None:
        expected = one(unpaired.kto, lr, good, 0.0, **WEIGHTS)
        assert one(unpaired.kto_apo_zero, lr, good, 9.0, **WEIGHTS) == pytest.approx(expected)

    def test_a_higher_reference_point_asks_more_of_the_desirable_and_less_of_the_undesirable(self) -> None:
        for loss in (unpaired.kto, unpaired.bco):
            assert one(loss, 1.0, True, 2.0)[0] > one(loss, 1.0, True, 0.0)[0]
            assert one(loss, 1.0, False, 2.0)[0] < one(loss, 1.0, False, 0.0)[0]

    @given(st.floats(-5, 5), st.sampled_from([0.1, 2.0]), st.booleans())
    def test_bco_at_shift_zero_is_the_cross_entropy_of_the_thumb(self, lr: float, beta: float, good: bool) -> None:
        value, slope = one(unpaired.bco, lr, good, 0.0, contrast_beta=beta)
        logit = wide([beta * lr]).requires_grad_()
        expected = torch.nn.functional.binary_cross_entropy_with_logits(logit, wide([float(good)]))
        (by_logit,) = torch.autograd.grad(expected, logit)
        assert value == pytest.approx(expected.item(), rel=1e-9)
        assert slope == pytest.approx(beta * by_logit.item(), rel=1e-9)

    @given(st.floats(-5, 5), st.floats(-5, 5))
    def test_bco_of_a_pair_is_an_upper_bound_of_dpo_whatever_the_shift(self, best: float, worst: float) -> None:
        """The paper's theorem: -log sigmoid(a - d) - log sigmoid(d - b) >= -log sigmoid(a - b)."""
        for shift in (-2.0, 0.0, 1.0):
            both = sum(one(unpaired.bco, lr, good, shift)[0] for lr, good in ((best, True), (worst, False)))
            assert both >= math.log1p(math.exp(-0.1 * (best - worst)))

    @every_loss
    def test_the_bar_itself_is_desirable(self, loss: Loss) -> None:
        lr = wide([0.5, 0.5]).requires_grad_()
        found = loss(lr, wide([0.8, 0.79]), torch.tensor([0, 1]), around(0.0, lr.detach()), right_score=0.8)
        slopes = gradient_of(found, lr)
        assert slopes[0] < 0 < slopes[1]
