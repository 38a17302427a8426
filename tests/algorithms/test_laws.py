"""Rows that are the same algorithm in a limit give the same loss and the same gradient there."""

from __future__ import annotations

import torch
from torch import Tensor

from posttrain.algorithms.choice import choose
from posttrain.algorithms.credit import assign_credit
from posttrain.algorithms.loss import batch_loss
from posttrain.algorithms.row import Algorithm
from posttrain.algorithms.state import Coefficients, Terms
from posttrain.data.packing import Packing, pack
from posttrain.types import Annotation, Group, Rollout, Sample, Scored, Verdict
from tests.tiny import prompt

PACKING = Packing(10**9, dtype=torch.float64)


def groups(lengths: tuple[int, ...] = (3, 1, 4, 2)) -> list[Group]:
    """Two groups of unequal lengths and scores."""
    out = []
    for number, scores in enumerate(((1.0, 0.0, 0.5, 0.0), (0.2, 0.9, 0.0, 1.0))):
        rollouts = tuple(
            Rollout((2, 3, *range(4, 4 + n)), (False, False) + (True,) * n, "", "stop", (0.0, 0.0) + (-1.0,) * n)
            for n in lengths
        )
        out.append(Group(prompt([number + 2, 3]), rollouts, tuple(Verdict(s) for s in scores)))
    return out


def noise(seed: int, count: int) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def learnt(algorithm: Algorithm, rows: list[Group], apart: float) -> tuple[float, Tensor, list[Sample]]:
    """Loss, gradient with respect to the policy's log-probabilities, and the samples. `apart` is how far the policy is
    from the one before the first update; 0 is the first update itself.
    """
    annotations = []
    for number, group in enumerate(rows):
        lengths = [len(r.tokens) for r in group.rollouts]
        previous = [-1.0 + 0.1 * noise(10 * number + i, n) for i, n in enumerate(lengths)] if apart else None
        values = [noise(100 + 10 * number + i, n + 1)[:, None] for i, n in enumerate(lengths)]
        annotations.append(Annotation(previous, values=values if algorithm.needs.critic else None))
    samples, _ = assign_credit(algorithm, rows, annotations, Terms(max_tokens=8))
    (batch,) = pack(samples, PACKING)
    logprobs = (
        torch.full((len(batch.tokens),), -1.0, dtype=torch.float64) + apart * noise(7, len(batch.tokens))
    ).requires_grad_()
    loss, _ = batch_loss(algorithm, Scored(logprobs, torch.zeros_like(logprobs)), batch, Coefficients(8))
    (gradient,) = torch.autograd.grad(loss, logprobs)
    return float(loss.detach()), gradient, samples


def test_ppo_with_one_update_is_a2c_is_reinforce_against_its_critic() -> None:
    """2205.09123: the ratio is 1, so clipping does nothing. One bound of n steps beyond the end is lambda = 1."""
    plain = {"whitening": "none", "correction": "none"}
    ppo = choose("ppo", {**plain, "lam": 1.0})
    a2c = choose("a2c", {**plain, "entropy": "none", "n_steps": 100})
    critic_free = choose("ppo", {**plain, "lam": 1.0, "objective": "reinforce"})
    _, expected, samples = learnt(ppo, groups(), 0.0)
    assert float(expected.abs().max()) > 0.01
    for other in (a2c, critic_free):
        _, gradient, again = learnt(other, groups(), 0.0)
        torch.testing.assert_close(gradient, expected, atol=1e-12, rtol=0)
        for one, two in zip(samples, again, strict=True):
            torch.testing.assert_close(one.advantages, two.advantages, atol=1e-12, rtol=0)
            torch.testing.assert_close(one.returns, two.returns, atol=1e-12, rtol=0)


def test_gspo_is_grpo_where_every_response_is_one_token_and_not_where_they_are_longer() -> None:
    bounds = {"clip_low": 0.1, "clip_high": 0.1}
    gspo, grpo = choose("gspo", bounds), choose("grpo", bounds)
    short = groups((1, 1, 1, 1))
    one, two = learnt(gspo, short, 0.2), learnt(grpo, short, 0.2)
    assert abs(one[0] - two[0]) < 1e-12
    torch.testing.assert_close(one[1], two[1], atol=1e-12, rtol=0)
    assert float((learnt(gspo, groups(), 0.2)[1] - learnt(grpo, groups(), 0.2)[1]).abs().max()) > 1e-3


def test_dapo_with_equal_clips_and_a_mean_over_responses_is_grpo() -> None:
    changed = {"clip_high": 0.2, "reduction": "sequence_mean", "shaping": "none", "selection": "all"}
    dapo, grpo = choose("dapo", changed), choose("grpo", {})
    assert {c: str(cell) for c, cell in dapo.cells.items()} == {c: str(cell) for c, cell in grpo.cells.items()}
    one, two = learnt(dapo, groups(), 0.2), learnt(grpo, groups(), 0.2)
    assert one[0] == two[0]
    assert torch.equal(one[1], two[1])
    assert not torch.equal(learnt(choose("dapo", {}), groups(), 0.2)[1], two[1])


def test_rloo_is_a_mean_baseline_scaled_by_the_size_of_its_group() -> None:
    rloo, plain = choose("rloo", {}), choose("rloo", {"credit": "group_mean"})
    torch.testing.assert_close(learnt(rloo, groups(), 0.0)[1], learnt(plain, groups(), 0.0)[1] * 4 / 3)
