"""Rows that are the same algorithm in a limit give the same loss and the same gradient there."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.algorithms.choice import choose
from posttrain.algorithms.credit import assign_credit
from posttrain.algorithms.loss import batch_loss
from posttrain.algorithms.row import Algorithm
from posttrain.algorithms.state import Coefficients, Terms
from posttrain.data.packing import Packing, join, pack
from posttrain.types import Annotation, Group, Rollout, Sample, Scored, Verdict
from tests.tiny import prompt

USUAL = 0.4
"""The log-ratio that a run takes for usual."""
PACKING = Packing(10**9, dtype=torch.float64)


Scores = tuple[tuple[float, ...], ...]
FOURS: Scores = ((1.0, 0.0, 0.5, 0.0), (0.2, 0.9, 0.0, 1.0))
PAIRS: Scores = ((1.0, 0.0), (0.0, 1.0), (1.0, 0.0))


def groups(lengths: tuple[int, ...] = (3, 1, 4, 2), worth: Scores = FOURS) -> list[Group]:
    """Groups of unequal lengths and scores. What scores most was said by the data, all else by an opponent."""
    out = []
    for number, scores in enumerate(worth):
        rollouts = tuple(
            Rollout(
                (2, 3, *range(4, 4 + n)),
                (False, False) + (True,) * n,
                "",
                "stop",
                (0.0, 0.0) + (-1.0,) * n,
                author="data" if score == max(scores) else "opponent",
            )
            for n, score in zip(lengths, scores, strict=False)
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
        reference = [-1.0 + 0.3 * noise(200 + 10 * number + i, n)[:, None] for i, n in enumerate(lengths)]
        annotations.append(
            Annotation(
                previous,
                reference=reference if algorithm.needs.reference else None,
                values=values if algorithm.needs.critic else None,
            )
        )
    samples, _ = assign_credit(algorithm, rows, annotations, Terms(max_tokens=8))
    batch = join(list(pack(samples, PACKING)))
    # Rows are not packed in the order of the samples: each has its own noise.
    order, lengths = batch.index.tolist(), batch.lengths.tolist()
    logprobs = torch.cat([-1.0 + apart * noise(7 + i, n) for i, n in zip(order, lengths, strict=True)]).requires_grad_()
    # Two draws collide as often as the policy says what was said: every response is as likely as usual.
    scored = Scored(logprobs, torch.zeros_like(logprobs), collision=logprobs.detach())
    usual = Coefficients(8, kl=0.3, baseline=USUAL if algorithm.needs.shift or algorithm.needs.mismatched else 0.0)
    loss, _ = batch_loss(algorithm, scored, batch, usual)
    (gradient,) = torch.autograd.grad(loss, logprobs)
    by_sample = dict(zip(order, gradient.split(lengths), strict=True))
    return float(loss.detach()), torch.cat([by_sample[i] for i in sorted(order)]), samples


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


Row = tuple[str, dict[str, Any]]
SUMS = {"ratio": "sequence_sum"}
OF_PAIRS: list[tuple[Row, float, Row]] = [
    # A row is so many times another one.
    (("lipo", {}), 1 / math.log(2) - 1 / math.log(3), ("dpo", {})),
    (("lipo", {"objective": "pairwise_logistic"}), 1.0, ("dpo", {})),
    (("lipo", {"objective": "pairwise_hinge", "contrast_beta": 0.7}), 1.0, ("slic", {"contrast_beta": 0.7})),
    (("pro", {}), 1.0, ("dpo", {})),
    (("exo", {"objective": "exo_best", "label_smoothing": 0.1}), 1.0, ("exo_pair", {"label_smoothing": 0.1})),
    (("cpl", {"anchor": "reference"}), 1.0, ("dpo", {})),
    (("spin", {}), 1.0, ("dpo", {})),
    (("accelerated_dpo", {}), 1.0, ("dpo", {})),
    (("iterative_dpo", {}), 1.0, ("online_dpo", {})),
    (("robust_dpo", {"label_smoothing": 0.0}), 1.0, ("dpo", {})),
    (("f_dpo", {"divergence": "alpha", "alpha_coefficient": 1.0}), 1.0, ("dpo", {})),
    (("ld_dpo", {"ld_alpha": 1.0}), 1.0, ("dpo", {})),
    (("wpo", {}), 1.0, ("dpo", {})),
    (("modpo", {"objective_weight": 1.0}), 1.0, ("odpo", {})),
    (("simpo", {"simpo_gamma": 0.0}), 1.0, ("dpo_norm", {"anchor": "none", "contrast_beta": 2.0})),
    (("alphapo", {"alphapo_alpha": 0.0, "contrast_beta": 2.0}), 1.0, ("simpo", {})),
    (("sppo", {"contrast_beta": 0.1}), 0.5, ("sppo_hard", {})),
    (("kto_apo_zero", {}), 0.5, ("apo_zero", {})),
    (("bco", {}), 0.5, ("bco_pair", {})),
    (("dpo", {"label_smoothing": 1 / (1 + math.e)}), 1.0, ("k_way", {})),
    (("dno", {}), 1.0, ("k_way", {})),
    (("agro_offline", {}), 1.0, ("copg_offline", {})),
    (("dpo", {"cloning": "best"}), 1.0, ("rpo", {})),
]


@pytest.mark.parametrize(("one", "times", "other"), OF_PAIRS, ids=str)
def test_rows_that_agree_on_pairs_give_the_same_loss_and_gradient_there(one: Row, times: float, other: Row) -> None:
    rows = groups((3, 1), PAIRS)
    (left, slope, _), (right, expected, _) = (learnt(choose(*row), rows, 0.5) for row in (one, other))
    assert float(expected.abs().max()) > 1e-3
    assert left == pytest.approx(times * right, rel=1e-12)
    torch.testing.assert_close(slope, times * expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["lipo", "pro", "exo", "sppo", "kto_apo_zero", "bco", "dno", "agro_offline"])
def test_on_larger_groups_they_part(name: str) -> None:
    others = {row[0]: other for row, _, other in OF_PAIRS if row[0] == name}
    one, other = (learnt(choose(*row), groups(), 0.5)[1] for row in ((name, {}), others[name]))
    if name == "agro_offline":
        # An unbiased variance is half the mean squared difference of all pairs.
        torch.testing.assert_close(one, other, atol=1e-12, rtol=0)
    else:
        direction = torch.nn.functional.cosine_similarity(one, other, dim=0)
        assert float(direction) < 0.999


def test_ipo_is_copg_on_scores_half_a_point_apart() -> None:
    """2406.19185: (1/2 - beta d)^2 / (2 beta) is beta / 2 times (d - 1 / (2 beta))^2."""
    rows = groups((3, 1), ((0.5, 0.0), (0.25, 0.75)))
    ipo, copg = learnt(choose("ipo", SUMS), rows, 0.5), learnt(choose("copg_offline", {}), rows, 0.5)
    assert ipo[0] == pytest.approx(copg[0] * 2 / 0.1, rel=1e-12)
    torch.testing.assert_close(ipo[1], copg[1] * 2 / 0.1, atol=1e-12, rtol=0)


def test_cpo_whose_likelihood_counts_next_to_nothing_is_dpo_without_a_reference() -> None:
    rows = groups((3, 1), PAIRS)
    plain = learnt(choose("dpo", {"anchor": "none"}), rows, 0.5)
    small = learnt(choose("cpo", {"cloning_coefficient": 1e-9}), rows, 0.5)
    torch.testing.assert_close(small[1], plain[1], atol=2e-9, rtol=0)
    assert not torch.allclose(learnt(choose("cpo", {}), rows, 0.5)[1], plain[1], atol=0.01)


def test_optimism_that_counts_next_to_nothing_is_online_dpo() -> None:
    plain, small = (learnt(choose(*row), groups(), 0.5) for row in (("online_dpo", {}), ("xpo", {"xpo_alpha": 1e-9})))
    torch.testing.assert_close(small[1], plain[1], atol=2e-9, rtol=0)


def test_a_mixture_of_losses_is_the_sum_of_its_parts() -> None:
    rows = groups((3, 1), PAIRS)
    mixed = learnt(choose("mpo", {"cloning": "none", "sigmoid_weight": 0.3, "bco_weight": 0.6}), rows, 0.5)
    parts = learnt(choose("dpo", {}), rows, 0.5), learnt(choose("bco_pair", {}), rows, 0.5)
    torch.testing.assert_close(mixed[1], 0.3 * parts[0][1] + 0.6 * parts[1][1], atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["dpo", "ipo", "sft", "kto"])
def test_a_penalty_towards_the_reference_is_added_to_whatever_the_loss_is(name: str) -> None:
    def added(row: str) -> Tensor:
        rows = groups((3, 1), PAIRS)
        kept = {"keep": "all"}
        held = learnt(choose(row, {**kept, "kl": "in_loss", "kl_estimator": "k2"}), rows, 0.5)
        return held[1] - learnt(choose(row, kept), rows, 0.5)[1]

    assert float(added("slic").abs().max()) > 1e-3
    torch.testing.assert_close(added(name), added("slic"), atol=1e-12, rtol=0)


def test_supervised_learning_moves_every_token_alike_and_dft_by_its_probability() -> None:
    rows = groups((3,), ((1.0,), (1.0,)))
    _, plain, _ = learnt(choose("sft", {}), rows, 0.5)
    _, dynamic, _ = learnt(choose("dft", {}), rows, 0.5)
    logprobs = -1.0 + 0.5 * torch.cat([noise(7 + i, 5) for i in range(2)])
    said = plain != 0
    assert plain[said].tolist() == pytest.approx([-1 / 6] * 6)
    torch.testing.assert_close(dynamic, plain * logprobs.exp() * said)
