"""What a log-ratio counts for under each f-divergence: f' by differences of f, plain numbers, and the laws between."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from posttrain.objectives import contrasts, divergences

Generator = Callable[[float], float]


def of_reverse_kl(t: float) -> float:
    return t * math.log(t)


def of_forward_kl(t: float) -> float:
    return -math.log(t)


def of_js(t: float) -> float:
    return t * math.log(t) - (t + 1) * math.log((t + 1) / 2)


def of_alpha(a: float) -> Generator:
    return lambda t: (t**a - a * t - (1 - a)) / (a * (a - 1))


CASES: dict[str, tuple[Callable[[Tensor], Tensor], Generator, float]] = {
    # With the generator, and its f'(1), which is taken off: constants vanish in differences.
    "reverse_kl": (divergences.reverse_kl, of_reverse_kl, 1.0),
    "forward_kl": (divergences.forward_kl, of_forward_kl, -1.0),
    "js": (divergences.js, of_js, 0.0),
    "alpha .5": (divergences.alpha, of_alpha(0.5), 0.0),
    "alpha .3": (lambda x: divergences.alpha(x, 0.3), of_alpha(0.3), 0.0),
    "alpha 2": (lambda x: divergences.alpha(x, 2.0), of_alpha(2.0), 0.0),
    "alpha -1": (lambda x: divergences.alpha(x, -1.0), of_alpha(-1.0), 0.0),
}
every = pytest.mark.parametrize(("divergence", "generator", "offset"), CASES.values(), ids=CASES)
ALL = [case[0] for case in CASES.values()]


def wide(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@every
@given(lr=st.floats(-2, 2))
def test_each_is_the_derivative_of_its_generator_at_the_ratio(
    divergence: Callable[[Tensor], Tensor], generator: Generator, offset: float, lr: float
) -> None:
    t, step = math.exp(lr), 1e-5 * math.exp(lr)
    slope = (generator(t + step) - generator(t - step)) / (2 * step) - offset
    # A central difference is off by the third derivative x step^2, and by rounding over the step.
    assert float(divergence(wide(lr))) == pytest.approx(slope, abs=2e-8 * max(1, abs(slope)))


@every
def test_values_at_hand_and_shapes(divergence: Callable[[Tensor], Tensor], generator: Generator, offset: float) -> None:
    assert float(divergence(wide(0.0))) == pytest.approx(0.0, abs=1e-15)
    assert divergence(wide()).shape == (0,)
    found = divergence(wide(-1.0, 0.5, 2.0))
    assert bool((found[1:] > found[:-1]).all())


def test_the_formulas_in_plain_numbers() -> None:
    values = (-3.0, -0.4, 0.0, 1e-9, 0.7, 4.0)
    for found, slow in (
        (divergences.reverse_kl(wide(*values)), list(values)),
        (divergences.forward_kl(wide(*values)), [1 - 1 / math.exp(x) for x in values]),
        (divergences.js(wide(*values)), [math.log(2 * math.exp(x) / (1 + math.exp(x))) for x in values]),
        (divergences.alpha(wide(*values)), [(math.exp(x) ** -0.5 - 1) / -0.5 for x in values]),
        (divergences.alpha(wide(*values), 3.0), [(math.exp(x) ** 2 - 1) / 2 for x in values]),
    ):
        numpy.testing.assert_allclose(found.tolist(), slow, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("divergence", ALL, ids=CASES)
def test_gradients_agree_with_finite_differences(divergence: Callable[[Tensor], Tensor]) -> None:
    assert torch.autograd.gradcheck(divergence, (wide(-2.0, -0.1, 0.0, 0.3, 1.7).requires_grad_(),))


@pytest.mark.parametrize("divergence", ALL, ids=CASES)
def test_near_the_anchor_all_of_them_are_the_reverse_kl_up_to_scale(divergence: Callable[[Tensor], Tensor]) -> None:
    at = wide(0.0).requires_grad_()
    (slope,) = torch.autograd.grad(divergence(at), at)
    # f''(1) is 1 except for Jensen-Shannon, whose generator is half as curved.
    assert float(slope) == (0.5 if divergence is divergences.js else 1.0)


@given(st.floats(-3, 3))
def test_alpha_runs_from_the_forward_to_the_reverse_kl(lr: float) -> None:
    at = wide(lr)
    assert float(divergences.alpha(at, 0.0)) == pytest.approx(1 - math.exp(-lr), abs=1e-12)
    assert divergences.alpha(at, 1.0).tolist() == [lr]
    for power in (1e-3, 1e-6, 1e-12, -1e-12):
        # (e^(p x) - 1) / p is x + p x^2 / 2 + ...
        assert float(divergences.alpha(at, 1 + power)) == pytest.approx(lr, abs=5 * abs(power) + 1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("divergence", ALL, ids=CASES)
def test_extreme_ratios_stay_finite_in_value_and_gradient(
    divergence: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> None:
    at = torch.tensor([-1e4, -200.0, 200.0, 1e4], dtype=dtype).requires_grad_()
    found = divergence(at)
    (slopes,) = torch.autograd.grad(found.sum(), at)
    assert bool(found.isfinite().all() and slopes.isfinite().all())
    loss = contrasts.best_worst_sigmoid(divergence(at), torch.tensor([0.0, 1.0, 0.0, 1.0]), torch.tensor([0, 1, 1, 0]))
    assert bool(loss.isfinite().all())
    assert bool(torch.autograd.grad(loss.sum(), at)[0].isfinite().all())


def test_the_bound_is_where_it_is_said_to_be() -> None:
    at = wide(-79.0, -81.0).requires_grad_()
    (slopes,) = torch.autograd.grad(divergences.forward_kl(at).sum(), at)
    assert slopes.tolist() == pytest.approx([math.exp(79), 0.0])
    assert divergences.forward_kl(wide(-81.0)).tolist() == pytest.approx([1 - math.exp(80)])
