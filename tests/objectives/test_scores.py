"""Losses of a reward model against loops over responses, with gradients worked out by hand, and their laws."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from posttrain.objectives import scores

Loss = Callable[..., Tensor]
Slow = Callable[[list[float], list[float]], tuple[float, list[float]]]
"""One group and one head: what was said and what it is worth, to the loss and its gradient."""

WORTH = st.sampled_from([0.0, 0.25, 0.5, 1.0])
responses = st.lists(
    st.tuples(st.sampled_from([-7, 0, 3, 90]), WORTH, st.lists(st.floats(-4, 4, width=32), min_size=3, max_size=3)),
    min_size=1,
    max_size=12,
)
PAIR = torch.tensor([0, 0])


def wide(numbers: list) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def slow_pairs(r: list[float], s: list[float], margins: bool, centring: float) -> tuple[float, list[float]]:
    pairs = [(i, j) for i in range(len(r)) for j in range(len(r)) if s[i] > s[j]]
    loss, slopes = 0.0, [0.0] * len(r)
    for i, j in pairs:
        p = sigmoid(r[i] - r[j] - (s[i] - s[j]) * margins)
        loss += (-math.log(p) + centring * (r[i] + r[j]) ** 2) / len(pairs)
        for response, sign in ((i, 1), (j, -1)):
            slopes[response] += (sign * (p - 1) + 2 * centring * (r[i] + r[j])) / len(pairs)
    return loss, slopes


def slow_ties(r: list[float], s: list[float], theta: float) -> tuple[float, list[float]]:
    pairs = [(i, j) for i in range(len(r)) for j in range(i)]
    loss, slopes = 0.0, [0.0] * len(r)
    for i, j in pairs:
        x, y = math.exp(r[i]), math.exp(r[j])
        first, second = x / (x + theta * y), y / (theta * x + y)
        tie = (theta**2 - 1) * x * y / ((x + theta * y) * (theta * x + y))
        # d log first / d r_i is 1 - first, and d log second / d r_i is second - 1; a tie has both.
        if s[i] > s[j]:
            said, slope = first, 1 - first
        elif s[i] < s[j]:
            said, slope = second, second - 1
        else:
            said, slope = tie, second - first
        loss -= math.log(said) / len(pairs)
        slopes[i] -= slope / len(pairs)
        slopes[j] += slope / len(pairs)
    return loss, slopes


def slow_list(r: list[float], s: list[float]) -> tuple[float, list[float]]:
    loss, slopes = 0.0, [0.0] * len(r)
    for i in range(len(r)):
        left = [j for j in range(len(r)) if j == i or s[j] < s[i]]
        total = sum(math.exp(r[j]) for j in left)
        loss -= math.log(math.exp(r[i]) / total)
        for j in left:
            slopes[j] += math.exp(r[j]) / total - (j == i)
    return loss, slopes


def slow_gap(r: list[float], s: list[float]) -> tuple[float, list[float]]:
    slopes = [0.0] * len(r)
    if min(s) == max(s):
        return 0.0, slopes
    best, worst = s.index(max(s)), s.index(min(s))
    slopes[best], slopes[worst] = sigmoid(r[best]) - 1, sigmoid(r[worst])
    return -math.log(sigmoid(r[best])) - math.log(1 - sigmoid(r[worst])), slopes


def slow_regression(r: list[float], s: list[float]) -> tuple[float, list[float]]:
    errors = [a - b for a, b in zip(r, s, strict=True)]
    return sum(e * e for e in errors) / len(r), [2 * e / len(r) for e in errors]


def slow_binary(r: list[float], s: list[float]) -> tuple[float, list[float]]:
    p = [sigmoid(x) for x in r]
    each = [-y * math.log(q) - (1 - y) * math.log(1 - q) for q, y in zip(p, s, strict=True)]
    return sum(each) / len(r), [(q - y) / len(r) for q, y in zip(p, s, strict=True)]


CASES: dict[str, tuple[Loss, Slow, int]] = {
    "bradley_terry": (scores.bradley_terry, partial(slow_pairs, margins=False, centring=0.0), 2),
    "centred": (
        partial(scores.bradley_terry, centring=0.3),
        partial(slow_pairs, margins=False, centring=0.3),
        2,
    ),
    "margins": (scores.margin_bradley_terry, partial(slow_pairs, margins=True, centring=0.0), 2),
    "margins, centred": (
        partial(scores.margin_bradley_terry, centring=0.3),
        partial(slow_pairs, margins=True, centring=0.3),
        2,
    ),
    "ties": (scores.bradley_terry_ties, partial(slow_ties, theta=1.5), 2),
    "more ties": (partial(scores.bradley_terry_ties, tie_theta=4.0), partial(slow_ties, theta=4.0), 2),
    "plackett_luce": (scores.plackett_luce, slow_list, 2),
    "gap": (scores.gap, slow_gap, 2),
    "regression": (scores.regression, slow_regression, 1),
    "binary": (scores.binary, slow_binary, 1),
}
every = pytest.mark.parametrize("name", list(CASES))
of_differences = pytest.mark.parametrize("name", ["bradley_terry", "margins", "ties", "more ties", "plackett_luce"])
comparing = pytest.mark.parametrize("name", [name for name, case in CASES.items() if case[2] == 2])


def gradient_of(losses: Tensor, outputs: Tensor) -> Tensor:
    """Of the losses weighed 1, 2, 3, ... so that a gradient under the wrong group shows."""
    weights = torch.arange(1, len(losses) + 1, dtype=losses.dtype)
    return torch.autograd.grad((losses * weights).sum(), outputs)[0]


class TestAgainstLoops:
    @every
    @given(rows=responses, heads=st.sampled_from([1, 3]))
    def test_value_and_gradient_over_ragged_interleaved_groups_and_heads(
        self, name: str, rows: list, heads: int
    ) -> None:
        loss, slow, least = CASES[name]
        names, worth, said = (list(column) for column in zip(*rows, strict=True))
        expected, slopes = [], torch.zeros(len(rows), heads, dtype=torch.float64)
        for k, group in enumerate(sorted(set(names)), start=1):
            members, total = [i for i, n in enumerate(names) if n == group], 0.0
            for head in range(heads):
                if len(members) >= least:
                    value, slope = slow([said[i][head] for i in members], [worth[i] for i in members])
                    total += value / heads
                    slopes[members, head] = k * wide(slope) / heads
            expected.append(total)
        outputs = wide([row[:heads] for row in said]).requires_grad_()
        found = loss(outputs, wide(worth), torch.tensor(names))
        assert found.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)
        torch.testing.assert_close(gradient_of(found, outputs), slopes, rtol=1e-9, atol=1e-9)

    @every
    def test_finite_differences(self, name: str) -> None:
        torch.manual_seed(0)
        outputs = torch.randn(9, 2, dtype=torch.float64).requires_grad_()
        worth, groups = wide([0.2, 1, 0.2, 0.7, 0, 0.9, 0.4, 1, 0.1]), torch.tensor([2, 0, 2, 5, 0, 2, 2, 0, 7])
        assert torch.autograd.gradcheck(lambda x: CASES[name][0](x, worth, groups), (outputs,))

    @comparing
    def test_groups_of_one_give_exactly_nothing_and_can_be_differentiated(self, name: str) -> None:
        outputs = torch.tensor([[3.0], [-2.0]]).requires_grad_()
        found = CASES[name][0](outputs, torch.tensor([1.0, 0.0]), torch.tensor([4, 2]))
        assert found.tolist() == [0.0, 0.0]
        assert gradient_of(found, outputs).tolist() == [[0.0], [0.0]]

    @pytest.mark.parametrize("name", [n for n in CASES if "ties" not in n and CASES[n][2] == 2])
    def test_equal_scores_prefer_nothing(self, name: str) -> None:
        outputs = torch.tensor([[3.0], [-2.0], [0.5], [1.0], [2.0]]).requires_grad_()
        found = CASES[name][0](outputs, torch.tensor([0.1, 0.1, 0.1, 1, 0]), torch.tensor([0, 0, 0, 1, 1]))
        assert found[0].item() == 0.0
        assert found[1].item() > 0
        assert gradient_of(found, outputs)[:3].flatten().tolist() == [0.0, 0.0, 0.0]

    @every
    @pytest.mark.parametrize("size", [1e2, 1e4])
    def test_what_is_far_off_has_a_finite_loss_and_a_gradient_back(self, name: str, size: float) -> None:
        outputs = torch.tensor([[-size], [size]]).requires_grad_()  # the worse response is said to be much better
        found = CASES[name][0](outputs, torch.tensor([1.0, 0.0]), PAIR)
        slopes = gradient_of(found, outputs)
        assert bool(found.isfinite())
        assert bool(slopes.isfinite().all())
        assert slopes[0, 0] < -0.1
        assert slopes[1, 0] > 0.1

    @every
    def test_half_precision_is_read_in_single(self, name: str) -> None:
        outputs = torch.tensor([[1.3], [0.2]], dtype=torch.bfloat16)
        found = CASES[name][0](outputs, wide([1.0, 0.25]), PAIR)
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, CASES[name][0](outputs.float(), wide([1.0, 0.25]), PAIR))


class TestLaws:
    @of_differences
    @given(rows=responses, shift=st.floats(-30, 30))
    def test_a_constant_added_to_a_group_changes_nothing(self, name: str, rows: list, shift: float) -> None:
        names, worth, said = (list(column) for column in zip(*rows, strict=True))
        outputs, groups = wide(said), torch.tensor(names)
        moved = outputs + shift * groups[:, None] / 90
        loss = CASES[name][0]
        torch.testing.assert_close(loss(moved, wide(worth), groups), loss(outputs, wide(worth), groups))

    @pytest.mark.parametrize("name", ["centred", "margins, centred", "gap", "regression", "binary"])
    def test_the_others_know_where_zero_is(self, name: str) -> None:
        outputs, worth = wide([[0.7], [0.2]]), wide([1.0, 0.0])
        assert float((CASES[name][0](outputs + 1, worth, PAIR) - CASES[name][0](outputs, worth, PAIR)).abs()) > 0.01

    @every
    @given(rows=responses)
    def test_the_order_of_the_responses_does_not_matter(self, name: str, rows: list) -> None:
        names, worth, said = (list(column) for column in zip(*rows, strict=True))
        if name == "gap":
            worth = [w + i / 1000 for i, w in enumerate(worth)]  # of several best the first counts
        given_order = [wide(said), wide(worth), torch.tensor(names)]
        turned = [column.flip(0) for column in given_order]
        torch.testing.assert_close(CASES[name][0](*turned), CASES[name][0](*given_order))

    @given(st.floats(-5, 5), st.floats(-5, 5), st.floats(1.001, 50))
    def test_better_worse_and_a_tie_add_up_to_one(self, first: float, second: float, theta: float) -> None:
        outputs, losses = wide([[first], [second]]), []
        for worth in ([1.0, 0.0], [0.0, 1.0], [0.5, 0.5]):
            losses.append(scores.bradley_terry_ties(outputs, wide(worth), PAIR, tie_theta=theta))
        assert sum(float((-loss).exp()) for loss in losses) == pytest.approx(1.0, abs=1e-12)

    def test_a_threshold_that_leaves_no_ties_is_refused_and_near_it_wins_are_those_of_bradley_terry(self) -> None:
        outputs, worth = wide([[0.3], [1.1]]), wide([1.0, 0.0])
        with pytest.raises(ValueError, match=r"greater than 1, not 1\.0"):
            scores.bradley_terry_ties(outputs, worth, PAIR, tie_theta=1.0)
        near = scores.bradley_terry_ties(outputs, worth, PAIR, tie_theta=1 + 1e-9)
        # The threshold is log(1 + 1e-9), and the slope at most 1.
        torch.testing.assert_close(near, scores.bradley_terry(outputs, worth, PAIR), atol=2e-9, rtol=0)

    @given(st.lists(st.floats(-5, 5), min_size=2, max_size=2), st.floats(0.01, 9))
    def test_a_list_of_two_is_a_pair(self, said: list, gap: float) -> None:
        outputs, worth = wide(said)[:, None], wide([gap, 0.0])
        torch.testing.assert_close(
            scores.plackett_luce(outputs, worth, PAIR), scores.bradley_terry(outputs, worth, PAIR)
        )

    def test_the_probabilities_of_all_orders_of_a_list_add_up_to_one(self) -> None:
        outputs, groups = wide([[0.3], [-1.2], [2.0], [0.4]]), torch.zeros(4, dtype=torch.long)
        orders = itertools.permutations([0.0, 1.0, 2.0, 3.0])
        shares = [float((-scores.plackett_luce(outputs, wide(list(order)), groups)).exp()) for order in orders]
        assert sum(shares) == pytest.approx(1.0, abs=1e-12)

    def test_centring_draws_the_mean_of_a_pair_to_zero_and_leaves_its_gap(self) -> None:
        outputs = wide([[4.0], [1.0]]).requires_grad_()
        free = gradient_of(scores.bradley_terry(outputs, wide([1.0, 0.0]), PAIR), outputs)
        centred = gradient_of(scores.bradley_terry(outputs, wide([1.0, 0.0]), PAIR, centring=0.1), outputs)
        torch.testing.assert_close(centred - free, wide([[1.0], [1.0]]))

    @pytest.mark.parametrize("worth", [[1.5, 0.0], [-0.1, 1.0], [math.nan, 1.0]])
    def test_binary_refuses_scores_that_are_no_probabilities(self, worth: list[float]) -> None:
        with pytest.raises(ValueError, match="from 0 to 1"):
            scores.binary(wide([[0.0], [0.0]]), wide(worth), PAIR)

    @given(st.floats(-4, 4), st.floats(-3, 3), st.floats(-3, 3))
    def test_a_margin_of_its_own_may_be_against_the_preference(self, gap: float, r: float, q: float) -> None:
        outputs, worth, offsets = wide([[r], [q]]), wide([1.0, 0.0]), wide([gap - 0.5, -0.5])
        found = scores.margin_bradley_terry(outputs, worth, PAIR, offsets=offsets)
        assert float(found) == pytest.approx(math.log1p(math.exp(q - r + gap)), abs=1e-9)

    def test_scores_carry_no_gradient(self) -> None:
        for loss, _, _ in CASES.values():
            worth = wide([1.0, 0.0]).requires_grad_()
            found = loss(wide([[0.3], [0.1]]).requires_grad_(), worth, PAIR)
            assert torch.autograd.grad(found.sum(), worth, allow_unused=True) == (None,)
