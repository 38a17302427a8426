"""Losses over groups against loops over pairs with gradients worked out by hand, and the laws between them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from posttrain.objectives import contrasts

Loss = Callable[..., Tensor]
Slow = Callable[[list[float], list[float], float], tuple[float, list[float]]]

responses = st.lists(
    st.tuples(
        st.sampled_from([-7, 0, 1, 3, 90]),
        st.sampled_from([0.0, 0.5, 1.0]) | st.floats(-3, 3, width=32),
        st.floats(-4, 4, width=32),
    ),
    min_size=1,
    max_size=14,
)


def wide(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def slow_rebel(lr: list[float], r: list[float], eta: float) -> tuple[float, list[float]]:
    pairs = [(i, j) for i in range(len(lr)) for j in range(i)]
    loss, gradient = 0.0, [0.0] * len(lr)
    for i, j in pairs:
        error = (lr[i] - lr[j]) / eta - (r[i] - r[j])
        loss += error**2 / len(pairs)
        gradient[i] += 2 * error / eta / len(pairs)
        gradient[j] -= 2 * error / eta / len(pairs)
    return loss, gradient


def slow_copg(lr: list[float], r: list[float], beta: float) -> tuple[float, list[float]]:
    pairs = [(i, j) for i in range(len(lr)) for j in range(i)]
    loss, gradient = 0.0, [0.0] * len(lr)
    for i, j in pairs:
        gap = (r[i] - beta * lr[i]) - (r[j] - beta * lr[j])
        loss += gap**2 / (2 * beta) / len(pairs)
        gradient[i] -= gap / len(pairs)
        gradient[j] += gap / len(pairs)
    return loss, gradient


def slow_agro(lr: list[float], r: list[float], beta: float) -> tuple[float, list[float]]:
    kept = [b - beta * a for a, b in zip(lr, r, strict=True)]
    mean = sum(kept) / len(kept)
    return statistics.variance(kept) / beta, [-2 * (k - mean) / (len(kept) - 1) for k in kept]


def slow_sigmoid(lr: list[float], r: list[float], beta: float) -> tuple[float, list[float]]:
    gradient = [0.0] * len(lr)
    if min(r) == max(r):
        return 0.0, gradient
    best, worst = r.index(max(r)), r.index(min(r))
    odds = math.exp(-beta * (lr[best] - lr[worst]))
    gradient[best] = -beta * odds / (1 + odds)
    gradient[worst] = -gradient[best]
    return math.log(1 + odds), gradient


def smoothed(lr: Tensor, r: Tensor, groups: Tensor, contrast_beta: float = 0.1) -> Tensor:
    """DPO where one label in five is held to be wrong."""
    return contrasts.best_worst_sigmoid(lr, r, groups, contrast_beta, label_smoothing=0.2)


def slow_smoothed(lr: list[float], r: list[float], beta: float) -> tuple[float, list[float]]:
    right, gradient = slow_sigmoid(lr, r, beta)
    if min(r) == max(r):
        return right, gradient
    best, worst = r.index(max(r)), r.index(min(r))
    odds = math.exp(beta * (lr[best] - lr[worst]))
    gradient = [0.8 * g for g in gradient]
    gradient[best] += 0.2 * beta * odds / (1 + odds)
    gradient[worst] -= 0.2 * beta * odds / (1 + odds)
    return 0.8 * right + 0.2 * math.log(1 + odds), gradient


def slow_squared(lr: list[float], r: list[float], beta: float) -> tuple[float, list[float]]:
    gradient = [0.0] * len(lr)
    if min(r) == max(r):
        return 0.0, gradient
    best, worst = r.index(max(r)), r.index(min(r))
    error = lr[best] - lr[worst] - 0.5 / beta
    gradient[best], gradient[worst] = 2 * error, -2 * error
    return error**2, gradient


def slow_kimi(lr: list[float], r: list[float], tau: float) -> tuple[float, list[float]]:
    size, mean = len(lr), sum(r) / len(r)
    losses = [-(b - mean) * a + tau / 2 * a * a for a, b in zip(lr, r, strict=True)]
    return sum(losses) / size, [(-(b - mean) + tau * a) / size for a, b in zip(lr, r, strict=True)]


ALL: list[tuple[Loss, Slow, str, float]] = [
    (contrasts.rebel, slow_rebel, "rebel_eta", 1.0),
    (contrasts.copg, slow_copg, "contrast_beta", 0.1),
    (contrasts.agro, slow_agro, "contrast_beta", 0.1),
    (contrasts.best_worst_sigmoid, slow_sigmoid, "contrast_beta", 0.1),
    (smoothed, slow_smoothed, "contrast_beta", 0.1),
    (contrasts.best_worst_squared, slow_squared, "contrast_beta", 0.1),
    (contrasts.squared_log_ratio, slow_kimi, "kimi_tau", 0.1),
]
every = pytest.mark.parametrize(("loss", "slow", "name", "default"), ALL, ids=[entry[0].__name__ for entry in ALL])
every_loss = pytest.mark.parametrize("loss", [entry[0] for entry in ALL])
of_differences = pytest.mark.parametrize("loss", [entry[0] for entry in ALL[:6]])


def gradient_of(losses: Tensor, log_ratios: Tensor) -> list[float]:
    """Of the losses weighed 1, 2, 3, ... so that a gradient under the wrong group shows."""
    weights = torch.arange(1, len(losses) + 1, dtype=losses.dtype)
    (found,) = torch.autograd.grad((losses * weights).sum(), log_ratios)
    return found.tolist()


class TestAgainstLoops:
    @every
    @given(rows=responses, other=st.sampled_from([None, 0.3, 2.0]))
    def test_value_and_gradient_over_ragged_interleaved_groups_with_ties(
        self, loss: Loss, slow: Slow, name: str, default: float, rows: list, other: float | None
    ) -> None:
        names, r, lr = (list(column) for column in zip(*rows, strict=True))
        expected, gradient = [], [0.0] * len(rows)
        for k, group in enumerate(sorted(set(names)), start=1):
            members = [i for i, n in enumerate(names) if n == group]
            value, slopes = 0.0, [0.0]
            if len(members) > 1:
                value, slopes = slow([lr[i] for i in members], [r[i] for i in members], other or default)
            expected.append(value)
            for i, slope in zip(members, slopes, strict=True):
                gradient[i] = k * slope
        log_ratios = wide(lr).requires_grad_()
        params = {} if other is None else {name: other}
        found = loss(log_ratios, wide(r), torch.tensor(names), **params)
        assert found.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)
        assert gradient_of(found, log_ratios) == pytest.approx(gradient, rel=1e-9, abs=1e-9)

    @every
    def test_finite_differences(self, loss: Loss, slow: Slow, name: str, default: float) -> None:
        torch.manual_seed(0)
        log_ratios = torch.randn(9, dtype=torch.float64).requires_grad_()
        scores, groups = torch.randn(9, dtype=torch.float64), torch.tensor([2, 0, 2, 5, 0, 2, 2, 0, 7])
        assert torch.autograd.gradcheck(lambda x: loss(x, scores, groups, **{name: 0.7}), (log_ratios,))

    @every_loss
    def test_groups_of_one_give_exactly_nothing_and_can_be_differentiated(self, loss: Loss) -> None:
        log_ratios = torch.tensor([3.0, -2.0, 0.5]).requires_grad_()
        found = loss(log_ratios, torch.tensor([1.0, 0.0, 4.0]), torch.tensor([4, 2, 9]))
        assert found.tolist() == [0.0, 0.0, 0.0]
        assert gradient_of(found, log_ratios) == [0.0, 0.0, 0.0]

    @every_loss
    def test_no_group_at_all_gives_no_loss(self, loss: Loss) -> None:
        empty = torch.zeros(0)
        assert loss(empty, empty, torch.zeros(0, dtype=torch.long)).shape == (0,)

    @every_loss
    def test_the_order_of_responses_only_orders_the_gradient(self, loss: Loss) -> None:
        torch.manual_seed(1)
        lr, r, groups = torch.randn(8).double(), torch.randn(8).double(), torch.tensor([1, 1, 1, 0, 0, 2, 2, 2])
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


class TestLaws:
    pair = torch.tensor([0, 0])

    @given(
        st.lists(st.tuples(st.floats(-3, 3, width=32), st.floats(-3, 3, width=32)), min_size=2, max_size=8),
        st.sampled_from([0.1, 0.5, 3.0]),
    )
    def test_copg_over_all_pairs_is_agro_for_groups_of_every_size(self, rows: list, beta: float) -> None:
        lr, r = wide([a for a, _ in rows]), wide([b for _, b in rows])
        groups = torch.zeros(len(rows), dtype=torch.long)
        one, two = (f(lr, r, groups, contrast_beta=beta) for f in (contrasts.copg, contrasts.agro))
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)

    @given(st.floats(-3, 3), st.floats(-3, 3), st.sampled_from([0.1, 0.5, 3.0]))
    def test_copg_at_half_a_point_is_ipo_scaled_by_half_of_beta(self, a: float, b: float, beta: float) -> None:
        found = []
        for loss in (contrasts.copg, contrasts.best_worst_squared):
            log_ratios = wide([a, b]).requires_grad_()
            value = loss(log_ratios, wide([0.25, 0.75]), self.pair, contrast_beta=beta)
            found.append((float(value.detach()), gradient_of(value, log_ratios)))
        (copg, slopes), (ipo, ipo_slopes) = found
        assert copg == pytest.approx(beta / 2 * ipo, rel=1e-9, abs=1e-12)
        assert slopes == pytest.approx([beta / 2 * s for s in ipo_slopes], rel=1e-9, abs=1e-12)

    @pytest.mark.parametrize("loss", [contrasts.copg, contrasts.agro])
    @pytest.mark.parametrize("beta", [0.05, 1.0])
    def test_copg_and_agro_start_as_twice_the_leave_one_out_gradient(self, loss: Loss, beta: float) -> None:
        log_ratios = torch.zeros(3, dtype=torch.float64).requires_grad_()
        found = loss(log_ratios, wide([1.0, 0.0, 0.5]), torch.zeros(3, dtype=torch.long), contrast_beta=beta)
        # RLOO's advantages are .75, -.75 and 0; its loss is the mean over 3 of -A log pi.
        assert gradient_of(found, log_ratios) == pytest.approx([-2 * 0.75 / 3, 2 * 0.75 / 3, 0.0])

    @given(
        st.lists(st.floats(-3, 3, width=32), min_size=2, max_size=8),
        st.floats(-5, 5, width=32),
        st.sampled_from([0.25, 1.0, 4.0]),
    )
    def test_regressions_are_solved_by_log_ratios_that_follow_the_scores(
        self, values: list[float], shift: float, scale: float
    ) -> None:
        r, groups = wide(values), torch.zeros(len(values), dtype=torch.long)
        solved = scale * r + shift
        off = solved.clone()
        off[0] += 0.01
        for loss, params in (
            (contrasts.rebel, {"rebel_eta": scale}),
            (contrasts.copg, {"contrast_beta": 1 / scale}),
            (contrasts.agro, {"contrast_beta": 1 / scale}),
        ):
            assert float(loss(solved, r, groups, **params)) == pytest.approx(0.0, abs=1e-20)
            assert float(loss(off, r, groups, **params)) > 1e-8

    def test_online_dpo_raises_the_best_lowers_the_worst_and_leaves_the_rest(self) -> None:
        r, groups = wide([0.2, 0.9, 0.5, -1.0]), torch.zeros(4, dtype=torch.long)
        steps = []
        for margin in (0.0, 5.0):
            log_ratios = wide([0.0, margin, 0.0, 0.0]).requires_grad_()
            losses = contrasts.best_worst_sigmoid(log_ratios, r, groups, contrast_beta=0.5)
            steps.append([-g for g in gradient_of(losses, log_ratios)])
        assert steps[0] == pytest.approx([0.0, 0.25, 0.0, -0.25])
        assert 0 < steps[1][1] < steps[0][1]

    def test_ipo_stops_at_its_margin_and_turns_round_beyond_it(self) -> None:
        for margin, sign in ((4.0, -1), (5.0, 0), (6.0, 1)):
            log_ratios = wide([margin, 0.0]).requires_grad_()
            losses = contrasts.best_worst_squared(log_ratios, wide([1.0, 0.0]), self.pair, contrast_beta=0.1)
            assert gradient_of(losses, log_ratios) == pytest.approx([2.0 * sign, -2.0 * sign])

    @pytest.mark.parametrize("loss", [contrasts.best_worst_sigmoid, contrasts.best_worst_squared])
    def test_equal_scores_prefer_nothing(self, loss: Loss) -> None:
        log_ratios = torch.tensor([3.0, -2.0, 0.5, 1.0, 2.0]).requires_grad_()
        scores = torch.tensor([0.1, 0.1, 0.1, 1.0, 0.0])
        found = loss(log_ratios, scores, torch.tensor([0, 0, 0, 1, 1]))
        assert found[0].item() == 0.0
        assert found[1].item() > 0
        assert gradient_of(found, log_ratios)[:3] == [0.0, 0.0, 0.0]

    @pytest.mark.parametrize("tau", [0.1, 2.0])
    def test_kimi_starts_as_the_policy_gradient_with_the_mean_as_baseline(self, tau: float) -> None:
        log_ratios = torch.zeros(4, dtype=torch.float64).requires_grad_()
        groups = torch.zeros(4, dtype=torch.long)
        found = contrasts.squared_log_ratio(log_ratios, wide([1.0, 0.0, 0.0, 1.0]), groups, kimi_tau=tau)
        assert gradient_of(found, log_ratios) == pytest.approx([-0.125, 0.125, 0.125, -0.125])

    def test_kimi_is_the_regression_of_log_ratios_on_advantages(self) -> None:
        torch.manual_seed(2)
        log_ratios, r = torch.randn(5).double().requires_grad_(), torch.randn(5).double()
        found = contrasts.squared_log_ratio(log_ratios, r, torch.zeros(5, dtype=torch.long), kimi_tau=0.3)
        regression = (r - r.mean() - 0.3 * log_ratios).square().mean() / (2 * 0.3)
        (slopes,) = torch.autograd.grad(regression, log_ratios)
        assert gradient_of(found, log_ratios) == pytest.approx(slopes.tolist())

    @of_differences
    def test_only_differences_within_a_group_count(self, loss: Loss) -> None:
        torch.manual_seed(3)
        lr, r, groups = torch.randn(6).double(), torch.randn(6).double(), torch.tensor([0, 1, 0, 1, 0, 1])
        shift = wide([4.0, -9.0])[groups]
        torch.testing.assert_close(loss(lr + shift, r - 2 * shift, groups), loss(lr, r, groups))
