"""Value losses against loops, with gradients worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from posttrain.objectives import values

numbers = st.floats(-2, 2, width=32)


def wide(numbers: list[float]) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float64)


def mass_below(edge: float, centre: float, sigma: float) -> float:
    return (1 + math.erf((edge - centre) / sigma / math.sqrt(2))) / 2


def slow_histogram(target: float, bins: int, low: float, high: float, sigma: float) -> list[float]:
    width = (high - low) / bins
    target = min(max(target, low), high)
    masses = []
    for i in range(bins):
        above, below = low + (i + 1) * width, low + i * width
        masses.append(mass_below(above, target, sigma * width) - mass_below(below, target, sigma * width))
    return [m / sum(masses) for m in masses]


class TestSquared:
    @given(st.lists(st.tuples(numbers, numbers, numbers), min_size=1, max_size=6), st.sampled_from([None, 0.2, 1.0]))
    def test_value_and_gradient(self, rows: list, clip: float | None) -> None:
        outputs = wide([v for v, _, _ in rows])[:, None].requires_grad_()
        returns, previous = wide([r for _, r, _ in rows]), wide([p for _, _, p in rows])
        found = values.squared(outputs, returns, previous, value_clip=clip)
        weights = torch.arange(1.0, len(rows) + 1).double()
        (gradient,) = torch.autograd.grad((found * weights).sum(), outputs)
        for i, (v, r, p) in enumerate(rows):
            free = (v - r) ** 2
            held = p + min(max(v - p, -clip), clip) - r if clip else v - r
            assert float(found[i].detach()) == pytest.approx(max(free, held**2) / 2, rel=1e-9, abs=1e-12)
            beyond = clip is not None and abs(v - p) > clip
            if beyond and (math.isclose(held**2, free, abs_tol=1e-9)):
                continue  # both losses are equal: any slope between theirs is right
            slope = 0.0 if beyond and held**2 > free else v - r
            if clip is None or abs(abs(v - p) - clip) > 1e-9:
                assert float(gradient[i, 0]) == pytest.approx((i + 1) * slope, rel=1e-9, abs=1e-9)

    @pytest.mark.parametrize(
        ("value", "loss", "slope"),
        [
            (0.1, 0.81 / 2, -0.9),  # within the bound: both are the same
            (0.7, 0.64 / 2, 0.0),  # moved to the return beyond the bound: the clipped error is greater, and flat
            (1.5, 0.64 / 2, 0.0),  # past the return, still nearer than the bound
            (-0.7, 2.89 / 2, -1.7),  # moved away beyond the bound: the free error is greater, and pulls back
            (2.5, 2.25 / 2, 1.5),  # overshot by more than the bound is short
        ],
    )
    def test_the_greater_of_two_errors_counts(self, value: float, loss: float, slope: float) -> None:
        for sign in (1, -1):
            outputs = wide([sign * value])[:, None].requires_grad_()
            found = values.squared(outputs, wide([sign * 1.0]), wide([0.0]), value_clip=0.2)
            (gradient,) = torch.autograd.grad(found.sum(), outputs)
            assert float(found.detach()) == pytest.approx(loss)
            assert float(gradient) == pytest.approx(sign * slope, abs=1e-12)

    def test_finite_differences(self) -> None:
        torch.manual_seed(0)
        outputs, returns, previous = torch.randn(7, 1).double().requires_grad_(), torch.randn(7), torch.randn(7)
        for clip in (None, 0.3):
            loss = lambda x, clip=clip: values.squared(x, returns.double(), previous.double(), value_clip=clip)  # noqa: E731
            assert torch.autograd.gradcheck(loss, (outputs,))

    def test_targets_are_data(self) -> None:
        outputs = torch.zeros(2, 1, requires_grad=True)
        returns, previous = torch.ones(2, requires_grad=True), torch.full((2,), -1.0, requires_grad=True)
        values.squared(outputs, returns, previous, value_clip=0.1).sum().backward()
        assert returns.grad is None
        assert previous.grad is None

    def test_a_head_of_bins_is_refused_even_where_shapes_would_broadcast(self) -> None:
        with pytest.raises(ValueError, match="hl_gauss"):
            values.squared(torch.zeros(3, 3), torch.zeros(3), torch.zeros(3))

    def test_reading(self) -> None:
        assert values.read_squared(torch.tensor([[0.5], [-1.0]])).tolist() == [0.5, -1.0]


class TestHistogram:
    @given(
        st.lists(st.floats(-2, 4, width=32), min_size=1, max_size=4),
        st.integers(2, 40),
        st.sampled_from([(0.0, 1.0), (-1.0, 3.0)]),
        st.sampled_from([0.3, 0.75, 2.0]),
    )
    def test_masses_by_the_error_function(
        self, returns: list[float], bins: int, support: tuple[float, float], sigma: float
    ) -> None:
        found = values.histogram(wide(returns), bins, *support, sigma)
        assert found.sum(-1).tolist() == pytest.approx([1.0] * len(returns))
        assert bool((found >= 0).all())
        for row, target in zip(found.tolist(), returns, strict=True):
            assert row == pytest.approx(slow_histogram(target, bins, *support, sigma), abs=1e-12)

    @given(st.floats(0.1, 0.9), st.sampled_from([0.3, 0.75, 1.5]))
    def test_the_mean_of_an_inner_target_is_the_return(self, target: float, sigma: float) -> None:
        found = values.read_hl_gauss(values.histogram(wide([target]), 51, 0.0, 1.0, sigma).log(), 0.0, 1.0)
        # The error falls fast with sigma: .3 of a bin is close to a hard choice of one bin.
        assert float(found) == pytest.approx(target, abs=0.3 / 51 if sigma < 0.5 else 1e-4)

    def test_the_ends_mirror_each_other_and_are_drawn_inwards_by_less_than_a_bin(self) -> None:
        zero, one = values.histogram(wide([0.0, 1.0]), 21, 0.0, 1.0, 0.75)
        assert zero.tolist() == pytest.approx(one.flip(0).tolist())
        assert zero.argmax() == 0
        low, high = values.read_hl_gauss(torch.stack([zero, one]).log(), 0.0, 1.0).tolist()
        assert 0.6 / 21 < low < 0.75 / 21
        assert high == pytest.approx(1 - low)

    def test_a_support_a_few_bins_wider_than_the_scores_has_no_bias(self) -> None:
        found = values.histogram(wide([0.0, 1.0]), 24, -0.1, 1.1, 0.75)
        assert values.read_hl_gauss(found.log(), -0.1, 1.1).tolist() == pytest.approx([0.0, 1.0], abs=0.005)

    def test_outside_the_support_counts_as_its_end(self) -> None:
        inside, outside = values.histogram(wide([0.0, 1.0]), 9, 0.0, 1.0, 0.75), wide([-50.0, 70.0])
        assert values.histogram(outside, 9, 0.0, 1.0, 0.75).tolist() == inside.tolist()

    def test_one_bin_is_refused(self) -> None:
        with pytest.raises(ValueError, match="at least 2 bins"):
            values.hl_gauss(torch.zeros(3, 1), torch.zeros(3), torch.zeros(3))


class TestHlGauss:
    @given(
        st.lists(st.lists(numbers, min_size=6, max_size=6), min_size=1, max_size=3),
        st.lists(st.floats(-1, 3, width=32), min_size=3, max_size=3),
        st.sampled_from([{}, {"value_low": -1.0, "value_high": 2.0, "value_sigma": 1.2}]),
    )
    def test_value_and_gradient(self, logits: list[list[float]], targets: list[float], params: dict) -> None:
        outputs, returns = wide(logits).requires_grad_(), wide(targets[: len(logits)])  # type: ignore[arg-type]
        found = values.hl_gauss(outputs, returns, torch.zeros(len(logits)), **params)
        weights = torch.arange(1.0, len(logits) + 1).double()
        (gradient,) = torch.autograd.grad((found * weights).sum(), outputs)
        low, high, sigma = (params or {"l": 0.0, "h": 1.0, "s": 0.75}).values()
        for i, row in enumerate(logits):
            target = slow_histogram(targets[i], 6, low, high, sigma)
            total = sum(math.exp(v) for v in row)
            loss = -sum(t * (v - math.log(total)) for t, v in zip(target, row, strict=True))
            assert float(found[i].detach()) == pytest.approx(loss)
            slopes = [(i + 1) * (math.exp(v) / total - t) for t, v in zip(target, row, strict=True)]
            assert gradient[i].tolist() == pytest.approx(slopes, abs=1e-9)

    def test_finite_differences(self) -> None:
        torch.manual_seed(0)
        outputs, returns = torch.randn(4, 5).double().requires_grad_(), torch.rand(4).double()
        assert torch.autograd.gradcheck(lambda x: values.hl_gauss(x, returns, returns), (outputs,))
        assert torch.autograd.gradcheck(lambda x: values.read_hl_gauss(x, -1.0, 2.0), (outputs,))

    def test_the_previous_values_have_no_influence(self) -> None:
        outputs, returns = torch.zeros(2, 5), torch.tensor([0.2, 0.8])
        one = values.hl_gauss(outputs, returns, torch.zeros(2))
        assert one.tolist() == values.hl_gauss(outputs, returns, torch.full((2,), 1e6)).tolist()

    def test_targets_are_data(self) -> None:
        returns = torch.tensor([0.2, 0.8], requires_grad=True)
        values.hl_gauss(torch.zeros(2, 5, requires_grad=True), returns, torch.zeros(2)).sum().backward()
        assert returns.grad is None

    def test_descent_arrives_at_the_return(self) -> None:
        outputs, returns = torch.zeros(3, 32, dtype=torch.float64), wide([0.25, 0.5, 0.7])
        for _ in range(3000):
            leaf = outputs.requires_grad_()
            (gradient,) = torch.autograd.grad(values.hl_gauss(leaf, returns, returns).sum(), leaf)
            outputs = (leaf - 5 * gradient).detach()
        assert values.read_hl_gauss(outputs, 0.0, 1.0).tolist() == pytest.approx(returns.tolist(), abs=0.005)

    @given(st.lists(numbers, min_size=2, max_size=9))
    def test_reading_is_the_expected_centre(self, row: list[float]) -> None:
        total, width = sum(math.exp(v) for v in row), 3.0 / len(row)
        by_hand = sum(math.exp(v) / total * (-1.0 + (i + 0.5) * width) for i, v in enumerate(row))
        assert float(values.read_hl_gauss(wide([row]), -1.0, 2.0)) == pytest.approx(by_hand)  # type: ignore[list-item]

    def test_half_precision_outputs_are_read_in_single(self) -> None:
        outputs = torch.zeros(1, 101, dtype=torch.bfloat16)
        outputs[0, 77] = 30.0
        assert float(values.read_hl_gauss(outputs, 0.0, 1.0)) == pytest.approx(77.5 / 101, abs=1e-6)
        assert values.hl_gauss(outputs, torch.tensor([77.5 / 101]), torch.zeros(1)).dtype == torch.float32
        in_double = values.hl_gauss(outputs.double(), wide([77.5 / 101]), torch.zeros(1))
        assert float(values.hl_gauss(outputs, torch.tensor([77.5 / 101]), torch.zeros(1))) == pytest.approx(
            float(in_double), rel=1e-4
        )
