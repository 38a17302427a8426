"""KL estimators by enumeration of a five-token vocabulary, the exact KL by loops, and coefficients by hand."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from posttrain.objectives import penalties

Estimator = Callable[[Tensor, Tensor], Tensor]
logits = st.lists(st.floats(-3, 3, width=32), min_size=5, max_size=5)
estimators = pytest.mark.parametrize("estimator", [penalties.k1, penalties.k2, penalties.k3])


def wide(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def softmax(values: list[float]) -> list[float]:
    total = sum(math.exp(v) for v in values)
    return [math.exp(v) / total for v in values]


def kl(policy: list[float], reference: list[float]) -> float:
    p, q = softmax(policy), softmax(reference)
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def kl_gradient(policy: list[float], reference: list[float]) -> list[float]:
    """Of KL(policy || reference) by the policy's logits: p_i (log p_i / q_i - KL)."""
    p, q, value = softmax(policy), softmax(reference), kl(policy, reference)
    return [a * (math.log(a / b) - value) for a, b in zip(p, q, strict=True)]


def reverse_gradient(policy: list[float], reference: list[float]) -> list[float]:
    """Of KL(reference || policy) by the policy's logits: p_i - q_i."""
    return [a - b for a, b in zip(softmax(policy), softmax(reference), strict=True)]


def expected(estimator: Estimator, policy: list[float], reference: list[float]) -> tuple[float, list[float]]:
    """Mean of the estimator under the policy, and the mean of its gradient as a loss of sampled tokens."""
    leaf = wide(policy).requires_grad_()
    logp = leaf.log_softmax(-1)
    value = (logp.exp().detach() * estimator(logp, wide(reference).log_softmax(-1))).sum()
    (gradient,) = torch.autograd.grad(value, leaf)
    return float(value.detach()), gradient.tolist()


def as_reward(estimator: Estimator, policy: list[float], reference: list[float]) -> list[float]:
    """Mean under the policy of the estimator's value times grad log pi: the descent direction of a reward -estimate."""
    leaf = wide(policy).requires_grad_()
    logp = leaf.log_softmax(-1)
    value = estimator(logp, wide(reference).log_softmax(-1)).detach()
    (gradient,) = torch.autograd.grad((logp.exp().detach() * value * logp).sum(), leaf)
    return gradient.tolist()


def close(found: list[float], wanted: list[float]) -> None:
    assert found == pytest.approx(wanted, rel=1e-9, abs=1e-11)


class TestEstimatorsOverFiveTokens:
    """Every expectation is a sum over the whole vocabulary, so nothing is left to sampling."""

    @given(logits, logits)
    def test_k1_and_k3_are_unbiased_values(self, policy: list[float], reference: list[float]) -> None:
        for estimator in (penalties.k1, penalties.k3):
            value = expected(estimator, policy, reference)[0]
            assert value == pytest.approx(kl(policy, reference), rel=1e-9, abs=1e-11)

    @given(logits, logits)
    def test_gradients_as_a_loss(self, policy: list[float], reference: list[float]) -> None:
        close(expected(penalties.k1, policy, reference)[1], [0.0] * 5)
        close(expected(penalties.k2, policy, reference)[1], kl_gradient(policy, reference))
        close(expected(penalties.k3, policy, reference)[1], reverse_gradient(policy, reference))

    @given(logits, logits)
    def test_gradients_as_a_reward(self, policy: list[float], reference: list[float]) -> None:
        true, reverse = kl_gradient(policy, reference), reverse_gradient(policy, reference)
        close(as_reward(penalties.k1, policy, reference), true)
        close(as_reward(penalties.k3, policy, reference), [a - b for a, b in zip(true, reverse, strict=True)])

    def test_k2_is_a_biased_value(self) -> None:
        policy, reference = [0.2, -1.0, 0.7, 0.1, -0.4], [0.5, 0.3, -0.6, 0.0, -0.2]
        assert expected(penalties.k2, policy, reference)[0] != pytest.approx(kl(policy, reference), rel=0.01)

    def test_k3_as_a_reward_hardly_pulls_close_to_the_reference_where_k1_does(self) -> None:
        reference = [0.5, 0.3, -0.6, 0.0, -0.2]
        policy = [v + 0.01 * d for v, d in zip(reference, [1, -1, 2, 0, -2], strict=True)]
        strong = math.hypot(*as_reward(penalties.k1, policy, reference))
        assert math.hypot(*as_reward(penalties.k3, policy, reference)) < 0.02 * strong

    @pytest.mark.parametrize("estimator", [penalties.k2, penalties.k3])
    def test_a_step_on_rewarded_k2_or_k3_can_lead_away_where_k1_comes_closer(self, estimator: Estimator) -> None:
        reference = [0.0, 0.0, 0.0, 0.0, 0.0]
        # One token that the policy says too rarely: an even penalty makes it rarer still.
        policy = [-1.0, 0.0, 0.0, 0.0, 0.0]
        after = [
            kl([v - 0.1 * g for v, g in zip(policy, as_reward(f, policy, reference), strict=True)], reference)
            for f in (penalties.k1, estimator)
        ]
        assert after[0] < kl(policy, reference) < after[1]

    @given(logits, logits)
    def test_a_small_step_on_k2_or_exact_or_rewarded_k1_comes_closer(
        self, policy: list[float], reference: list[float]
    ) -> None:
        leaf = wide(policy).requires_grad_()
        (full,) = torch.autograd.grad(penalties.exact(leaf[None], wide(reference)[None]).sum(), leaf)
        rewarded = as_reward(penalties.k1, policy, reference)
        for gradient in (expected(penalties.k2, policy, reference)[1], full.tolist(), rewarded):
            closer = [v - 0.02 * g for v, g in zip(policy, gradient, strict=True)]
            if math.hypot(*gradient) > 1e-4:
                assert kl(closer, reference) < kl(policy, reference)

    def test_a_step_on_k3_comes_closer_from_further_away_too(self) -> None:
        policy, reference = [0.2, -1.0, 0.7, 0.1, -0.4], [0.5, 0.3, -0.6, 0.0, -0.2]
        gradient = expected(penalties.k3, policy, reference)[1]
        closer = [v - 0.05 * g for v, g in zip(policy, gradient, strict=True)]
        assert kl(closer, reference) < kl(policy, reference)

    @pytest.mark.parametrize("estimator", [penalties.k2, penalties.k3])
    @given(logits, logits)
    def test_a_small_step_on_the_loss_comes_closer_around_the_reference(
        self, estimator: Estimator, reference: list[float], away: list[float]
    ) -> None:
        policy = [v + 0.05 * d for v, d in zip(reference, away, strict=True)]
        gradient = expected(estimator, policy, reference)[1]
        closer = [v - 0.05 * g for v, g in zip(policy, gradient, strict=True)]
        if math.hypot(*gradient) > 1e-4:
            assert kl(closer, reference) < kl(policy, reference)


class TestEstimatorsByHand:
    @given(st.floats(-5, 0), st.floats(-5, 0))
    def test_value_and_gradient(self, policy: float, reference: float) -> None:
        d = reference - policy
        for estimator, value, slope in (
            (penalties.k1, -d, 1.0),
            (penalties.k2, d * d / 2, -d),
            (penalties.k3, math.exp(d) - d - 1, 1 - math.exp(d)),
        ):
            leaf = wide([policy]).requires_grad_()
            found = estimator(leaf, wide([reference]))
            (gradient,) = torch.autograd.grad(found.sum(), leaf)
            assert float(found.detach()) == pytest.approx(value, rel=1e-9, abs=1e-12)
            assert float(gradient) == pytest.approx(slope, rel=1e-9, abs=1e-12)

    @estimators
    def test_finite_differences(self, estimator: Estimator) -> None:
        torch.manual_seed(0)
        policy, reference = torch.randn(6).double().requires_grad_(), torch.randn(6).double()
        assert torch.autograd.gradcheck(lambda x: estimator(x, reference), (policy,))

    @estimators
    def test_the_reference_counts_and_agreement_costs_nothing(self, estimator: Estimator) -> None:
        policy = wide([-0.3, -1.2])
        assert estimator(policy, policy).tolist() == [0.0, 0.0]
        assert estimator(policy, wide([-0.3, -2.0])).tolist() != estimator(policy, wide([-0.3, -3.0])).tolist()


class TestExact:
    @given(logits, logits)
    def test_value_and_gradient_by_enumeration(self, policy: list[float], reference: list[float]) -> None:
        leaf = wide([policy, reference]).requires_grad_()
        found = penalties.exact(leaf, wide([reference, policy]))
        (gradient,) = torch.autograd.grad((found * wide([1.0, 2.0])).sum(), leaf)
        close(found.tolist(), [kl(policy, reference), kl(reference, policy)])
        close(gradient[0].tolist(), kl_gradient(policy, reference))
        close(gradient[1].tolist(), [2 * g for g in kl_gradient(reference, policy)])

    def test_finite_differences(self) -> None:
        torch.manual_seed(0)
        policy, reference = torch.randn(2, 5).double().requires_grad_(), torch.randn(2, 5).double().requires_grad_()
        assert torch.autograd.gradcheck(penalties.exact, (policy, reference))

    @given(logits, logits, st.floats(-50, 50))
    def test_a_shift_of_logits_changes_nothing(self, policy: list[float], reference: list[float], shift: float) -> None:
        found = penalties.exact(wide([policy]) + shift, wide([reference]) - shift)
        assert float(found) == pytest.approx(kl(policy, reference), rel=1e-9, abs=1e-11)

    def test_direction(self) -> None:
        policy, reference = wide([[0.0, -9.0, -9.0]]), wide([[0.0, 0.0, 0.0]])
        assert float(penalties.exact(policy, reference)) == pytest.approx(math.log(3), abs=0.01)
        assert float(penalties.exact(reference, policy)) > 4

    def test_a_token_that_the_policy_cannot_say_adds_nothing(self) -> None:
        policy = wide([[0.3, -math.inf, 1.0]]).requires_grad_()
        for barred in (-math.inf, 0.5):
            found = penalties.exact(policy, wide([[0.1, barred, 0.4]]))
            (gradient,) = torch.autograd.grad(found.sum(), policy)
            assert bool(gradient.isfinite().all())
            p, q = softmax([0.3, 1.0]), [math.exp(v) for v in (0.1, 0.4)]
            total = sum(q) + (math.exp(barred) if math.isfinite(barred) else 0.0)
            value = sum(a * math.log(a * total / b) for a, b in zip(p, q, strict=True))
            assert float(found.detach()) == pytest.approx(value)


class TestCoefficients:
    @pytest.mark.parametrize(("measured", "factor"), [(6.0, 1.0), (6.6, 1.01), (60.0, 1.02), (5.4, 0.99), (0.0, 0.98)])
    def test_kl_coefficient_follows_the_clipped_error(self, measured: float, factor: float) -> None:
        found = penalties.adaptive_coefficient(0.2, measured, target=6.0, horizon=10_000, count=1_000)
        assert found == pytest.approx(0.2 * factor)

    def test_kl_coefficient_never_changes_sign(self) -> None:
        assert penalties.adaptive_coefficient(0.2, 0.0, target=6.0, horizon=10, count=1_000) == pytest.approx(0.16)

    @given(st.floats(0, 20), st.integers(1, 1000))
    def test_kl_coefficient_rises_exactly_where_the_kl_is_too_high(self, measured: float, count: int) -> None:
        found = penalties.adaptive_coefficient(0.5, measured, target=4.0, horizon=500, count=count)
        if abs(measured - 4.0) > 1e-6:
            assert (found > 0.5) == (measured > 4.0)
        assert 0.4 <= found <= 0.6

    @pytest.mark.parametrize(
        ("coefficient", "entropy", "wanted"),
        [(0.01, 0.1, 0.015), (0.01, 0.3, 0.005), (0.01, 0.2, 0.005), (0.0, 0.3, 0.0), (0.049, 0.1, 0.05)],
    )
    def test_entropy_coefficient_steps_within_its_bounds(
        self, coefficient: float, entropy: float, wanted: float
    ) -> None:
        found = penalties.adaptive_entropy(coefficient, entropy, target=0.2, rate=0.005, largest=0.05)
        assert found == pytest.approx(wanted)
