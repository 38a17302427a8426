"""Losses that compare all tokens of an update, against sorting by hand."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from posttrain.objectives import covariance, surrogates
from posttrain.objectives.tokens import Tokens
from tests.objectives.ragged import Batch, agrees, batches, build, call, ignores_garbage, measured, policy_gradient

Row = tuple[float, float, float]
FUNCTIONS = [covariance.second_moment, covariance.clip_cov, covariance.kl_cov]


def outward(batch: Batch) -> list[int]:
    """Masked tokens that have moved the way their advantage pushes them."""
    moved = []
    for i in batch.masked():
        a, ratio = float(batch.advantages[i]), math.exp(float(batch.log_ratio[i]))
        if (a > 0 and ratio > 1) or (a < 0 and ratio < 1):
            moved.append(i)
    return moved


def dropped(batch: Batch, budget: float) -> set[int]:
    """The largest squares go, equals together, until the mean of those left is within the budget."""
    left = {i: float(batch.log_ratio[i]) ** 2 for i in outward(batch)}
    gone: set[int] = set()
    while left and sum(left.values()) / len(left) > budget:
        largest = max(left.values())
        gone |= {i for i, square in left.items() if square == largest}
        left = {i: square for i, square in left.items() if square < largest}
    return gone


def second_moment(batch: Batch, i: int, second_moment_budget: float = 0.04) -> Row:
    value = -math.exp(float(batch.log_ratio[i])) * float(batch.advantages[i])
    return value, 0.0 if i in dropped(batch, second_moment_budget) else value, 0.0


def covariances(batch: Batch) -> dict[int, float]:
    inside = batch.masked()
    credit, logprobs = [[float(values[i]) for i in inside] for values in (batch.advantages, batch.tokens.logprobs)]
    return {
        i: (credit[k] - sum(credit) / len(inside)) * (logprobs[k] - sum(logprobs) / len(inside))
        for k, i in enumerate(inside)
    }


def clip_row(batch: Batch, i: int, bound: float) -> tuple[float, float]:
    ratio, a = math.exp(float(batch.log_ratio[i])), float(batch.advantages[i])
    stopped = (a > 0 and ratio > 1 + bound) or (a < 0 and ratio < 1 - bound)
    return -min(ratio * a, min(max(ratio, 1 - bound), 1 + bound) * a), 0.0 if stopped else -ratio * a


def candidates(batch: Batch, low: float, high: float, bound: float) -> list[int]:
    """Ascending in covariance."""
    found = covariances(batch)
    return sorted(
        (
            i
            for i, c in found.items()
            if low < c < high
            and clip_row(batch, i, bound)[0] == -math.exp(float(batch.log_ratio[i])) * float(batch.advantages[i])
        ),
        key=lambda i: found[i],
    )


def chosen_to_clip(batch: Batch, low: float, high: float, fraction: float, bound: float) -> set[int]:
    ranked = candidates(batch, low, high, bound)
    count = min(max(int(fraction * len(batch.masked())), 1), len(ranked))
    return {ranked[math.floor((Fraction(k) + Fraction(1, 2)) * len(ranked) / count)] for k in range(count)}


def clip_cov(
    batch: Batch,
    i: int,
    cov_low: float = 1.0,
    cov_high: float = 5.0,
    cov_fraction: float = 2e-4,
    clip_range: float = 0.2,
) -> Row:
    value, slope = clip_row(batch, i, clip_range)
    chosen = chosen_to_clip(batch, cov_low, cov_high, cov_fraction, clip_range)
    return value, 0.0 if i in chosen else slope, 0.0


def kl_cov(batch: Batch, i: int, cov_fraction: float = 2e-4, cov_penalty: float = 1.0) -> Row:
    found = covariances(batch)
    count = max(int(cov_fraction * len(found)), 1)
    highest = sorted(found, key=lambda j: -found[j])[:count]
    lr = float(batch.log_ratio[i])
    value = -math.exp(lr) * float(batch.advantages[i])
    if i not in highest:
        return value, value, 0.0
    return value + cov_penalty * abs(lr), value + cov_penalty * ((lr > 0) - (lr < 0)), 0.0


def distinct(batch: Batch, *bounds: float) -> bool:
    """No two covariances, and none and a bound, so near that rounding decides between them."""
    values = sorted([*covariances(batch).values(), *bounds])
    return all(after - before > 1e-9 for before, after in itertools.pairwise(values))


@pytest.mark.parametrize("budget", [0.04, 0.001, 0.5])
@settings(max_examples=60)
@given(batch=batches())
def test_second_moment_is_sorting_and_dropping(budget: float, batch: Batch) -> None:
    agrees(covariance.second_moment, second_moment, batch, {"second_moment_budget": budget})


CLIPS = [
    {},
    {"cov_low": 0.0, "cov_high": 1.0, "cov_fraction": 0.2, "clip_range": 0.3},
    {"cov_low": -0.5, "cov_high": 0.5, "cov_fraction": 0.6, "clip_range": 0.1},
    {"cov_low": -9.0, "cov_high": 9.0, "cov_fraction": 1.0, "clip_range": 0.2},
]


@pytest.mark.parametrize("parameters", CLIPS)
@settings(max_examples=60)
@given(batch=batches())
def test_clip_cov_stops_the_chosen_tokens(parameters: dict[str, float], batch: Batch) -> None:
    assume(distinct(batch, parameters.get("cov_low", 1.0), parameters.get("cov_high", 5.0)))
    agrees(covariance.clip_cov, clip_cov, batch, parameters)


@pytest.mark.parametrize("parameters", [{}, {"cov_fraction": 0.3, "cov_penalty": 0.7}, {"cov_fraction": 1.0}])
@settings(max_examples=60)
@given(batch=batches())
def test_kl_cov_pulls_back_the_highest(parameters: dict[str, float], batch: Batch) -> None:
    assume(distinct(batch))
    agrees(covariance.kl_cov, kl_cov, batch, parameters)


@pytest.mark.parametrize("function", FUNCTIONS)
@settings(max_examples=30)
@given(batch=batches())
def test_what_stands_outside_the_mask_changes_no_choice(function: object, batch: Batch) -> None:
    shares = {} if function is covariance.second_moment else {"cov_fraction": 0.3}
    bounds = {"cov_low": -1.0} if function is covariance.clip_cov else {}
    ignores_garbage(function, batch, {**shares, **bounds})


def test_the_slow_choices_are_not_empty() -> None:
    """A reference that never chooses would agree with a function that never does."""
    batch = build([7, 1, 5, 7], [i % 5 != 3 for i in range(20)], seed=4, scale=1.0)
    assert len(dropped(batch, 0.04)) >= 3
    assert len(outward(batch)) > len(dropped(batch, 0.04))
    assert len(chosen_to_clip(batch, -1.0, 1.0, 0.2, 0.2)) == 3
    assert len(candidates(batch, -1.0, 1.0, 0.2)) > 3


@settings(max_examples=60)
@given(batch=batches())
def test_within_its_budget_the_second_moment_stops_nothing(batch: Batch) -> None:
    squares = [float(batch.log_ratio[i]) ** 2 for i in outward(batch)]
    budget = sum(squares) / max(len(squares), 1) + 1e-12
    for one, other in zip(
        measured(covariance.second_moment, batch, second_moment_budget=budget),
        measured(surrogates.kl_penalised, batch),
        strict=True,
    ):
        assert one.tolist() == other.tolist()


@settings(max_examples=60)
@given(batch=batches(), budget=st.sampled_from([0.001, 0.01, 0.04, 0.3]))
def test_after_trimming_the_budget_is_met_and_not_one_group_too_many_is_gone(batch: Batch, budget: float) -> None:
    gradient = policy_gradient(covariance.second_moment, batch, second_moment_budget=budget)
    squares = {i: float(batch.log_ratio[i]) ** 2 for i in outward(batch)}
    kept = [square for i, square in squares.items() if gradient[i] != 0]
    gone = [square for i, square in squares.items() if gradient[i] == 0]
    assert not kept or sum(kept) / len(kept) <= budget
    if gone:
        again = kept + [square for square in gone if square == min(gone)]
        assert sum(again) / len(again) > budget
        assert not kept or max(kept) < min(gone)


def flat(log_ratio: list[float], advantages: list[float], logprobs: list[float] | None = None) -> Batch:
    size = len(log_ratio)
    wide = [torch.tensor(v, dtype=torch.float64) for v in (log_ratio, advantages, logprobs or [-1.0] * size)]
    return Batch(wide[0], wide[1], Tokens(wide[2], torch.ones(size, dtype=torch.bool), torch.zeros(size).long()))


def test_a_mean_equal_to_the_budget_is_within_it_and_equals_fall_together() -> None:
    equal = flat([0.5, -0.5, 0.5, 0.25], [1.0, -1.0, 1.0, -1.0])
    inside = policy_gradient(covariance.second_moment, equal, second_moment_budget=0.25)
    assert bool((inside != 0).all())
    # The fourth moves back towards the old policy and is neither counted nor stopped.
    beyond = policy_gradient(covariance.second_moment, equal, second_moment_budget=0.2)
    assert (beyond != 0).tolist() == [False, False, False, True]


@pytest.mark.parametrize("fraction", [2e-4, 0.01, 0.13, 0.5, 1.0])
def test_the_share_is_that_of_all_masked_tokens_and_at_least_one(fraction: float) -> None:
    mask = [i % 3 != 0 for i in range(300)]
    batch = build([300], mask, seed=7, scale=0.01)
    count = max(1, int(Fraction(str(fraction)) * 200))
    pulled = policy_gradient(covariance.kl_cov, batch, cov_fraction=fraction)
    moved = batch.log_ratio != 0
    highest = sorted(covariances(batch).items(), key=lambda item: -item[1])[:count]
    changed = (pulled != policy_gradient(surrogates.kl_penalised, batch)).nonzero().squeeze(-1).tolist()
    assert set(changed) == {i for i, _ in highest if moved[i]}
    bounds = {"cov_low": -99.0, "cov_high": 99.0}
    stopped = policy_gradient(covariance.clip_cov, batch, cov_fraction=fraction, **bounds) == 0
    teaching = torch.tensor(mask) & (batch.advantages != 0)
    without = sum(1 for i in batch.masked() if batch.advantages[i] == 0)
    assert count - without <= int((stopped & teaching).sum()) <= count


def test_clip_cov_takes_candidates_at_even_distances() -> None:
    # Advantages +-1 and log-probabilities of mean 0 around it: the covariance is their product.
    steps = [0.1 * k for k in range(1, 10)]
    batch = flat([0.0] * 18, [1.0] * 9 + [-1.0] * 9, [-3 + s for s in steps] + [-3 - s for s in steps])
    stopped = policy_gradient(covariance.clip_cov, batch, cov_low=0.0, cov_high=0.95, cov_fraction=3 / 18) == 0
    # Eighteen candidates in equal pairs, three of them from the middle of each third.
    assert sorted(i % 9 for i in stopped.nonzero().squeeze(-1).tolist()) == [1, 4, 7]


@pytest.mark.parametrize("function", FUNCTIONS)
@settings(max_examples=40)
@given(batch=batches(), seed=st.integers(0, 99))
def test_the_order_of_tokens_has_no_say(function: object, batch: Batch, seed: int) -> None:
    assume(distinct(batch, -1.0, 1.0, 5.0))
    parameters = {
        covariance.second_moment: {},
        covariance.clip_cov: {"cov_fraction": 0.3, "cov_low": -1.0},
        covariance.kl_cov: {"cov_fraction": 0.3},
    }[function]
    order = torch.randperm(len(batch.log_ratio), generator=torch.Generator().manual_seed(seed))

    def moved(values: Tensor) -> Tensor:
        return values[order]

    other = Batch(
        moved(batch.log_ratio), moved(batch.advantages), Tokens(*(moved(v) for v in batch.tokens if v is not None))
    )
    before, after = (policy_gradient(function, b, **parameters) for b in (batch, other))
    numpy.testing.assert_allclose(moved(before).tolist(), after.tolist(), atol=1e-12)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_without_a_token_of_the_policy_nothing_is_chosen_and_all_is_finite(function: object) -> None:
    batch = build([2, 1], [False] * 3, seed=0, scale=0.3)
    assert policy_gradient(function, batch).tolist() == [0.0] * 3
    assert call(function, build([], [], seed=0, scale=0.3)).tolist() == []


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_choice_repeats_itself_and_leaves_the_random_state_alone(function: object) -> None:
    batch = build([40], [True] * 40, seed=9, scale=0.4)
    state = torch.get_rng_state()
    first, again = policy_gradient(function, batch), policy_gradient(function, batch)
    assert first.tolist() == again.tolist()
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("function", FUNCTIONS)
def test_gradients_agree_with_finite_differences_away_from_a_change_of_choice(function: object) -> None:
    """Only the tokens that no choice stops: a stopped one has a slope on purpose left out."""
    batch = build([3, 4, 5], [i != 5 for i in range(12)], seed=11, scale=0.3)
    going = policy_gradient(function, batch).nonzero().squeeze(-1)

    def loss(values: Tensor) -> Tensor:
        return call(function, batch._replace(log_ratio=batch.log_ratio.index_copy(0, going, values)))[going]

    assert torch.autograd.gradcheck(loss, (batch.log_ratio[going].clone().requires_grad_(),))
