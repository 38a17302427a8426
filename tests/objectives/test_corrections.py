"""Weights for engine/trainer mismatch against loops over tokens and sequences."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from posttrain.objectives import corrections

Weigh = Callable[..., Tensor]
rows = st.lists(
    st.tuples(st.integers(0, 3), st.booleans(), st.floats(-2, 2, width=32) | st.floats(-0.015625, 0.015625, width=32)),
    min_size=1,
    max_size=16,
)


def slow_none(own: float, sequence: list[float]) -> float:
    return 1.0


def slow_truncated(own: float, sequence: list[float]) -> float:
    return min(math.exp(own), 2.0)


def slow_masked(own: float, sequence: list[float]) -> float:
    return math.exp(own) if math.exp(own) <= 2.0 else 0.0


def slow_two_sided(own: float, sequence: list[float]) -> float:
    return math.exp(own) if 0.5 <= math.exp(own) <= 5.0 else 0.0


def slow_sequence_truncated(own: float, sequence: list[float]) -> float:
    return min(math.prod(math.exp(g) for g in sequence), 2.0)


def slow_sequence_masked(own: float, sequence: list[float]) -> float:
    product = math.prod(math.exp(g) for g in sequence)
    return product if product <= 2.0 else 0.0


def slow_geometric(own: float, sequence: list[float]) -> float:
    mean = math.prod(math.exp(g) for g in sequence) ** (1 / len(sequence))
    return 1.0 if 0.99 <= mean <= 1.01 else 0.0


ALL: list[tuple[Weigh, Callable[[float, list[float]], float]]] = [
    (corrections.none, slow_none),
    (corrections.truncated_importance, slow_truncated),
    (corrections.masked_importance, slow_masked),
    (corrections.two_sided_mask, slow_two_sided),
    (corrections.sequence_truncated, slow_sequence_truncated),
    (corrections.sequence_masked, slow_sequence_masked),
    (corrections.geometric_mask, slow_geometric),
]
every = pytest.mark.parametrize(("weigh", "slow"), ALL, ids=[weigh.__name__ for weigh, _ in ALL])
every_weigh = pytest.mark.parametrize("weigh", [weigh for weigh, _ in ALL])
measuring = pytest.mark.parametrize("weigh", [weigh for weigh, _ in ALL[1:]])


def tokens(values: list[float]) -> tuple[Tensor, Tensor, Tensor]:
    """One sequence, all of it said by the policy."""
    size = len(values)
    wide = torch.tensor(values, dtype=torch.float64)
    return wide, torch.ones(size, dtype=torch.bool), torch.zeros(size, dtype=torch.long)


def near_a_bound(sequence: list[float]) -> bool:
    """Where rounding decides which side of a bound a ratio is on."""
    total = sum(sequence)
    levels = [*sequence, total, total / len(sequence)]
    return any(abs(math.exp(v) - bound) < 1e-9 for v in levels for bound in (0.5, 0.99, 1.01, 2.0, 5.0))


@every
@given(found=rows, garbage=st.sampled_from([0.0, 1e6, -1e6, math.inf, math.nan]))
def test_weights_of_ragged_interleaved_sequences_whatever_lies_outside_the_mask(
    weigh: Weigh, slow: Callable, found: list, garbage: float
) -> None:
    segment = torch.tensor([s for s, _, _ in found])
    mask = torch.tensor([m for _, m, _ in found])
    gap = torch.tensor([g if m else garbage for _, m, g in found], dtype=torch.float64)
    weights = weigh(gap, mask, segment)
    assert weights.shape == gap.shape
    assert bool(weights.isfinite().all())
    for i, (s, m, own) in enumerate(found):
        sequence = [g for other, kept, g in found if other == s and kept]
        if m and not near_a_bound(sequence):
            assert float(weights[i]) == pytest.approx(slow(own, sequence), rel=1e-9)


@every_weigh
def test_weights_never_carry_a_gradient(weigh: Weigh) -> None:
    gap, mask, segment = tokens([0.0, 0.001, -0.001])
    weights = weigh(gap.requires_grad_(), mask, segment)
    assert not weights.requires_grad
    assert bool((weights > 0).all())


@every_weigh
def test_engines_that_agree_weigh_everything_one(weigh: Weigh) -> None:
    assert weigh(*tokens([0.0, 0.0, 0.0])).tolist() == [1.0, 1.0, 1.0]


@measuring
def test_a_gap_that_is_not_a_number_is_not_hidden(weigh: Weigh) -> None:
    assert math.isnan(float(weigh(*tokens([math.nan]))[0]))


@measuring
def test_an_infinite_ratio_meets_the_cap_or_is_masked(weigh: Weigh) -> None:
    assert float(weigh(*tokens([1e4]))[0]) in (0.0, 2.0)


def test_importance_weights_are_the_ratio_up_to_their_cap() -> None:
    gap, mask, segment = tokens([0.0, math.log(1.5), math.log(9.0), -1.0])
    found = corrections.truncated_importance(gap, mask, segment, importance_cap=3.0)
    assert found.tolist() == pytest.approx([1.0, 1.5, 3.0, math.exp(-1)])
    found = corrections.masked_importance(gap, mask, segment, importance_cap=3.0)
    assert found.tolist() == pytest.approx([1.0, 1.5, 0.0, math.exp(-1)])


def test_bounds_belong_to_what_is_kept() -> None:
    gap, mask, segment = tokens([0.0])
    assert corrections.masked_importance(gap, mask, segment, importance_cap=1.0).tolist() == [1.0]
    assert corrections.sequence_masked(gap, mask, segment, importance_cap=1.0).tolist() == [1.0]
    for low, high in ((1.0, 2.0), (0.5, 1.0)):
        two_sided = corrections.two_sided_mask(gap, mask, segment, importance_low=low, importance_high=high)
        geometric = corrections.geometric_mask(gap, mask, segment, geometric_low=low, geometric_high=high)
        assert two_sided.tolist() == geometric.tolist() == [1.0]
    for low, high in ((1.0 + 1e-9, 2.0), (0.5, 1.0 - 1e-9)):
        two_sided = corrections.two_sided_mask(gap, mask, segment, importance_low=low, importance_high=high)
        geometric = corrections.geometric_mask(gap, mask, segment, geometric_low=low, geometric_high=high)
        assert two_sided.tolist() == geometric.tolist() == [0.0]


def test_a_sequence_weighs_the_product_of_its_own_tokens() -> None:
    gap = torch.tensor([0.1, 0.2, 7.0, -0.4, 0.3, 0.8], dtype=torch.float64)
    mask = torch.tensor([True, True, False, True, True, True])
    segment = torch.tensor([0, 0, 0, 1, 1, 2])
    found = corrections.sequence_truncated(gap, mask, segment, importance_cap=2.0).tolist()
    assert found == pytest.approx([math.exp(0.3)] * 3 + [math.exp(-0.1)] * 2 + [2.0])
    found = corrections.sequence_masked(gap, mask, segment, importance_cap=2.0).tolist()
    assert found == pytest.approx([math.exp(0.3)] * 3 + [math.exp(-0.1)] * 2 + [0.0])


def test_the_geometric_mask_does_not_grow_with_length_but_the_product_does() -> None:
    long = tokens([0.005] * 400)
    assert corrections.geometric_mask(*long).tolist() == [1.0] * 400
    assert corrections.sequence_masked(*long).tolist() == [0.0] * 400


def test_a_sequence_without_a_word_of_the_policy_is_finite() -> None:
    gap, mask, segment = torch.tensor([5.0, 1.0]), torch.tensor([False, True]), torch.tensor([0, 1])
    for weigh, _ in ALL:
        assert bool(weigh(gap, mask, segment).isfinite().all())


@given(st.lists(st.floats(0, 2, width=16), min_size=1, max_size=9).filter(any))
def test_effective_sample_size_counts_what_is_left(values: list[float]) -> None:
    found = float(corrections.effective_sample_size(torch.tensor(values, dtype=torch.float64)))
    assert found == pytest.approx(sum(values) ** 2 / (len(values) * sum(v * v for v in values)))
    assert 1 / len(values) - 1e-9 <= found <= 1 + 1e-9


def test_effective_sample_size_at_its_ends() -> None:
    assert float(corrections.effective_sample_size(torch.full((7,), 0.3))) == pytest.approx(1.0)
    assert float(corrections.effective_sample_size(torch.tensor([0.0, 0.0, 5.0, 0.0]))) == pytest.approx(0.25)
    assert float(corrections.effective_sample_size(torch.zeros(3))) == 0.0
    assert math.isnan(float(corrections.effective_sample_size(torch.tensor([1.0, math.nan]))))
