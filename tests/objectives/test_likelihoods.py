"""Weighted likelihoods against one token worked out at a time, with derivatives by hand."""

from __future__ import annotations

import itertools
import math

import numpy
import pytest
import torch
from hypothesis import given, settings

from posttrain.objectives import likelihoods, surrogates
from posttrain.objectives.tokens import Tokens
from tests.objectives.ragged import Batch, agrees, batches, build, call, ignores_garbage, measured, policy_gradient

Row = tuple[float, float, float]


def numbers(batch: Batch, i: int) -> tuple[float, float, float]:
    return float(batch.log_ratio[i]), float(batch.advantages[i]), float(batch.tokens.logprobs[i])


def likelihood(batch: Batch, i: int) -> Row:
    _, a, logp = numbers(batch, i)
    return -a * logp, 0.0, -a


def kept_likelihood(batch: Batch, i: int, clip_low: float = 0.2, clip_high: float = 0.2) -> Row:
    lr, a, logp = numbers(batch, i)
    ratio = math.exp(lr)
    kept = (a > 0 and ratio <= 1 + clip_high) or (a < 0 and ratio >= 1 - clip_low)
    return -a * logp, 0.0, -a if kept else 0.0


def tempered_likelihood(batch: Batch, i: int, temper: float = 1.0) -> Row:
    _, a, logp = numbers(batch, i)
    return -a * logp / (1 + temper), 0.0, -a / (1 + temper)


def shifted_likelihood(batch: Batch, i: int, shift: float = 0.1) -> Row:
    _, a, logp = numbers(batch, i)
    return -(a + shift) * logp, 0.0, -(a + shift)


def positive_cloning(batch: Batch, i: int, positive_weight: float = 1.0, negative_weight: float = 0.5) -> Row:
    lr, a, logp = numbers(batch, i)
    if a > 0:
        return -positive_weight * logp, 0.0, -positive_weight
    if a < 0:
        return -negative_weight * a * math.exp(lr), -negative_weight * a * math.exp(lr), 0.0
    return 0.0, 0.0, 0.0


def bellman(batch: Batch, i: int, rover_scale: float = 1.0) -> Row:
    lr, a, _ = numbers(batch, i)
    error = rover_scale * lr - (a + rover_scale * float(batch.tokens.uniform[i]))
    return error**2, 2 * error * rover_scale, 0.0


def dynamic_likelihood(batch: Batch, i: int) -> Row:
    _, a, logp = numbers(batch, i)
    return -a * math.exp(logp) * logp, 0.0, -a * math.exp(logp)


def regressed(batch: Batch, i: int, contrast_beta: float = 0.1) -> Row:
    lr, a, _ = numbers(batch, i)
    error = contrast_beta * lr - a
    return error**2 / 2, contrast_beta * error, 0.0


CASES = [
    (likelihoods.likelihood, likelihood, {}),
    (likelihoods.kept_likelihood, kept_likelihood, {}),
    (likelihoods.kept_likelihood, kept_likelihood, {"clip_low": 0.05, "clip_high": 0.4}),
    (likelihoods.tempered_likelihood, tempered_likelihood, {}),
    (likelihoods.tempered_likelihood, tempered_likelihood, {"temper": 0.25}),
    (likelihoods.shifted_likelihood, shifted_likelihood, {}),
    (likelihoods.shifted_likelihood, shifted_likelihood, {"shift": -0.7}),
    (likelihoods.positive_cloning, positive_cloning, {}),
    (likelihoods.positive_cloning, positive_cloning, {"positive_weight": 0.3, "negative_weight": 2.0}),
    (likelihoods.bellman, bellman, {}),
    (likelihoods.bellman, bellman, {"rover_scale": 0.3}),
    (likelihoods.dynamic_likelihood, dynamic_likelihood, {}),
    (likelihoods.regressed, regressed, {}),
    (likelihoods.regressed, regressed, {"contrast_beta": 2.0}),
]
IDS = [f"{f.__name__}-{'other' if p else 'default'}" for f, _, p in CASES]


@pytest.mark.parametrize(("function", "slow", "parameters"), CASES, ids=IDS)
@settings(max_examples=60)
@given(batch=batches())
def test_value_and_gradient_are_those_of_one_token_at_a_time(
    function: object, slow: object, parameters: dict[str, float], batch: Batch
) -> None:
    agrees(function, slow, batch, parameters)


@pytest.mark.parametrize("function", sorted({f for f, _, _ in CASES}, key=lambda f: f.__name__))
@settings(max_examples=30)
@given(batch=batches())
def test_what_stands_outside_the_mask_changes_nothing(function: object, batch: Batch) -> None:
    ignores_garbage(function, batch, {})


@pytest.mark.parametrize(
    "function", [likelihoods.likelihood, likelihoods.tempered_likelihood, likelihoods.shifted_likelihood]
)
def test_gradients_agree_with_finite_differences(function: object) -> None:
    batch = build([1, 5, 2], [True] * 8, seed=3, scale=0.3)

    def loss(logprobs: torch.Tensor) -> torch.Tensor:
        return call(function, batch._replace(tokens=batch.tokens._replace(logprobs=logprobs)))

    assert torch.autograd.gradcheck(loss, (batch.tokens.logprobs.clone().requires_grad_(),))


@settings(max_examples=60)
@given(batch=batches())
def test_laws_between_them(batch: Batch) -> None:
    plain = policy_gradient(likelihoods.likelihood, batch)
    assert plain.tolist() == policy_gradient(surrogates.reinforce, batch).tolist()
    ones = batch._replace(advantages=torch.ones_like(batch.advantages))
    for function, parameters, expected in (
        (likelihoods.kept_likelihood, {"clip_low": 1.0, "clip_high": 1e9}, plain),
        (likelihoods.tempered_likelihood, {"temper": 3.0}, plain / 4),
        (likelihoods.shifted_likelihood, {"shift": 0.4}, plain + 0.4 * policy_gradient(likelihoods.likelihood, ones)),
    ):
        found = policy_gradient(function, batch, **parameters)
        numpy.testing.assert_allclose(found.tolist(), expected.tolist(), atol=1e-12, err_msg=function.__name__)


@settings(max_examples=60)
@given(batch=batches())
def test_a_token_is_kept_exactly_where_ppo_s_clip_keeps_it(batch: Batch) -> None:
    kept = policy_gradient(likelihoods.kept_likelihood, batch, clip_low=0.1, clip_high=0.3) != 0
    assert kept.tolist() == (policy_gradient(surrogates.clip, batch, clip_low=0.1, clip_high=0.3) != 0).tolist()


def test_a_token_without_advantage_is_neither_cloned_nor_pushed() -> None:
    batch = build([3], [True] * 3, seed=0, scale=0.3)._replace(advantages=torch.zeros(3, dtype=torch.float64))
    loss, by_ratio, by_logprob = measured(likelihoods.positive_cloning, batch)
    assert [loss.abs().sum(), by_ratio.abs().sum(), by_logprob.abs().sum()] == [0.0, 0.0, 0.0]


@settings(max_examples=40)
@given(batch=batches())
def test_dynamic_likelihood_has_the_slope_of_the_probability_itself(batch: Batch) -> None:
    logprobs = batch.tokens.logprobs.clone().requires_grad_()
    gain = (batch.advantages * logprobs.exp() * batch.tokens.mask).sum()
    (slopes,) = torch.autograd.grad(-gain, logprobs)
    found = policy_gradient(likelihoods.dynamic_likelihood, batch)
    numpy.testing.assert_allclose(found.tolist(), slopes.tolist(), atol=1e-12)


def test_an_impossible_token_moves_a_dynamic_likelihood_by_nothing() -> None:
    batch = build([3], [True] * 3, seed=0, scale=0.3)
    far = batch._replace(tokens=batch.tokens._replace(logprobs=torch.full_like(batch.log_ratio, -1e4)))
    loss, _, by_logprob = measured(likelihoods.dynamic_likelihood, far)
    assert [loss.abs().sum(), by_logprob.abs().sum()] == [0.0, 0.0]


@settings(max_examples=40)
@given(batch=batches())
def test_a_regression_is_solved_by_log_ratios_of_advantage_over_beta(batch: Batch) -> None:
    solved = batch._replace(log_ratio=batch.advantages / 0.25)
    loss, by_ratio, _ = measured(likelihoods.regressed, solved, contrast_beta=0.25)
    assert [loss.abs().sum(), by_ratio.abs().sum()] == [0.0, 0.0]
    started = batch._replace(log_ratio=torch.zeros_like(batch.log_ratio))
    _, slopes, _ = measured(likelihoods.regressed, started, contrast_beta=0.25)
    numpy.testing.assert_allclose(slopes.tolist(), (0.25 * policy_gradient(likelihoods.likelihood, batch)).tolist())


class TestBellmanOnATreeOfTwoTokens:
    """All nine responses of two tokens from a vocabulary of three, with a reward for each token."""

    first = torch.tensor([0.3, -1.0, 0.5], dtype=torch.float64)
    second = torch.tensor([[1.0, 0.0, -0.4], [0.2, 0.2, 2.0], [-3.0, 0.1, 0.7]], dtype=torch.float64)

    def batch(self, scale: float, error: float = 0.0) -> Batch:
        """Log-ratios that hold the values of the policy that picks uniformly, worked out from the leaves."""
        log_ratio, advantages, uniform, segment = [], [], [], []
        for number, (one, two) in enumerate(itertools.product(range(3), range(3))):
            after = float(self.second[one].mean())
            log_ratio += [(float(self.first[one]) + after) / scale + error, float(self.second[one, two]) / scale]
            advantages += [float(self.first[one]), float(self.second[one, two])]
            uniform += [after / scale, 0.0]
            segment += [number, number]
        wide = [torch.tensor(v, dtype=torch.float64) for v in (log_ratio, advantages, uniform)]
        tokens = Tokens(
            torch.full_like(wide[0], -1.1), torch.ones(18, dtype=torch.bool), torch.tensor(segment), wide[2]
        )
        return Batch(wide[0], wide[1], tokens)

    @pytest.mark.parametrize("scale", [1.0, 0.25])
    def test_the_uniform_policy_s_values_are_the_fixed_point(self, scale: float) -> None:
        loss, by_ratio, _ = measured(likelihoods.bellman, self.batch(scale), rover_scale=scale)
        assert float(loss.max()) < 1e-24
        assert float(by_ratio.abs().max()) < 1e-12

    def test_an_error_is_pulled_back(self) -> None:
        loss, by_ratio, _ = measured(likelihoods.bellman, self.batch(1.0, error=0.1))
        numpy.testing.assert_allclose(loss.tolist(), [0.01, 0.0] * 9, atol=1e-12)
        numpy.testing.assert_allclose(by_ratio.tolist(), [0.2, 0.0] * 9, atol=1e-12)

    def test_the_target_carries_no_gradient(self) -> None:
        batch = self.batch(1.0, error=0.1)
        uniform = batch.tokens.uniform.clone().requires_grad_()
        loss = call(likelihoods.bellman, batch._replace(tokens=batch.tokens._replace(uniform=uniform)))
        assert not loss.requires_grad

    def test_without_the_next_state_s_mean_it_says_what_is_missing(self) -> None:
        batch = self.batch(1.0)
        with pytest.raises(ValueError, match=r"tokens\.uniform"):
            call(likelihoods.bellman, batch._replace(tokens=batch.tokens._replace(uniform=None)))
