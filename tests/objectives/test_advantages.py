"""Each credit against the same thing written out in plain loops, and the laws that tie credits together."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from posttrain.objectives import advantages

# Multiples of 1/16, so that two scores differ by nothing or by far more than any floor.
real = st.integers(-80, 80).map(lambda n: n / 16)
groups_of_scores = st.lists(real, min_size=2, max_size=9)
right_or_wrong = st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=8)
steps = st.lists(st.tuples(real, st.integers(0, 4)), min_size=1, max_size=14)


def wide(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def spread(values: list[float]) -> float:
    centre = mean(values)
    return math.sqrt(mean([(v - centre) ** 2 for v in values]))


def normed(values: list[float]) -> list[float]:
    if max(values) == min(values):
        return [0.0] * len(values)
    return [(v - mean(values)) / spread(values) for v in values]


@given(groups_of_scores, real)
def test_without_a_baseline_in_the_group_each_score_stands_for_itself(values: list[float], baseline: float) -> None:
    scores, outside = wide(values), torch.tensor(baseline, dtype=torch.float64)
    assert advantages.score(scores).tolist() == values
    assert advantages.ones(scores).tolist() == [1.0] * len(values)
    assert advantages.from_greedy(scores, outside).tolist() == [v - baseline for v in values]
    assert advantages.from_baseline(scores, outside).tolist() == [v - baseline for v in values]


def test_a_group_as_good_as_the_greedy_response_teaches_exactly_nothing() -> None:
    assert advantages.from_greedy(torch.full((7,), 0.1), torch.tensor(0.1)).tolist() == [0.0] * 7


@given(st.integers(2, 6), st.data())
def test_win_rates_of_a_whole_tournament_add_up_to_nothing(size: int, data: st.DataObject) -> None:
    wins = [0.0] * size
    for i, j in itertools.combinations(range(size), 2):
        share = data.draw(st.sampled_from([0.0, 0.25, 0.5, 1.0]))
        wins[i] += share
        wins[j] += 1 - share
    rates = [w / (size - 1) for w in wins]
    found = advantages.win_rate(wide(rates))
    assert found.tolist() == pytest.approx([r - 0.5 for r in rates], abs=1e-12)
    assert float(found.sum()) == pytest.approx(0.0, abs=1e-12)


def test_win_rates_are_held_against_one_half_and_not_against_their_own_mean() -> None:
    assert advantages.win_rate(wide([1.0, 1.0, 0.75])).tolist() == [0.5, 0.5, 0.25]


@given(groups_of_scores, st.data())
def test_length_weighted_subtracts_what_an_average_token_scored(values: list[float], data: st.DataObject) -> None:
    lengths = data.draw(st.lists(st.integers(0, 30), min_size=len(values), max_size=len(values)))
    found = advantages.length_weighted(wide(values), torch.tensor(lengths))
    per_token = [v for v, n in zip(values, lengths, strict=True) for _ in range(n)] or values
    assert found.tolist() == pytest.approx([v - mean(per_token) for v in values], abs=1e-9)
    if any(lengths):
        assert sum(n * a for n, a in zip(lengths, found.tolist(), strict=True)) == pytest.approx(0.0, abs=1e-8)
    shifted = advantages.length_weighted(wide(values) + 3, torch.tensor(lengths))
    assert shifted.tolist() == pytest.approx(found.tolist(), abs=1e-9)


@given(groups_of_scores, st.integers(1, 999))
def test_with_equal_lengths_the_length_weighted_baseline_is_the_mean(values: list[float], length: int) -> None:
    found = advantages.length_weighted(wide(values), torch.full((len(values),), length))
    assert found.tolist() == pytest.approx(advantages.group_mean(wide(values)).tolist(), abs=1e-9)


def test_the_length_weighted_baseline_has_the_least_variance_when_squared_gradients_grow_with_length() -> None:
    """The sum of l (r - b)^2 at the baseline and around it."""
    scores, lengths = wide([1.0, 0.0, 1.0, 0.0]), torch.tensor([9, 1, 2, 4])
    baseline = float((scores - advantages.length_weighted(scores, lengths))[0])

    def variance(b: float) -> float:
        return sum(n * (r - b) ** 2 for r, n in zip(scores.tolist(), lengths.tolist(), strict=True))

    assert all(variance(baseline) < variance(baseline + step) for step in (-0.05, -0.001, 0.001, 0.05))


@given(st.lists(st.integers(0, 80).map(lambda n: n / 16), min_size=2, max_size=9))
def test_mean_scaled_is_the_distance_to_the_mean_in_units_of_it(values: list[float]) -> None:
    found = advantages.mean_scaled(wide(values))
    centre = mean(values)
    expected = [(v - centre) / centre for v in values] if centre else [0.0] * len(values)
    assert found.tolist() == pytest.approx(expected, abs=1e-9)
    assert advantages.mean_scaled(wide(values) * 7).tolist() == pytest.approx(expected, abs=1e-9)
    assert float(found.max()) <= len(values) - 1 + 1e-9
    assert float(found.min()) >= -1 - 1e-9


@pytest.mark.parametrize("size", [2, 3, 5])
def test_mean_scaled_climbs_the_truncated_log_likelihood_in_expectation(size: int) -> None:
    """Every group that three answers can make, weighted by its probability: nothing is sampled."""
    logits = wide([0.3, -0.8, 0.5]).requires_grad_()
    reward = [0.0, 1.0, 0.0]
    logp = logits.log_softmax(-1)
    total = torch.zeros((), dtype=torch.float64)
    for group in itertools.product(range(3), repeat=size):
        chance = logp[list(group)].sum().exp().detach()
        worth = advantages.mean_scaled(wide([reward[i] for i in group]))
        total = total + chance * (worth * logp[list(group)]).mean()
    (found,) = torch.autograd.grad(total, logits, retain_graph=True)
    right = logp[1].exp()
    series = sum(1 / k * (1 - (1 - right) ** k) for k in range(1, size))
    (expected,) = torch.autograd.grad(series, logits)
    torch.testing.assert_close(found, expected)


def test_mean_scaled_refuses_a_negative_score_and_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"-0\.5.*shift the reward.*group_norm"):
        advantages.mean_scaled(wide([1.0, -0.5]))


@given(right_or_wrong, st.data())
def test_pass_at_k_is_the_mean_normalised_reward_of_the_sets_that_hold_the_response(
    values: list[float], data: st.DataObject
) -> None:
    size = len(values)
    k = data.draw(st.integers(1, size))
    found = advantages.pass_at_k(wide(values), pass_k=k).tolist()
    sets = list(itertools.combinations(range(size), k))
    worth = normed([max(values[i] for i in chosen) for chosen in sets])
    for i in range(size):
        mine = [w for w, chosen in zip(worth, sets, strict=True) if i in chosen]
        assert found[i] == pytest.approx(mean(mine), abs=1e-9)
    assert sum(found) == pytest.approx(0.0, abs=1e-9)
    assert max(map(abs, found)) <= math.sqrt(size / k - 1) + 1e-9


@given(right_or_wrong)
def test_pass_at_one_is_the_normalised_advantage_of_right_or_wrong_scores(values: list[float]) -> None:
    found = advantages.pass_at_k(wide(values), pass_k=1)
    assert found.tolist() == pytest.approx(advantages.group_norm(wide(values)).tolist(), abs=1e-9)


def test_pass_at_k_counts_one_half_as_right_and_refuses_a_set_that_the_group_cannot_fill() -> None:
    found = advantages.pass_at_k(wide([0.5, 0.49, 0.0, 0.9]), pass_k=2)
    assert found.tolist() == advantages.pass_at_k(wide([1.0, 0.0, 0.0, 1.0]), pass_k=2).tolist()
    assert found[0] > 0 > found[1]
    for k in (0, 5):
        with pytest.raises(ValueError, match=f"pass_k is {k}.*4 responses"):
            advantages.pass_at_k(wide([0.0, 0.0, 1.0, 1.0]), pass_k=k)


@given(st.integers(2, 6), st.integers(1, 4), st.data())
def test_component_norm_adds_up_normalised_components(size: int, count: int, data: st.DataObject) -> None:
    columns = [data.draw(st.lists(real, min_size=size, max_size=size)) for _ in range(count)]
    weights = data.draw(st.lists(real, min_size=count, max_size=count))
    parts = wide(columns[0]).new_tensor(columns).T
    found = advantages.component_norm(parts, wide(weights)).tolist()
    each = [normed(column) for column in columns]
    expected = [sum(w * column[i] for w, column in zip(weights, each, strict=True)) for i in range(size)]
    assert found == pytest.approx(expected, abs=1e-9)
    assert max(map(abs, found)) <= sum(map(abs, weights)) * math.sqrt(size - 1) + 1e-9
    stretched = parts * torch.arange(1, count + 1, dtype=torch.float64) + 2
    assert advantages.component_norm(stretched, wide(weights)).tolist() == pytest.approx(expected, abs=1e-9)


def test_a_component_with_a_large_spread_does_not_drown_a_small_one() -> None:
    parts = torch.tensor([[0.0, 0.01], [1000.0, 0.0], [0.0, 0.0], [1000.0, 0.01]], dtype=torch.float64)
    assert advantages.component_norm(parts, wide([1.0, 1.0])).tolist() == pytest.approx([0.0, 0.0, -2.0, 2.0])


@given(steps)
def test_batch_std_centres_by_group_and_scales_by_the_whole_step(rows: list[tuple[float, int]]) -> None:
    values, ids = [r for r, _ in rows], [g for _, g in rows]
    scores, groups = wide(values), torch.tensor(ids)
    found = advantages.batch_std(scores, groups)
    scale = spread(values) if max(values) > min(values) else 1.0
    for i, (r, g) in enumerate(rows):
        own = [v for v, other in rows if other == g]
        assert float(found[i]) == pytest.approx((r - mean(own)) / scale, abs=1e-9)
        if max(own) == min(own):
            assert float(found[i]) == 0.0
    assert float(found.abs().max()) <= math.sqrt(len(rows)) + 1e-9
    assert advantages.batch_std(scores * 7 + 3, groups).tolist() == pytest.approx(found.tolist(), abs=1e-9)
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))
    assert advantages.batch_std(scores[order], groups[order]).tolist() == pytest.approx(found[order].tolist())


def test_a_group_that_agrees_teaches_exactly_nothing_among_groups_that_do_not() -> None:
    scores, groups = torch.tensor([0.1, 5.0] * 7), torch.tensor([4, 2] * 7)
    scores[-1] = -3.0
    found = advantages.batch_std(scores, groups)
    assert found[groups == 4].tolist() == [0.0] * 7
    assert bool(found[groups == 2].all())


@given(groups_of_scores)
def test_batch_std_of_a_step_of_one_group_is_the_normalised_group(values: list[float]) -> None:
    found = advantages.batch_std(wide(values), torch.full((len(values),), 3))
    assert found.tolist() == pytest.approx(advantages.group_norm(wide(values)).tolist(), abs=1e-12)


@given(groups_of_scores)
def test_leave_one_out_is_a_scaled_mean_baseline(values: list[float]) -> None:
    size = len(values)
    scaled = advantages.group_mean(wide(values)) * size / (size - 1)
    assert advantages.leave_one_out(wide(values)).tolist() == pytest.approx(scaled.tolist(), abs=1e-9)
    others = [v - mean(values[:i] + values[i + 1 :]) for i, v in enumerate(values)]
    assert scaled.tolist() == pytest.approx(others, abs=1e-9)


in_the_group: dict[str, Callable[[Tensor], Tensor]] = {
    "group_mean": advantages.group_mean,
    "group_norm": advantages.group_norm,
    "leave_one_out": advantages.leave_one_out,
    "length_weighted": lambda s: advantages.length_weighted(s, torch.arange(1, len(s) + 1)),
    "mean_scaled": lambda s: advantages.mean_scaled(s.abs()),
    "pass_at_k": lambda s: advantages.pass_at_k(s, pass_k=3),
    "component_norm": lambda s: advantages.component_norm(torch.stack([s, s * 3], dim=1), torch.tensor([0.7, 0.3])),
    "batch_std": lambda s: advantages.batch_std(s, torch.arange(len(s)) % 2),
}


@pytest.mark.parametrize("name", in_the_group)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [3, 7, 10])
def test_equal_scores_teach_exactly_nothing(name: str, dtype: torch.dtype, size: int) -> None:
    for value in (0.1, 1 / 3, 1e-7, 0.7, -2.7, 0.0):
        found = in_the_group[name](torch.full((size,), value, dtype=dtype))
        assert found.tolist() == [0.0] * size
        assert found.dtype == dtype


@pytest.mark.parametrize("name", in_the_group)
def test_unequal_scores_teach_something_and_keep_their_precision(name: str) -> None:
    values = [1.0, 0.0, 0.0, 1.0, 0.0]
    found = in_the_group[name](wide(values))
    assert found.dtype == torch.float64
    assert found[0] > 0 > found[1]
    # What single precision gives agrees to single precision, and not better: neither was computed in the other's.
    single = in_the_group[name](torch.tensor(values, dtype=torch.float32)).double()
    torch.testing.assert_close(single, found, rtol=1e-5, atol=1e-5)


def test_scores_that_differ_by_rounding_alone_are_not_blown_up_by_the_step_or_a_component() -> None:
    nearly = wide([0.3, 0.3 + 1e-12, 0.3])
    assert advantages.batch_std(nearly, torch.zeros(3, dtype=torch.long)).tolist() == [0.0] * 3
    assert advantages.component_norm(nearly[:, None], wide([1.0])).tolist() == [0.0] * 3
