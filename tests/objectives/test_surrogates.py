"""Surrogates against one token worked out at a time, with derivatives by hand, and the laws that tie them together."""

from __future__ import annotations

import math
from functools import partial

import numpy
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from posttrain.objectives import likelihoods, surrogates
from posttrain.objectives.tokens import Tokens
from tests.objectives.ragged import Batch, agrees, batches, build, call, ignores_garbage, measured, policy_gradient

Row = tuple[float, float, float]


def numbers(batch: Batch, i: int) -> tuple[float, float, float]:
    return float(batch.log_ratio[i]), float(batch.advantages[i]), float(batch.tokens.logprobs[i])


def reinforce(batch: Batch, i: int) -> Row:
    _, a, _ = numbers(batch, i)
    return -a, -a, 0.0


def kl_penalised(batch: Batch, i: int) -> Row:
    lr, a, _ = numbers(batch, i)
    return -math.exp(lr) * a, -math.exp(lr) * a, 0.0


def clip(batch: Batch, i: int, clip_low: float = 0.2, clip_high: float = 0.2) -> Row:
    lr, a, _ = numbers(batch, i)
    ratio = math.exp(lr)
    if a > 0 and ratio > 1 + clip_high:
        return -(1 + clip_high) * a, 0.0, 0.0
    if a < 0 and ratio < 1 - clip_low:
        return -(1 - clip_low) * a, 0.0, 0.0
    return -ratio * a, -ratio * a, 0.0


def dual_clip(batch: Batch, i: int, clip_low: float = 0.2, clip_high: float = 0.2, dual_clip: float = 3.0) -> Row:
    lr, a, _ = numbers(batch, i)
    if a < 0 and math.exp(lr) > dual_clip:
        return -dual_clip * a, 0.0, 0.0
    return clip(batch, i, clip_low, clip_high)


def geometric_clip(batch: Batch, i: int, clip_low: float = 0.4, clip_high: float = 0.4) -> Row:
    """The derivative is that of the sum over the sequence's losses, since all of them contain every log-ratio."""

    def clipped(j: int) -> float:
        lr, a, _ = numbers(batch, j)
        return min(lr, clip_high) if a > 0 else max(lr, -clip_low)

    own = batch.members(i)
    common = math.exp(sum(clipped(j) for j in own) / len(own))
    credit = sum(float(batch.advantages[j]) for j in own)
    moves = clipped(i) == float(batch.log_ratio[i])
    return -common * float(batch.advantages[i]), -common * credit / len(own) * moves, 0.0


def soft_gate(batch: Batch, i: int, tau_positive: float = 1.0, tau_negative: float = 1.05) -> Row:
    lr, a, _ = numbers(batch, i)
    tau, ratio = (tau_positive if a > 0 else tau_negative), math.exp(lr)
    gate = 1 / (1 + math.exp(-tau * (ratio - 1)))
    return -4 / tau * gate * a, -4 * gate * (1 - gate) * ratio * a, 0.0


def clipped_weight(batch: Batch, i: int, clip_low: float = 1.0, clip_high: float = 0.28) -> Row:
    lr, a, logp = numbers(batch, i)
    weight = min(max(math.exp(lr), 1 - clip_low), 1 + clip_high)
    return -weight * a * logp, 0.0, -weight * a


def truncated_weight(batch: Batch, i: int, weight_cap: float = 1.0) -> Row:
    lr, a, logp = numbers(batch, i)
    weight = min(math.exp(lr), weight_cap)
    return -weight * a * logp, 0.0, -weight * a


def within(batch: Batch, i: int, distance: float, max_divergence: float) -> Row:
    lr, a, _ = numbers(batch, i)
    ratio = math.exp(lr)
    leaves = (a > 0 and ratio > 1) or (a < 0 and ratio < 1)
    return -ratio * a, 0.0 if distance > max_divergence and leaves else -ratio * a, 0.0


def binary_tv(batch: Batch, i: int, max_divergence: float = 0.2) -> Row:
    lr, _, logp = numbers(batch, i)
    new, old = [math.exp(logp), -math.expm1(logp)], [math.exp(logp - lr), -math.expm1(logp - lr)]
    return within(batch, i, sum(abs(p - q) for p, q in zip(new, old, strict=True)) / 2, max_divergence)


def binary_kl(batch: Batch, i: int, max_divergence: float = 0.05) -> Row:
    lr, _, logp = numbers(batch, i)
    new, old = [math.exp(logp), -math.expm1(logp)], [math.exp(logp - lr), -math.expm1(logp - lr)]
    return within(batch, i, sum(q * math.log(q / p) for p, q in zip(new, old, strict=True)), max_divergence)


def drift(batch: Batch, i: int, drift_alpha: float = 2.0, drift_beta: float = 0.6) -> Row:
    lr, a, _ = numbers(batch, i)
    ratio = math.exp(lr)
    # d/dx (x - c tanh(x / c)) = tanh(x / c)^2.
    if a >= 0:
        x, dx, c = (ratio - 1) * a, ratio * a, drift_alpha
    else:
        x, dx, c = lr * a, a, drift_beta
    value, slope = (x - c * math.tanh(x / c), math.tanh(x / c) ** 2 * dx) if x > 0 else (0.0, 0.0)
    return value - ratio * a, slope - ratio * a, 0.0


def mirror_descent(batch: Batch, i: int, step_size: float = 1.0) -> Row:
    lr, a, _ = numbers(batch, i)
    ratio = math.exp(lr)
    return (ratio * lr - ratio + 1) / step_size - ratio * a, ratio * lr / step_size - ratio * a, 0.0


CASES = [
    (surrogates.reinforce, reinforce, {}),
    (surrogates.clip, clip, {}),
    (surrogates.clip, clip, {"clip_low": 0.1, "clip_high": 0.4}),
    (surrogates.dual_clip, dual_clip, {}),
    (surrogates.dual_clip, dual_clip, {"clip_low": 0.1, "clip_high": 0.3, "dual_clip": 1.5}),
    (surrogates.geometric_clip, geometric_clip, {}),
    (surrogates.geometric_clip, geometric_clip, {"clip_low": 0.05, "clip_high": 0.3}),
    (surrogates.soft_gate, soft_gate, {}),
    (surrogates.soft_gate, soft_gate, {"tau_positive": 0.5, "tau_negative": 3.0}),
    (surrogates.clipped_weight, clipped_weight, {}),
    (surrogates.clipped_weight, clipped_weight, {"clip_low": 0.3, "clip_high": 0.1}),
    (surrogates.truncated_weight, truncated_weight, {}),
    (surrogates.truncated_weight, truncated_weight, {"weight_cap": 1.2}),
    (surrogates.binary_tv, binary_tv, {}),
    (surrogates.binary_tv, binary_tv, {"max_divergence": 0.03}),
    (surrogates.binary_kl, binary_kl, {}),
    (surrogates.binary_kl, binary_kl, {"max_divergence": 0.003}),
    (surrogates.drift, drift, {}),
    (surrogates.drift, drift, {"drift_alpha": 0.3, "drift_beta": 0.1}),
    (surrogates.mirror_descent, mirror_descent, {}),
    (surrogates.mirror_descent, mirror_descent, {"step_size": 0.2}),
    (surrogates.kl_penalised, kl_penalised, {}),
]
IDS = [f"{f.__name__}-{'other' if p else 'default'}" for f, _, p in CASES]


@pytest.mark.parametrize(("function", "slow", "parameters"), CASES, ids=IDS)
@settings(max_examples=50)
@given(batch=batches())
def test_value_and_gradient_are_those_of_one_token_at_a_time(
    function: object, slow: object, parameters: dict[str, float], batch: Batch
) -> None:
    agrees(function, slow, batch, parameters)


@pytest.mark.parametrize("function", sorted({f for f, _, _ in CASES}, key=lambda f: f.__name__))
@settings(max_examples=20)
@given(batch=batches())
def test_what_stands_outside_the_mask_changes_nothing(function: object, batch: Batch) -> None:
    ignores_garbage(function, batch, {})


@pytest.mark.parametrize("function", [surrogates.geometric_clip, surrogates.binary_kl, surrogates.clipped_weight])
def test_a_batch_without_a_token_of_the_policy_is_finite_and_teaches_nothing(function: object) -> None:
    batch = build([2, 1], [False] * 3, seed=0, scale=0.3)
    assert policy_gradient(function, batch).tolist() == [0.0] * 3


SMOOTH = [
    surrogates.clip,
    surrogates.dual_clip,
    surrogates.geometric_clip,
    surrogates.soft_gate,
    surrogates.drift,
    surrogates.mirror_descent,
    surrogates.kl_penalised,
]


@pytest.mark.parametrize("function", SMOOTH)
@pytest.mark.parametrize("scale", [0.1, 1.0])
def test_gradients_agree_with_finite_differences(function: object, scale: float) -> None:
    batch = build([1, 5, 2, 4], [i % 4 != 2 for i in range(12)], seed=3, scale=scale)

    def loss(log_ratio: Tensor) -> Tensor:
        return call(function, batch._replace(log_ratio=log_ratio))[batch.tokens.mask]

    # A kink cannot be differenced across: what the reference says there is checked above.
    apart = batch.log_ratio + 1e-3 * (batch.log_ratio == 0)
    assert torch.autograd.gradcheck(loss, (apart.requires_grad_(),))


AT_RATIO_ONE = [
    *SMOOTH,
    surrogates.reinforce,
    surrogates.clipped_weight,
    surrogates.truncated_weight,
    surrogates.binary_tv,
    surrogates.binary_kl,
    partial(surrogates.soft_gate, tau_positive=0.3, tau_negative=7.0),
    likelihoods.likelihood,
    likelihoods.kept_likelihood,
]


@pytest.mark.parametrize("function", AT_RATIO_ONE)
@settings(max_examples=20)
@given(batch=batches(shared=True))
def test_at_ratio_one_the_gradient_is_reinforce_s(function: object, batch: Batch) -> None:
    found = policy_gradient(function, batch._replace(log_ratio=torch.zeros_like(batch.log_ratio)))
    numpy.testing.assert_allclose(found.tolist(), (-batch.advantages * batch.tokens.mask).tolist(), atol=1e-12)


@settings(max_examples=50)
@given(batch=batches())
def test_dual_clip_is_clip_for_good_tokens_and_bounded_for_bad_ones(batch: Batch) -> None:
    good = batch._replace(advantages=batch.advantages.abs())
    for one, other in zip(measured(surrogates.dual_clip, good), measured(surrogates.clip, good), strict=True):
        assert one.tolist() == other.tolist()
    bad = batch._replace(log_ratio=batch.log_ratio.abs() * 9, advantages=-batch.advantages.abs())
    objective = -call(surrogates.dual_clip, bad)
    assert bool((objective >= 3.0 * bad.advantages).all())


@settings(max_examples=50)
@given(batch=batches())
def test_geometric_clip_at_length_one_is_clip_in_log_space(batch: Batch) -> None:
    size = len(batch.log_ratio)
    single = batch._replace(
        tokens=batch.tokens._replace(mask=torch.ones(size, dtype=torch.bool), segment=torch.arange(size))
    )
    bounds = {"clip_low": 1 - math.exp(-0.3), "clip_high": math.exp(0.2) - 1}
    log_space = measured(surrogates.geometric_clip, single, clip_low=0.3, clip_high=0.2)
    for one, other in zip(log_space, measured(surrogates.clip, single, **bounds), strict=True):
        numpy.testing.assert_allclose(one.tolist(), other.tolist(), atol=1e-12)


def test_geometric_clip_gives_every_token_of_a_response_the_same_loss() -> None:
    batch = build([4, 3], [True, False, True, True, True, True, False], seed=5, scale=0.5, shared=True)
    loss = call(surrogates.geometric_clip, batch)
    assert len(set(loss[:4].tolist())) == 1
    assert len(set(loss[4:].tolist())) == 1


@settings(max_examples=50)
@given(batch=batches())
def test_a_weight_without_bounds_is_the_importance_weighted_gradient(batch: Batch) -> None:
    plain = policy_gradient(surrogates.kl_penalised, batch)
    for function, parameters in (
        (surrogates.clipped_weight, {"clip_high": 1e9}),
        (surrogates.truncated_weight, {"weight_cap": 1e9}),
        (surrogates.binary_tv, {"max_divergence": 1.0}),
        (surrogates.binary_kl, {"max_divergence": 1e9}),
        (surrogates.dual_clip, {"clip_low": 1.0, "clip_high": 1e9, "dual_clip": 1e9}),
        (surrogates.drift, {"drift_alpha": 1e9, "drift_beta": 1e9}),
        (surrogates.mirror_descent, {"step_size": 1e12}),
    ):
        found = policy_gradient(function, batch, **parameters)
        numpy.testing.assert_allclose(found.tolist(), plain.tolist(), atol=1e-9, err_msg=function.__name__)


@settings(max_examples=50)
@given(batch=batches())
def test_with_no_room_only_updates_that_do_not_lead_further_keep_their_gradient(batch: Batch) -> None:
    back = batch.tokens.mask & (batch.advantages * (batch.log_ratio.exp() - 1) <= 0)
    plain = policy_gradient(surrogates.kl_penalised, batch)
    for function in (surrogates.binary_tv, surrogates.binary_kl):
        assert policy_gradient(function, batch, max_divergence=0.0).tolist() == (plain * back).tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("function", [surrogates.binary_tv, surrogates.binary_kl])
def test_certain_tokens_are_finite(function: object, dtype: torch.dtype) -> None:
    """A probability that rounds to 1, before or after, or to above 1 before."""
    logprobs = torch.tensor([0.0, 0.0, -1e-9, -30.0, -1e-9], dtype=dtype)
    log_ratio = torch.tensor([0.0, 1e-7, 0.0, -30.0, -1e-6], dtype=dtype, requires_grad=True)
    tokens = Tokens(logprobs, torch.ones(5, dtype=torch.bool), torch.zeros(5, dtype=torch.long))
    advantages = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0], dtype=dtype)
    loss = function(log_ratio, advantages, tokens)
    (gradient,) = torch.autograd.grad(loss.sum(), log_ratio)
    assert bool(loss.isfinite().all())
    # Only the fourth has gone anywhere: from certain to never, and its advantage would push it on.
    assert gradient.sign().tolist() == [-1.0, -1.0, 1.0, 0.0, -1.0]


class TestExpectationsOverAFiveTokenVocabulary:
    """Every expectation is a sum over the vocabulary under the previous policy, so nothing is left to sampling."""

    old = torch.tensor([0.2, -1.0, 0.7, 0.1, -0.4], dtype=torch.float64).log_softmax(-1)
    worth = torch.tensor([1.0, -0.5, 0.3, 0.0, -2.0], dtype=torch.float64)

    def expected(self, function: object, worth: Tensor) -> tuple[Tensor, Tensor]:
        logits = torch.tensor([0.5, 0.3, -0.6, 0.0, -0.2], dtype=torch.float64, requires_grad=True)
        value = (self.old.exp() * function(logits.log_softmax(-1) - self.old, worth)).sum()
        return value, torch.autograd.grad(value, logits)[0]

    def exact(self, function: object) -> tuple[Tensor, Tensor]:
        logits = torch.tensor([0.5, 0.3, -0.6, 0.0, -0.2], dtype=torch.float64, requires_grad=True)
        value = function(logits.log_softmax(-1))
        return value, torch.autograd.grad(value, logits)[0]

    def test_the_mirror_descent_penalty_is_the_kl_to_the_previous_policy(self) -> None:
        found = self.expected(partial(surrogates.mirror_descent, step_size=0.5), torch.zeros(5, dtype=torch.float64))
        exact = self.exact(lambda new: 2 * (new.exp() * (new - self.old)).sum())
        torch.testing.assert_close(found, exact)

    def test_the_penalty_is_never_negative(self) -> None:
        log_ratio = torch.linspace(-3, 3, 61, dtype=torch.float64)
        penalty = surrogates.mirror_descent(log_ratio, torch.zeros_like(log_ratio))
        assert bool((penalty >= -1e-15).all())

    def test_the_importance_ratio_makes_the_loss_that_of_the_policy_itself(self) -> None:
        exact = self.exact(lambda new: -(new.exp() * self.worth).sum())
        torch.testing.assert_close(self.expected(surrogates.kl_penalised, self.worth), exact)

    @pytest.mark.parametrize("function", [surrogates.clip, surrogates.dual_clip, surrogates.drift])
    def test_a_pessimistic_surrogate_promises_no_more_than_the_policy_earns(self, function: object) -> None:
        assert self.expected(function, self.worth)[0] >= self.expected(surrogates.kl_penalised, self.worth)[0]
