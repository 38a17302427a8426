"""Formulas against values worked out by hand or by brute force, and the laws that tie them together."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from posttrain.objectives import advantages, ratios, reductions, shaping, surrogates

scores = st.lists(st.floats(-5, 5, width=32), min_size=2, max_size=9)


def wide(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@given(scores)
def test_centred_advantages_add_up_to_nothing_and_ignore_a_shift(values: list[float]) -> None:
    found = advantages.group_mean(wide(values))
    by_hand = [v - sum(values) / len(values) for v in values]
    assert found.tolist() == pytest.approx(by_hand, abs=1e-9)
    assert advantages.group_mean(wide(values) + 3).tolist() == pytest.approx(by_hand, abs=1e-9)


@given(scores)
def test_leave_one_out_is_the_score_against_the_others_and_a_scaled_mean_baseline(values: list[float]) -> None:
    size = len(values)
    found = advantages.leave_one_out(wide(values)).tolist()
    others = [v - sum(values[:i] + values[i + 1 :]) / (size - 1) for i, v in enumerate(values)]
    assert found == pytest.approx(others, abs=1e-9)
    scaled = advantages.group_mean(wide(values)) * size / (size - 1)
    assert found == pytest.approx(scaled.tolist(), abs=1e-9)


@given(scores)
def test_normalised_advantages_have_unit_spread_and_are_bounded_by_the_group(values: list[float]) -> None:
    found = advantages.group_norm(wide(values))
    assert float(found.abs().max()) <= math.sqrt(len(values) - 1) + 1e-9
    if bool(found.any()):
        assert float(found.square().mean()) == pytest.approx(1.0)
        assert advantages.group_norm(wide(values) * 7).tolist() == pytest.approx(found.tolist(), abs=1e-6)


@pytest.mark.parametrize("credit", [advantages.group_mean, advantages.group_norm, advantages.leave_one_out])
def test_equal_scores_teach_exactly_nothing_in_single_precision_too(credit: object) -> None:
    for value in (0.1, 1 / 3, 1e-7, -2.7):
        assert credit(torch.full((7,), value)).tolist() == [0.0] * 7


def test_scores_that_differ_by_rounding_alone_are_not_blown_up() -> None:
    nearly = wide([0.3, 0.3 + 1e-12, 0.3])
    assert advantages.group_norm(nearly).tolist() == [0.0, 0.0, 0.0]


@given(st.floats(-2, 2), st.floats(-3, 3).filter(lambda a: abs(a) > 1e-3))
def test_clip_is_the_lesser_of_two_products_and_stops_the_gradient_beyond_the_bound(ratio: float, a: float) -> None:
    log_ratio = wide([ratio]).requires_grad_()
    loss = surrogates.clip(log_ratio, wide([a]), clip_low=0.2, clip_high=0.28)
    value = math.exp(ratio)
    expected = -min(value * a, min(max(value, 0.8), 1.28) * a)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-9)
    loss.sum().backward()
    stopped = (a > 0 and value > 1.28) or (a < 0 and value < 0.8)
    near = min(abs(value - 0.8), abs(value - 1.28)) < 1e-6
    if not near:
        assert float(log_ratio.grad[0]) == pytest.approx(0.0 if stopped else -value * a, rel=1e-9)


@pytest.mark.parametrize("objective", [surrogates.clip, surrogates.reinforce])
def test_gradients_agree_with_finite_differences(objective: object) -> None:
    torch.manual_seed(0)
    log_ratio = (torch.randn(12, dtype=torch.float64) * 0.1).requires_grad_()
    a = torch.randn(12, dtype=torch.float64)
    if objective is surrogates.reinforce:
        # Its value is the advantage alone, by construction: only its gradient means something.
        (found,) = torch.autograd.grad(objective(log_ratio, a).sum(), log_ratio)
        assert found.tolist() == pytest.approx((-a).tolist())
    else:
        assert torch.autograd.gradcheck(lambda x: objective(x, a), (log_ratio,))


def test_a_sequence_of_one_token_has_the_same_ratio_at_both_levels() -> None:
    log_ratio, mask, segment = wide([0.3, -0.2, 0.1]), torch.ones(3, dtype=torch.bool), torch.arange(3)
    assert ratios.sequence(log_ratio, mask, segment).tolist() == log_ratio.tolist()


def test_the_sequence_ratio_is_the_mean_over_what_the_policy_said() -> None:
    log_ratio = wide([9.0, 0.2, 0.4, 9.0, -0.3])
    mask = torch.tensor([False, True, True, False, True])
    segment = torch.tensor([0, 0, 0, 1, 1])
    assert ratios.sequence(log_ratio, mask, segment).tolist() == pytest.approx([0.3, 0.3, 0.3, -0.3, -0.3])


def test_reductions_weigh_tokens_and_sequences_as_their_names_say() -> None:
    loss = wide([1.0, 2.0, 100.0, 4.0])
    mask, segment = torch.tensor([True, True, False, True]), torch.tensor([0, 0, 1, 1])
    args = (loss, mask, segment, 30, 10)
    assert float(reductions.token_mean(*args)) == pytest.approx(7 / 30)
    assert float(reductions.sequence_mean(*args)) == pytest.approx((1.5 + 4) / 10)
    assert float(reductions.sequence_sum(*args)) == pytest.approx(7 / 10)
    assert float(reductions.constant(*args, constant_length=5)) == pytest.approx(7 / 50)


def test_overlong_punishment_starts_at_the_buffer_and_ends_at_the_limit() -> None:
    found = [shaping.overlong(n, 100, overlong_buffer=0.2, overlong_penalty=1.0) for n in (0, 80, 90, 100)]
    assert found == pytest.approx([0.0, 0.0, -0.5, -1.0])


def test_group_mean_divides_by_the_groups_of_the_step() -> None:
    assert float(reductions.group_mean(wide([1.0, 3.0]), 4)) == 1.0
    assert float(reductions.group_mean(wide([]), 0)) == 0.0
