"""Losses of ranked lists against loops with gradients worked out by hand, at two responses against those of pairs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from posttrain.objectives import lists
from posttrain.objectives.contrasts import best_worst_sigmoid
from tests.objectives.test_contrasts import gradient_of, responses, wide

Loss = Callable[..., Tensor]
Slow = Callable[..., tuple[float, list[float]]]


def softplus(x: float) -> float:
    """log(1 + e^x), which is -log sigmoid(-x)."""
    return x + math.log1p(math.exp(-x)) if x > 0 else math.log1p(math.exp(x))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def softmax(logits: list[float]) -> list[float]:
    odds = [math.exp(x - max(logits)) for x in logits]
    return [x / sum(odds) for x in odds]


def pairs_of(r: list[float]) -> list[tuple[int, int]]:
    return [(i, j) for i in range(len(r)) for j in range(len(r)) if r[i] > r[j]]


def slow_logistic(lr: list[float], r: list[float], beta: float) -> tuple[float, list[float]]:
    loss, gradient, pairs = 0.0, [0.0] * len(lr), pairs_of(r)
    for i, j in pairs:
        gap = beta * (lr[i] - lr[j])
        loss += softplus(-gap) / len(pairs)
        gradient[i] -= beta * sigmoid(-gap) / len(pairs)
        gradient[j] += beta * sigmoid(-gap) / len(pairs)
    return loss, gradient


def slow_hinge(lr: list[float], r: list[float], beta: float) -> tuple[float, list[float]]:
    loss, gradient, pairs = 0.0, [0.0] * len(lr), pairs_of(r)
    for i, j in pairs:
        short = 1 - (beta * lr[i] - beta * lr[j])
        if short > 0:
            loss += short / len(pairs)
            gradient[i] -= beta / len(pairs)
            gradient[j] += beta / len(pairs)
    return loss, gradient


def ranked(lr: list[float], r: list[float]) -> list[int]:
    """Places from 1: the larger log-ratio, then the higher score, then the earlier one."""
    order = sorted(range(len(lr)), key=lambda i: (-lr[i], -r[i], i))
    return [order.index(i) + 1 for i in range(len(lr))]


def gain_of(r: list[float], ranks: list[int]) -> float:
    return sum((2**s - 1) / math.log(1 + place) for s, place in zip(r, ranks, strict=True))


def slow_lambda(lr: list[float], r: list[float], beta: float) -> tuple[float, list[float]]:
    """The weight of a pair is what the discounted gain changes by when the two swap places."""
    loss, gradient, ranks = 0.0, [0.0] * len(lr), ranked(lr, r)
    for i, j in pairs_of(r):
        swapped = list(ranks)
        swapped[i], swapped[j] = ranks[j], ranks[i]
        weight = abs(gain_of(r, swapped) - gain_of(r, ranks))
        gap = beta * (lr[i] - lr[j])
        loss += weight * softplus(-gap)
        gradient[i] -= weight * beta * sigmoid(-gap)
        gradient[j] += weight * beta * sigmoid(-gap)
    return loss, gradient


def slow_mle(lr: list[float], r: list[float], beta: float) -> tuple[float, list[float]]:
    loss, gradient = 0.0, [0.0] * len(lr)
    for i in range(len(lr)):
        left = [i, *(j for j in range(len(lr)) if r[j] < r[i])]
        chances = softmax([beta * lr[j] for j in left])
        loss -= math.log(chances[0])
        for j, chance in zip(left, chances, strict=True):
            gradient[j] += beta * (chance - (j == i))
    return loss, gradient


def slow_k_way(lr: list[float], r: list[float], beta: float, cold: float = 1.0) -> tuple[float, list[float]]:
    p, q = softmax([s / cold for s in r]), softmax([beta * x for x in lr])
    return -sum(a * math.log(b) for a, b in zip(p, q, strict=True)), [beta * (b - a) for a, b in zip(p, q, strict=True)]


def slow_reverse(lr: list[float], p: list[float], beta: float) -> tuple[float, list[float]]:
    q = softmax([beta * x for x in lr])
    apart = [math.log(b / a) for a, b in zip(p, q, strict=True)]
    loss = sum(b * x for b, x in zip(q, apart, strict=True))
    return loss, [beta * b * (x - loss) for b, x in zip(q, apart, strict=True)]


def slow_exo(lr: list[float], r: list[float], beta: float, cold: float = 1.0) -> tuple[float, list[float]]:
    return slow_reverse(lr, softmax([s / cold for s in r]), beta)


def slow_best(lr: list[float], r: list[float], beta: float, wrong: float = 1e-3) -> tuple[float, list[float]]:
    if min(r) == max(r):
        return 0.0, [0.0] * len(r)
    best = r.index(max(r))
    return slow_reverse(lr, [1 - wrong if i == best else wrong / (len(r) - 1) for i in range(len(r))], beta)


ALL: list[tuple[Loss, Slow, dict[str, float]]] = [
    (lists.pairwise_logistic, slow_logistic, {}),
    (lists.pairwise_hinge, slow_hinge, {}),
    (lists.lambda_rank, slow_lambda, {}),
    (lists.list_mle, slow_mle, {}),
    (lists.k_way, slow_k_way, {"target_temperature": 0.4}),
    (lists.exo, slow_exo, {"target_temperature": 0.4}),
    (lists.exo_best, slow_best, {"label_smoothing": 0.2}),
]
NAMES = [entry[0].__name__ for entry in ALL]
every = pytest.mark.parametrize(("loss", "slow", "more"), ALL, ids=NAMES)
every_loss = pytest.mark.parametrize("loss", [entry[0] for entry in ALL], ids=NAMES)
needs_order = pytest.mark.parametrize("loss", [entry[0] for entry in ALL if entry[0] not in (lists.k_way, lists.exo)])


class TestAgainstLoops:
    @every
    @given(rows=responses, beta=st.sampled_from([None, 0.3, 2.0]))
    def test_value_and_gradient_over_ragged_interleaved_groups_with_ties(
        self, loss: Loss, slow: Slow, more: dict[str, float], rows: list, beta: float | None
    ) -> None:
        """Without settings, the defaults: beta .1, temperature 1, smoothing .001."""
        names, r, lr = (list(column) for column in zip(*rows, strict=True))
        params: dict[str, Any] = {} if beta is None else {"contrast_beta": beta, **more}
        expected, gradient = [], [0.0] * len(rows)
        for k, group in enumerate(sorted(set(names)), start=1):
            members = [i for i, n in enumerate(names) if n == group]
            value, slopes = 0.0, [0.0]
            if len(members) > 1:
                settings = (0.1,) if beta is None else (beta, *more.values())
                value, slopes = slow([lr[i] for i in members], [r[i] for i in members], *settings)
            expected.append(value)
            for i, slope in zip(members, slopes, strict=True):
                gradient[i] = k * slope
        log_ratios = wide(lr).requires_grad_()
        found = loss(log_ratios, wide(r), torch.tensor(names), **params)
        assert found.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)
        assert gradient_of(found, log_ratios) == pytest.approx(gradient, rel=1e-9, abs=1e-9)

    @every
    def test_finite_differences(self, loss: Loss, slow: Slow, more: dict[str, float]) -> None:
        torch.manual_seed(0)
        log_ratios = torch.randn(9, dtype=torch.float64).requires_grad_()
        scores, groups = torch.randn(9, dtype=torch.float64), torch.tensor([2, 0, 2, 5, 0, 2, 2, 0, 7])
        assert torch.autograd.gradcheck(lambda x: loss(x, scores, groups, contrast_beta=0.7, **more), (log_ratios,))

    @every_loss
    def test_groups_of_one_and_no_group_at_all_give_nothing(self, loss: Loss) -> None:
        log_ratios = torch.tensor([3.0, -2.0, 0.5]).requires_grad_()
        found = loss(log_ratios, torch.tensor([1.0, 0.0, 4.0]), torch.tensor([4, 2, 9]))
        assert found.tolist() == [0.0] * 3
        assert gradient_of(found, log_ratios) == [0.0] * 3
        empty = torch.zeros(0)
        assert loss(empty, empty, torch.zeros(0, dtype=torch.long)).shape == (0,)

    @every_loss
    def test_the_order_of_responses_only_orders_the_gradient(self, loss: Loss) -> None:
        torch.manual_seed(1)
        lr, r, groups = torch.randn(8).double(), torch.randn(8).double(), torch.tensor([1, 1, 1, 0, 0, 2, 2, 2])
        lr[5:] = 0.0  # A start from the reference: nothing but the scores orders this list.
        order = torch.tensor([5, 3, 0, 7, 1, 6, 4, 2])
        first, second = lr.clone().requires_grad_(), lr[order].clone().requires_grad_()
        one, two = loss(first, r, groups), loss(second, r[order], groups[order])
        torch.testing.assert_close(one, two)
        torch.testing.assert_close(wide(gradient_of(one, first))[order], wide(gradient_of(two, second)))

    @every_loss
    def test_scores_are_data(self, loss: Loss) -> None:
        scores = torch.tensor([1.0, 0.0, 0.5]).requires_grad_()
        loss(torch.tensor([0.1, 0.2, 0.3]).requires_grad_(), scores, torch.zeros(3, dtype=torch.long)).sum().backward()
        assert scores.grad is None

    @every_loss
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_far_log_ratios_give_finite_losses_and_a_way_back(self, loss: Loss, dtype: torch.dtype) -> None:
        """The best of four is at -1e4 and the worst at 1e4, in fp32 too; then both are where they should be."""
        scores, groups = torch.tensor([1.0, 0.2, 0.5, 0.0], dtype=dtype), torch.zeros(4, dtype=torch.long)
        for wrong, sign in ((True, -1.0), (False, 1.0)):
            log_ratios = (sign * torch.tensor([1e4, 0.0, 3.0, -1e4], dtype=dtype)).requires_grad_()
            found = loss(log_ratios, scores, groups)
            slopes = gradient_of(found, log_ratios)
            assert bool(found.isfinite().all())
            assert all(math.isfinite(s) for s in slopes)
            # A reverse KL has no slope where the policy is certain, right or wrong; see the paper's smoothing.
            if wrong and loss not in (lists.exo, lists.exo_best):
                assert slopes[0] < -0.01
                assert slopes[3] > 0.01


def of_pair(loss: Loss, lr: list[float], r: list[float], **params: float) -> tuple[float, list[float]]:
    log_ratios = wide(lr).requires_grad_()
    found = loss(log_ratios, wide(r), torch.tensor([0, 0]), **params)
    return float(found.detach()), gradient_of(found, log_ratios)


def alike(one: tuple[float, list[float]], two: tuple[float, list[float]], scale: float = 1.0) -> None:
    assert one[0] == pytest.approx(scale * two[0], rel=1e-9, abs=1e-12)
    assert one[1] == pytest.approx([scale * s for s in two[1]], rel=1e-9, abs=1e-12)


numbers = st.floats(-3, 3, width=32)
several = st.lists(st.tuples(numbers, numbers), min_size=2, max_size=7)
betas = st.sampled_from([0.1, 0.5, 3.0])


class TestTwoResponses:
    @given(numbers, numbers, betas, st.sampled_from([(1.0, 0.0), (0.25, 0.75), (-2.0, 3.0)]))
    def test_pairwise_logistic_and_list_mle_are_dpo_and_lambda_is_dpo_by_its_weight(
        self, a: float, b: float, beta: float, r: tuple[float, float]
    ) -> None:
        dpo = of_pair(best_worst_sigmoid, [a, b], [*r], contrast_beta=beta)
        alike(of_pair(lists.pairwise_logistic, [a, b], [*r], contrast_beta=beta), dpo)
        alike(of_pair(lists.list_mle, [a, b], [*r], contrast_beta=beta), dpo)
        weight = (2 ** max(r) - 2 ** min(r)) * (1 / math.log(2) - 1 / math.log(3))
        alike(of_pair(lists.lambda_rank, [a, b], [*r], contrast_beta=beta), dpo, weight)

    @given(numbers, numbers, betas, st.sampled_from([0.2, 1.0, 4.0]), numbers, numbers)
    def test_k_way_is_dpo_with_smoothed_labels(
        self, a: float, b: float, beta: float, cold: float, s: float, t: float
    ) -> None:
        found = of_pair(lists.k_way, [a, b], [s, t], contrast_beta=beta, target_temperature=cold)
        smoothing = sigmoid(-(s - t) / cold)
        alike(found, of_pair(best_worst_sigmoid, [a, b], [1, 0], contrast_beta=beta, label_smoothing=smoothing))

    @given(numbers, numbers, betas)
    def test_a_cold_k_way_is_dpo(self, a: float, b: float, beta: float) -> None:
        dpo = of_pair(best_worst_sigmoid, [a, b], [0, 1], contrast_beta=beta)
        alike(of_pair(lists.k_way, [a, b], [0, 1], contrast_beta=beta, target_temperature=0.01), dpo)

    @given(numbers, numbers, betas, st.sampled_from([1e-3, 0.1]))
    def test_exo_best_is_exo_of_a_pair_and_exo_at_the_temperature_of_its_smoothing(
        self, a: float, b: float, beta: float, wrong: float
    ) -> None:
        """KL of (q, 1 - q) to (1 - e, e), written out."""
        m = beta * (a - b)
        expected = sigmoid(m) * (-softplus(-m) - math.log(1 - wrong)) + sigmoid(-m) * (-softplus(m) - math.log(wrong))
        found = of_pair(lists.exo_best, [a, b], [1, 0], contrast_beta=beta, label_smoothing=wrong)
        assert found[0] == pytest.approx(expected, rel=1e-9, abs=1e-12)
        cold = 1 / math.log((1 - wrong) / wrong)
        alike(found, of_pair(lists.exo, [a, b], [1, 0], contrast_beta=beta, target_temperature=cold))

    @given(numbers, numbers, betas)
    def test_the_hinge_is_that_of_slic(self, a: float, b: float, beta: float) -> None:
        short = 1 - (beta * a - beta * b)
        found = of_pair(lists.pairwise_hinge, [a, b], [1, 0], contrast_beta=beta)
        alike(found, (max(0.0, short), [-beta * (short > 0), beta * (short > 0)]))


class TestLaws:
    @every_loss
    @given(rows=several, shift=numbers)
    def test_only_differences_of_log_ratios_count(self, loss: Loss, rows: list, shift: float) -> None:
        lr, r = wide([a for a, _ in rows]), wide([b for _, b in rows])
        groups = torch.zeros(len(rows), dtype=torch.long)
        # Ranks would see a shift that rounds two log-ratios into one; on a grid of 1e-4 nothing is rounded away.
        lr = (lr * 1e4).round() / 1e4
        torch.testing.assert_close(loss(lr + shift, r, groups), loss(lr, r, groups), rtol=1e-9, atol=1e-9)

    @needs_order
    def test_equal_scores_prefer_nothing(self, loss: Loss) -> None:
        log_ratios = torch.tensor([3.0, -2.0, 0.5, 1.0, 2.0]).requires_grad_()
        found = loss(log_ratios, torch.tensor([0.1, 0.1, 0.1, 1.0, 0.0]), torch.tensor([0, 0, 0, 1, 1]))
        assert found[0].item() == 0.0
        assert found[1].item() > 0
        assert gradient_of(found, log_ratios)[:3] == [0.0] * 3

    @pytest.mark.parametrize("loss", [lists.k_way, lists.exo])
    @given(rows=several, beta=betas, cold=st.sampled_from([0.5, 2.0]), shift=numbers)
    def test_both_divergences_are_least_where_log_ratios_follow_the_scores(
        self, loss: Loss, rows: list, beta: float, cold: float, shift: float
    ) -> None:
        r, groups = wide([b for _, b in rows]), torch.zeros(len(rows), dtype=torch.long)
        solved = (r / cold / beta + shift).requires_grad_()
        found = loss(solved, r, groups, contrast_beta=beta, target_temperature=cold)
        chances = softmax([float(s) / cold for s in r])
        entropy = -sum(p * math.log(p) for p in chances)
        assert found.item() == pytest.approx(entropy if loss is lists.k_way else 0.0, abs=1e-9)
        assert gradient_of(found, solved) == pytest.approx([0.0] * len(rows), abs=1e-9)
        elsewhere = solved.detach() + wide([a for a, _ in rows])
        worse = loss(elsewhere, r, groups, contrast_beta=beta, target_temperature=cold).item()
        assert worse >= found.item() - 1e-9

    @given(st.lists(numbers, min_size=3, max_size=3), betas)
    def test_the_orders_of_a_list_share_one_probability(self, lr: list[float], beta: float) -> None:
        groups = torch.zeros(3, dtype=torch.long)
        orders = [wide(list(order)) for order in itertools.permutations([0.0, 1.0, 2.0])]
        found = sum(math.exp(-lists.list_mle(wide(lr), r, groups, contrast_beta=beta).item()) for r in orders)
        assert found == pytest.approx(1.0)

    @pytest.mark.parametrize("smoothing", [0.0, 1.0])
    def test_a_target_that_excludes_something_is_refused(self, smoothing: float) -> None:
        with pytest.raises(ValueError, match="label_smoothing"):
            lists.exo_best(torch.zeros(2), torch.tensor([1.0, 0.0]), torch.tensor([0, 0]), label_smoothing=smoothing)
