"""The level of the log-ratio against loops over the tokens of each sequence."""

from __future__ import annotations

import numpy
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from posttrain.objectives import ratios, surrogates
from tests.objectives.ragged import Batch, batches, build, garbage

LEVELS = [ratios.token, ratios.sequence, ratios.sequence_token, ratios.sequence_sum]


def slow_value(level: object, batch: Batch, i: int) -> float:
    own = [float(batch.log_ratio[j]) for j in batch.members(i)]
    if level is ratios.token:
        return float(batch.log_ratio[i])
    if level is ratios.sequence_sum:
        return sum(own)
    return sum(own) / len(own) if own else 0.0


def slow_gradient(level: object, batch: Batch, i: int, weights: list[float]) -> float:
    """Of the weighted sum over all tokens' outputs, in the log-ratio of token i."""
    if level in (ratios.token, ratios.sequence_token):
        return weights[i]
    if not batch.tokens.mask[i]:
        return 0.0
    of_sequence = sum(w for j, w in enumerate(weights) if batch.tokens.segment[j] == batch.tokens.segment[i])
    return of_sequence if level is ratios.sequence_sum else of_sequence / len(batch.members(i))


def run(level: object, batch: Batch, log_ratio: Tensor) -> Tensor:
    return level(log_ratio, batch.tokens.mask, batch.tokens.segment)


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=60)
@given(batch=batches())
def test_value_and_gradient_are_those_of_the_loops(level: object, batch: Batch) -> None:
    log_ratio = batch.log_ratio.clone().requires_grad_()
    found = run(level, batch, log_ratio)
    inside = batch.masked()
    slow = [slow_value(level, batch, i) for i in inside]
    numpy.testing.assert_allclose(found.detach()[batch.tokens.mask].tolist(), slow, atol=1e-12)
    weights = batch.advantages
    (gradient,) = torch.autograd.grad((found * weights).sum(), log_ratio)
    expected = [slow_gradient(level, batch, i, weights.tolist()) for i in range(len(weights))]
    numpy.testing.assert_allclose(gradient.tolist(), expected, atol=1e-12)


@pytest.mark.parametrize("level", LEVELS)
@settings(max_examples=40)
@given(batch=batches())
def test_what_others_said_does_not_move_the_policys_ratio(level: object, batch: Batch) -> None:
    clean, dirty = run(level, batch, batch.log_ratio), run(level, batch, garbage(batch).log_ratio)
    assert clean[batch.tokens.mask].tolist() == dirty[batch.tokens.mask].tolist()


def test_a_sequence_without_a_token_of_the_policy_is_at_ratio_one() -> None:
    batch = garbage(build([2, 3], [False, False, True, True, False], seed=0, scale=1.0))
    for level in (ratios.sequence, ratios.sequence_token, ratios.sequence_sum):
        found = run(level, batch, batch.log_ratio)
        assert bool(found.isfinite().all())
        assert found[:2].tolist() == [0.0, 0.0]


def test_nothing_at_all_is_no_error() -> None:
    empty = torch.zeros(0, dtype=torch.float64)
    for level in LEVELS:
        assert level(empty, empty.bool(), empty.long()).tolist() == []


@pytest.mark.parametrize("level", LEVELS)
def test_at_length_one_every_level_is_the_token_s(level: object) -> None:
    batch = build([1] * 6, [True] * 6, seed=1, scale=0.5)
    assert run(level, batch, batch.log_ratio).tolist() == batch.log_ratio.tolist()


@pytest.mark.parametrize("level", [ratios.token, ratios.sequence, ratios.sequence_sum])
def test_gradients_agree_with_finite_differences(level: object) -> None:
    batch = build([1, 4, 2, 3], [True, True, False, True, True, False, False, True, True, True], seed=2, scale=0.5)
    assert torch.autograd.gradcheck(lambda x: run(level, batch, x), (batch.log_ratio.clone().requires_grad_(),))


@pytest.mark.parametrize("objective", [surrogates.reinforce, surrogates.clip, surrogates.soft_gate, surrogates.drift])
@settings(max_examples=40)
@given(batch=batches(shared=True))
def test_one_advantage_per_sequence_makes_both_sequence_levels_the_same_update(objective: object, batch: Batch) -> None:
    def update(level: object) -> tuple[Tensor, Tensor]:
        log_ratio = batch.log_ratio.clone().requires_grad_()
        loss = objective(run(level, batch, log_ratio), batch.advantages) * batch.tokens.mask
        return loss.detach(), torch.autograd.grad(loss.sum(), log_ratio)[0]

    for one, other in zip(update(ratios.sequence), update(ratios.sequence_token), strict=True):
        numpy.testing.assert_allclose(one.tolist(), other.tolist(), atol=1e-12)


def test_with_an_advantage_per_token_each_token_is_moved_by_its_own() -> None:
    log_ratio = torch.tensor([0.1, -0.3], dtype=torch.float64, requires_grad=True)
    mask, segment = torch.ones(2, dtype=torch.bool), torch.zeros(2, dtype=torch.long)
    weights = torch.tensor([5.0, -1.0], dtype=torch.float64)
    (own,) = torch.autograd.grad((ratios.sequence_token(log_ratio, mask, segment) * weights).sum(), log_ratio)
    (common,) = torch.autograd.grad((ratios.sequence(log_ratio, mask, segment) * weights).sum(), log_ratio)
    assert own.tolist() == [5.0, -1.0]
    assert common.tolist() == [2.0, 2.0]


def group_names(batch: Batch, seed: int) -> Tensor:
    """Sequences to groups, in any order and under any names."""
    count = int(batch.tokens.segment.max()) + 1
    return torch.tensor(numpy.random.default_rng(seed).choice([9, -4, 2], size=count))


def weight(batch: Batch, i: int, discount: float | None, ld_alpha: float, groups: Tensor) -> float:
    """What a masked token counts: by its place among those of its sequence, and by the shortest of the group."""
    place = batch.members(i).index(i)
    if discount is not None:
        return discount**place
    segment = batch.tokens.segment
    together = [s for s in range(len(groups)) if groups[s] == groups[segment[i]]]
    shortest = min(sum(1 for j in batch.masked() if segment[j] == s) for s in together)
    return 1.0 if place < shortest else ld_alpha


def whole(batch: Batch, log_ratio: Tensor, discount: float | None, ld_alpha: float, groups: Tensor) -> Tensor:
    mask, segment = batch.tokens.mask, batch.tokens.segment
    if discount is not None:
        return ratios.discounted_sum(log_ratio, mask, segment, discount=discount)
    return ratios.desensitised(log_ratio, mask, segment, groups, ld_alpha=ld_alpha)


WEIGHED = pytest.mark.parametrize(("discount", "ld_alpha"), [(1.0, 0), (0.9, 0), (0.0, 0), (None, 0.5), (None, 0.0)])


@WEIGHED
@settings(max_examples=60)
@given(batch=batches())
def test_weighted_sums_are_those_of_the_loops(discount: float | None, ld_alpha: float, batch: Batch) -> None:
    groups, mask, segment = group_names(batch, 0), batch.tokens.mask, batch.tokens.segment
    inside = batch.masked()
    weights = {i: weight(batch, i, discount, ld_alpha, groups) for i in inside}
    log_ratio = batch.log_ratio.clone().requires_grad_()
    found = whole(batch, log_ratio, discount, ld_alpha, groups)
    slow = [sum(weights[j] * float(batch.log_ratio[j]) for j in batch.members(i)) for i in inside]
    numpy.testing.assert_allclose(found.detach()[mask].tolist(), slow, atol=1e-12)
    (gradient,) = torch.autograd.grad((found * batch.advantages).sum(), log_ratio)
    of_sequence = [float(batch.advantages[segment == segment[i]].sum()) for i in range(len(segment))]
    expected = [weights[i] * of_sequence[i] if i in weights else 0.0 for i in range(len(segment))]
    numpy.testing.assert_allclose(gradient.tolist(), expected, atol=1e-12)
    dirty = whole(batch, garbage(batch).log_ratio, discount, ld_alpha, groups)
    assert dirty[mask].tolist() == found[mask].tolist()


@settings(max_examples=40)
@given(batch=batches())
def test_without_discount_or_desensitising_they_are_the_plain_sum(batch: Batch) -> None:
    mask, segment, groups = batch.tokens.mask, batch.tokens.segment, group_names(batch, 1)
    plain = ratios.sequence_sum(batch.log_ratio, mask, segment).tolist()
    assert ratios.discounted_sum(batch.log_ratio, mask, segment).tolist() == plain
    assert ratios.desensitised(batch.log_ratio, mask, segment, groups, ld_alpha=1.0).tolist() == plain
    alone = torch.arange(len(groups))
    assert ratios.desensitised(batch.log_ratio, mask, segment, alone, ld_alpha=0.1).tolist() == plain


def test_a_pair_s_longer_response_counts_less_beyond_the_shorter_one() -> None:
    ones, mask = torch.ones(6, dtype=torch.float64), torch.tensor([True, True, True, False, True, True])
    segment, groups = torch.tensor([0, 0, 1, 1, 1, 1]), torch.tensor([4, 4])
    found = ratios.desensitised(ones, mask, segment, groups)
    assert found.tolist() == [2.0, 2.0, 2.5, 2.5, 2.5, 2.5]
    assert ratios.discounted_sum(ones, mask, segment, discount=0.5).tolist() == [1.5] * 2 + [1.75] * 4


@WEIGHED
def test_tokens_of_several_sequences_may_stand_among_each_other(discount: float | None, ld_alpha: float) -> None:
    batch = build([1, 4, 2, 3], [True, True, False, True, True, False, False, True, True, True], seed=2, scale=0.5)
    order = torch.tensor([5, 1, 7, 0, 2, 8, 3, 6, 9, 4])
    mixed = Batch(
        batch.log_ratio[order],
        batch.advantages,
        batch.tokens._replace(mask=batch.tokens.mask[order], segment=batch.tokens.segment[order]),
    )
    groups = torch.tensor([3, 1, 1, 3])
    plain = whole(batch, batch.log_ratio, discount, ld_alpha, groups)
    numpy.testing.assert_allclose(
        whole(mixed, mixed.log_ratio, discount, ld_alpha, groups).tolist(), plain[order].tolist(), atol=1e-15
    )


def test_weighted_sums_of_nothing_are_no_error() -> None:
    empty = torch.zeros(0, dtype=torch.float64)
    assert ratios.discounted_sum(empty, empty.bool(), empty.long()).tolist() == []
    assert ratios.desensitised(empty, empty.bool(), empty.long(), empty.long()).tolist() == []
