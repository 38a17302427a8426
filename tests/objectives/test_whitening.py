"""Scaling over a step and over all steps so far, against loops over plain numbers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from posttrain.objectives import whitening

real = st.integers(-80, 80).map(lambda n: n / 16)
tokens = st.lists(real, min_size=1, max_size=20)


def wide(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def spread(values: list[float]) -> float:
    centre = mean(values)
    return math.sqrt(mean([(v - centre) ** 2 for v in values]))


@given(tokens)
def test_batch_norm_gives_no_mean_and_unit_spread(values: list[float]) -> None:
    found = whitening.batch_norm(wide(values))
    if max(values) == min(values):
        assert found.tolist() == [0.0] * len(values)
        return
    assert found.tolist() == pytest.approx([(v - mean(values)) / spread(values) for v in values], abs=1e-9)
    assert float(found.mean()) == pytest.approx(0.0, abs=1e-9)
    assert float(found.square().mean()) == pytest.approx(1.0)
    assert whitening.batch_norm(wide(values) * 7 + 3).tolist() == pytest.approx(found.tolist(), abs=1e-9)


@given(tokens)
def test_batch_scale_divides_by_the_spread_and_keeps_every_sign(values: list[float]) -> None:
    found = whitening.batch_scale(wide(values))
    scale = spread(values) if max(values) > min(values) else 1.0
    assert found.tolist() == pytest.approx([v / scale for v in values], abs=1e-9)
    assert found.sign().tolist() == wide(values).sign().tolist()
    if max(values) > min(values):
        assert whitening.batch_scale(wide(values) * 7).tolist() == pytest.approx(found.tolist(), abs=1e-9)


@given(tokens)
def test_none_is_what_went_in(values: list[float]) -> None:
    assert whitening.none(wide(values)).tolist() == values


def test_equal_advantages_become_exactly_nothing_or_stay_in_single_precision_too() -> None:
    for value in (0.1, 1 / 3, 1e-7, -2.7):
        same = torch.full((7,), value)
        assert whitening.batch_norm(same).tolist() == [0.0] * 7
        assert whitening.batch_scale(same).tolist() == same.tolist()


def test_a_spread_below_the_floor_is_noise() -> None:
    nearly = wide([0.3, 0.3 + 1e-12, 0.3])
    assert whitening.batch_norm(nearly).tolist() == [0.0] * 3
    assert whitening.batch_scale(nearly).tolist() == nearly.tolist()
    assert whitening.batch_norm(nearly, whiten_floor=1e-15).abs().max() > 1
    assert whitening.batch_scale(nearly, whiten_floor=1e-15).abs().max() > 1e9


@pytest.mark.parametrize("whiten", [whitening.none, whitening.batch_norm, whitening.batch_scale])
def test_a_step_without_tokens_stays_without(whiten: object) -> None:
    assert whiten(torch.zeros(0)).shape == (0,)


@given(st.lists(st.tuples(real, st.integers(1, 6)), min_size=1, max_size=6))
def test_a_long_response_weighs_more_than_a_short_one(responses: list[tuple[float, int]]) -> None:
    """The same numbers from mean and spread over responses, each weighted by how many tokens carry its advantage."""
    values = [a for a, n in responses for _ in range(n)]
    total = sum(n for _, n in responses)
    centre = sum(n * a for a, n in responses) / total
    square = sum(n * (a - centre) ** 2 for a, n in responses) / total
    found = whitening.batch_norm(wide(values)).tolist()
    expected = [(a - centre) / math.sqrt(square) if square > 1e-12 else 0.0 for a in values]
    assert found == pytest.approx(expected, abs=1e-9)


def test_whitening_can_push_a_response_above_its_baseline_below_zero_and_scaling_cannot() -> None:
    """One response of two tokens at +1, one of a single token at +4: the first is below the mean of 2."""
    both = wide([1.0, 1.0, 4.0])
    assert whitening.batch_norm(both).tolist() == pytest.approx([-1 / math.sqrt(2)] * 2 + [math.sqrt(2)])
    assert whitening.batch_scale(both).tolist() == pytest.approx([v / math.sqrt(2) for v in (1, 1, 4)])


@given(st.lists(st.lists(real, max_size=5), max_size=6), st.sampled_from([0.0, 1e6]))
def test_running_sums_do_not_depend_on_how_scores_were_cut_into_steps(cuts: list[list[float]], offset: float) -> None:
    state = (0, 0.0, 0.0)
    for cut in cuts:
        state = whitening.running(*state, wide(cut) + offset)
    seen = [v + offset for cut in cuts for v in cut]
    assert state[0] == len(seen)
    if seen:
        centre = mean(seen)
        assert state[1] == pytest.approx(centre, abs=1e-9, rel=1e-12)
        # With an offset of 1e6, sums of squares without centring would be off by more than this.
        assert state[2] == pytest.approx(sum((v - centre) ** 2 for v in seen), abs=1e-6)


@given(st.lists(real, min_size=1, max_size=8), st.lists(real, min_size=1, max_size=8))
def test_the_running_scale_divides_by_the_spread_of_all_scores_so_far(seen: list[float], more: list[float]) -> None:
    state = whitening.running(0, 0.0, 0.0, wide(seen))
    found = whitening.running_scale(wide(more), *state)
    scale = spread(seen) if max(seen) > min(seen) else 1.0
    assert found.tolist() == pytest.approx([v / scale for v in more], abs=1e-9)


def test_the_running_scale_is_one_until_two_scores_were_seen_and_while_all_were_equal() -> None:
    scores = torch.tensor([0.5, -2.0])
    assert whitening.running_scale(scores, 0, 0.0, 0.0).tolist() == scores.tolist()
    assert whitening.running_scale(scores, *whitening.running(0, 0.0, 0.0, torch.tensor([3.0]))).tolist() == [0.5, -2.0]
    state = (0, 0.0, 0.0)
    for _ in range(7):
        state = whitening.running(*state, torch.full((3,), 0.1))
    assert whitening.running_scale(scores, *state).tolist() == scores.tolist()


def test_a_score_that_is_not_a_number_never_enters_the_running_sums() -> None:
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="not finite"):
            whitening.running(3, 0.0, 1.0, torch.tensor([1.0, bad]))
