"""Critics, penalties, bounds and selections do on the toy task what they are there for, and no more."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from posttrain.algorithms.choice import choose
from posttrain.algorithms.rewards import read_values
from posttrain.loops.learning import Updates
from posttrain.types import Prompt, Rollout, Verdict
from tests.algorithms.toy_runs import (
    BEFORE,
    GOAL,
    Run,
    Setting,
    learn_values,
    optimum,
    train,
)
from tests.toy import (
    ASKED,
    LENGTH,
    PROMPTS,
    TARGETS,
    VOCABULARY,
    ToyGrader,
    ToySampler,
    hits,
)


@pytest.mark.parametrize("seed", range(3))
def test_a_critic_of_bins_learns_as_one_of_squares_does(seed: int) -> None:
    run = train(choose("ppo", {"critic": "hl_gauss"}), Setting(), seed)
    assert run.reached >= GOAL, run.rewards


@pytest.mark.parametrize("kind", ["squared", "hl_gauss"])
def test_a_critic_that_learns_alone_comes_to_value_the_policys_states(kind: str) -> None:
    # A policy that hits about every other time, so that states differ in what they are worth.
    algorithm = choose("ppo", {"critic": kind})
    learner = train(algorithm, Setting(rate=0.03, goal=2, steps=3), 0).learner
    before, version = learner.table(), learner.version
    groups = learn_values(learner, kind, steps=60)
    assert torch.equal(learner.table(), before)
    assert learner.version == version
    chances = before.exp()[torch.arange(len(PROMPTS)), :, TARGETS]
    said, exact = [], []
    for group in groups:
        for rollout, outputs in zip(group.rollouts, learner.values(group.rollouts), strict=True):
            # What was hit so far is certain, what is to come is the policy's chance of it.
            hit, chance = hits(group.prompt, rollout), chances[int(group.prompt.id)]
            exact += [(sum(hit[:t]) + float(chance[t:].sum())) / LENGTH for t in range(LENGTH)]
            said += read_values(algorithm, outputs)[1:-1].tolist()
    error, spread = torch.tensor(said) - torch.tensor(exact), torch.tensor(exact)
    assert error.square().mean() < 0.25 * spread.var()


HELD: dict[str, tuple[str, dict[str, Any]]] = {
    "a contrast to the reference": ("copg", {}),
    "the variance of a regularised reward": ("agro", {}),
    "k2 as a loss": ("rloo", {"kl": "in_loss", "kl_estimator": "k2", "kl_coefficient": 0.1}),
    "exact KL as a loss": ("rloo", {"kl": "in_loss", "kl_estimator": "exact", "kl_coefficient": 0.1}),
    "k1 as a reward of the whole": ("rloo", {"kl": "in_reward", "kl_coefficient": 0.1}),
    "k1 as a reward of each token": ("reinforce_pp", {"kl_coefficient": 0.1}),
    "k1 as a reward of each token with a critic": ("ppo", {"kl": "in_reward", "kl_coefficient": 0.1, "lam": 1.0}),
    "two references": ("rloo", {"kl": "in_loss", "kl_estimator": "k2", "kl_coefficient": 0.1}),
    "entropy": ("rloo", {"entropy": "bonus", "entropy_coefficient": 0.1}),
}


@pytest.mark.parametrize("case", HELD)
def test_a_regularised_goal_is_reached_at_its_own_optimum_and_no_further(case: str) -> None:
    name, overrides = HELD[case]
    shares = (0.3, 0.7) if case == "two references" else (1.0,)
    setting = Setting(updates=Updates(1, 1), steps=80, rate=0.02, goal=2, references=shares)
    run = train(choose(name, overrides), setting, 0)
    tables = [share * net(ASKED) for share, net in zip(shares, run.learner.references, strict=True)]
    # KL to several references is, but for a constant, that to their weighted geometric mean.
    reference = torch.stack(tables).sum(0).log_softmax(-1)
    if case == "entropy":
        # Entropy is, but for a constant, minus the KL to the uniform policy.
        reference = torch.full_like(reference, -math.log(VOCABULARY))
    found = sum(run.rewards[-20:]) / 20
    # Steps of one size keep a policy from resting at the optimum itself.
    assert found == pytest.approx(optimum(reference, 0.1), abs=0.04)


def same_steps(name: str, *changes: dict[str, Any], **setting: Any) -> list[Run]:
    """Runs of one row with different cells, of equal seed and steps."""
    same = Setting(**{"rate": 0.03, "steps": 8, "goal": 2, **setting})
    return [train(choose(name, overrides), same, 0) for overrides in changes]


@pytest.mark.parametrize(
    ("kl", "estimator", "coefficient"),
    [("in_loss", "k2", 0.5), ("in_loss", "k3", 0.5), ("in_loss", "exact", 0.5), ("in_reward", "k1", 0.1)],
)
@pytest.mark.parametrize("name", ["grpo", "reinforce_pp", "ppo"])
def test_a_penalty_on_kl_keeps_the_policy_closer_to_its_reference(
    name: str, kl: str, estimator: str, coefficient: float
) -> None:
    penalty = {"kl": kl, "kl_estimator": estimator, "kl_coefficient": coefficient}
    free, held = same_steps(name, {"kl": "none"}, penalty)
    assert held.learner.divergence() < 0.8 * free.learner.divergence()
    assert held.rewards[-1] > 2 * BEFORE


def test_kl_beyond_its_target_raises_the_coefficient_until_it_is_below_again() -> None:
    penalty = {"kl": "in_loss", "kl_coefficient": 0.5, "kl_target": 0.5, "kl_horizon": 128}
    (run,) = same_steps("grpo", penalty, steps=40, updates=Updates(1, 1), rate=0.02)
    measured = [report["learn/kl"] for report in run.reports]
    farthest = measured.index(max(measured))
    assert measured[farthest] > 1.0
    assert min(measured[farthest:]) < 0.5
    assert max(report["learn/kl_coefficient"] for report in run.reports) > 0.6


def test_a_bonus_keeps_entropy_higher() -> None:
    free, sought = same_steps("grpo", {}, {"entropy": "bonus", "entropy_coefficient": 0.2})
    assert sought.learner.entropy() > free.learner.entropy() + 0.3
    assert sought.rewards[-1] > 2 * BEFORE


def test_an_adaptive_bonus_brings_entropy_back_to_its_target() -> None:
    bonus = {"entropy": "adaptive", "entropy_target": 1.0, "entropy_rate": 0.1, "entropy_largest": 1.0}
    (run,) = same_steps("grpo", bonus, steps=60, updates=Updates(1, 1), rate=0.01)
    measured = [report["learn/entropy"] for report in run.reports]
    least = measured.index(min(measured))
    assert measured[least] < 0.8
    assert max(measured[least:]) > 1.0


BOUND = 0.05
"""On KL(old || new) of a step; the updates below go about twice as far by themselves."""


def trusted(kind: str, rate: float) -> Run:
    """Ten steps of four updates, each on all responses."""
    trust = {"trust": kind} if kind == "none" else {"trust": kind, "max_kl": BOUND}
    (run,) = same_steps("grpo", trust, steps=10, updates=Updates(1, 4), rate=rate)
    return run


def measured(run: Run) -> list[float]:
    return [report["learn/kl_old_new"] for report in run.reports]


def test_a_measured_divergence_is_near_the_exact_one() -> None:
    run = trusted("stop", 0.03)
    # Measured on 192 tokens, the very ones that the policy has just learnt from.
    assert measured(run) == pytest.approx(run.moved, rel=0.5, abs=0.015)


def test_stop_takes_no_further_update_beyond_the_bound() -> None:
    run, free = trusted("stop", 0.03), trusted("none", 0.03)
    stopped = [report for report in run.reports if "learn/stopped_updates" in report]
    assert stopped
    assert all(report["learn/kl_old_new"] > BOUND for report in stopped)
    assert free.learner.version == 4 * len(free.reports) > run.learner.version
    assert max(run.moved) < max(free.moved)
    assert max(free.moved) > 2 * BOUND


def test_rollback_never_ends_a_step_beyond_the_bound() -> None:
    run = trusted("rollback", 0.03)
    assert run.total("learn/rolled_back_updates") > 0
    assert all(report.get("learn/rolled_back_kl", 1.0) > BOUND for report in run.reports)
    assert max(measured(run)) <= BOUND
    assert run.rewards[-1] > 4 * BEFORE


def test_a_step_whose_every_update_is_rolled_back_leaves_the_policy_as_it_was() -> None:
    run = trusted("rollback", 0.1)
    assert run.total("learn/rolled_back_updates") == len(run.reports)
    assert run.rewards[-1] == run.rewards[0]
    assert run.learner.version == 0


def test_a_penalty_on_the_step_adapts_until_steps_are_near_the_bound() -> None:
    run, free = trusted("penalty", 0.1), trusted("none", 0.1)
    assert max(run.moved) < 0.3 * max(free.moved)
    assert sum(measured(run)[-5:]) / 5 < 1.5 * BOUND
    assert len({report["learn/trust_coefficient"] for report in run.reports}) > 1


@pytest.mark.parametrize("rate", [0.03, 0.1])
def test_fixup_ends_below_the_bound_or_has_taken_all_its_steps(rate: float) -> None:
    run = trusted("fixup", rate)
    assert run.total("learn/fixup_steps") > 0
    for report in run.reports:
        assert report["learn/kl_old_new"] <= BOUND or report["learn/fixup_steps"] == 5


@pytest.mark.parametrize("kind", ["best_random", "best_worst"])
def test_two_responses_of_each_group_are_enough_to_learn_from(kind: str) -> None:
    run = train(choose("grpo", {"keep": kind}), Setting(), 0)
    assert run.reached >= GOAL, run.rewards


def test_cut_responses_that_are_masked_leave_the_policy_as_it_is() -> None:
    sampler = ToySampler(cut=lambda seed, said: True)
    masked, learnt = same_steps("grpo", {"truncated": "mask"}, {"truncated": "train"}, steps=2, sampler=sampler)
    assert masked.rewards[-1] == masked.rewards[0]
    assert masked.learner.version == 0
    assert learnt.rewards[-1] > learnt.rewards[0]


def test_cut_responses_that_are_penalised_become_rare() -> None:
    def nothing(prompt: Prompt, rollout: Rollout) -> Verdict:
        return Verdict(0.0)

    half = VOCABULARY // 2
    sampler = ToySampler(cut=lambda seed, said: said[0] < half)
    runs = same_steps(
        "grpo", {"truncated": "train"}, {"truncated": "penalise"}, grader=ToyGrader(nothing), sampler=sampler
    )
    plain, penalised = (float(run.learner.table().exp()[:, 0, :half].sum(-1).mean()) for run in runs)
    assert plain == pytest.approx(0.5, abs=0.1)
    assert penalised < 0.1
