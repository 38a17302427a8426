"""Every row of the table learns: on a toy task, through the project's own selection, credit, loss and updates.

The mean reward is the exact expected share of right tokens under the policy, about .08 before the first step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.algorithms.catalogue import CATALOGUE
from posttrain.algorithms.choice import choose
from posttrain.algorithms.rewards import read_values
from posttrain.algorithms.row import Algorithm
from posttrain.algorithms.state import RowState, Terms
from posttrain.algorithms.table import ALGORITHMS
from posttrain.data.stream import PromptStream
from posttrain.errors import TrainingError
from posttrain.loops.learning import Learning, Updates, learn
from posttrain.metrics import Report
from posttrain.rollout.collect import Chosen, Draw, collect
from posttrain.types import Group, Prompt, Rollout, Sampling, Verdict
from tests.toy import (
    ASKED,
    LENGTH,
    PROMPTS,
    TARGETS,
    TWO,
    VOCABULARY,
    ToyDuel,
    ToyGrader,
    ToyLearner,
    ToySampler,
    hits,
    spot_check,
    two_graders,
)

GOAL, BEFORE = 0.9, 0.12
"""The reward to be reached, and what no untrained policy has."""
LAST = 5
"""Steps at the end whose mean counts."""
FOUR, SHARE = Updates(minibatches=2, epochs=2), ToyGrader()
SPOT = "it asks for right or wrong, and three hits at once are found too rarely: one token, by the seed, is checked"


@dataclass(frozen=True)
class Setting:
    """How a row is run. `why` it does not run like all the others."""

    why: str = ""
    rate: float = 0.02
    steps: int = 40
    updates: Updates = FOUR
    group_size: int = 8
    overrides: dict[str, Any] = field(default_factory=dict)
    grader: ToyGrader | ToyDuel = SHARE
    weights: dict[str, float] = field(default_factory=dict)
    references: tuple[float, ...] = (1.0,)
    """Shares of the reference policies."""
    publish_every: int = 1
    """Steps between two sets of weights that the engine gets."""
    sampler: ToySampler = field(default_factory=ToySampler)
    goal: float = GOAL
    """The reward at which a run ends early."""


SETTINGS = {
    "pass_at_k": Setting(
        f"{SPOT}; eight responses of which three are wrong always have a right one among any four, so that nothing is "
        "left to learn long before .9",
        group_size=16,
        grader=ToyGrader(spot_check),
    ),
    "gdpo": Setting("it weighs several graders against one another", grader=ToyGrader(two_graders), weights=TWO),
    "spo": Setting("it asks for win rates: pairs of responses are compared by their hits", grader=ToyDuel()),
    "self": Setting(
        "a prompt whose greedy answer is right is never sampled again, so that the steps before must make right "
        "answers likely and not only likeliest; right is three hits of three",
        rate=0.05,
        updates=Updates(minibatches=2, epochs=12),
        overrides={"right_score": 1.0},
    ),
    "oreal": Setting(
        f"{SPOT}; what was right by luck is cloned too, so that it needs smaller steps",
        rate=0.01,
        steps=80,
        grader=ToyGrader(spot_check),
    ),
    "expert_iteration": Setting(
        f"{SPOT}; equal texts of a group count once, so that in larger groups what was right by luck weighs as much "
        "as what is always right, which ends at .7",
        rate=0.01,
        steps=120,
        group_size=2,
        grader=ToyGrader(spot_check),
    ),
    "rejection_sampling": Setting(
        f"{SPOT}; no response is pushed away, so that it needs smaller steps",
        rate=0.01,
        steps=80,
        grader=ToyGrader(spot_check),
    ),
    "best_of_two": Setting(
        "its groups are pairs, and no response is pushed away, so that it needs smaller steps",
        rate=0.01,
        steps=80,
        group_size=2,
    ),
    "online_ipo": Setting(
        "its goal is a margin of 1 / (2 beta) nats between best and worst: at .1 that is 5, which is just .9",
        overrides={"contrast_beta": 0.05},
    ),
    **{
        name: Setting(
            "the reference holds it at its own optimum, .7 at .1, which a test below measures",
            overrides={"contrast_beta": 0.05},
        )
        for name in ("copg", "agro")
    },
}

CANNOT: dict[str, tuple[float, str]] = {}
"""Rows that do not come to .9, with the reward they do come to and the reason. There is none."""


@dataclass
class Run:
    """What a run left: rewards before the first step and after each, and of each step its report and KL(old || new)."""

    learner: ToyLearner
    state: RowState
    rewards: list[float]
    reports: list[dict[str, float]] = field(default_factory=list)
    moved: list[float] = field(default_factory=list)
    """Exact KL(old || new), mean over all states."""

    @property
    def reached(self) -> float:
        return sum(self.rewards[-LAST:]) / LAST

    def total(self, name: str) -> float:
        return sum(report.get(name, 0.0) for report in self.reports)


def new_learner(algorithm: Algorithm, setting: Setting, seed: int) -> ToyLearner:
    """Untrained, but for the value function of a row that needs a pretrained one."""
    critic = algorithm.critic
    bins = critic["value_bins"] if critic.kind == "hl_gauss" else 1
    learner = ToyLearner(seed, setting.rate, bins, references=len(setting.references))
    if critic.kind == "frozen":
        learn_values(learner, "squared", steps=15)
        learner.frozen = True
    return learner


def train(algorithm: Algorithm, setting: Setting, seed: int) -> Run:
    """Collect, learn and publish until the goal is reached or the steps are used up."""
    learner = new_learner(algorithm, setting, seed)
    stream, state, sampler = PromptStream(PROMPTS, seed), RowState.of(algorithm), setting.sampler
    # No response is as long as the limit: none is overlong.
    learning = Learning(algorithm, setting.updates, Terms(LENGTH + 1, setting.weights, setting.references), state)
    draw = Draw(len(PROMPTS), setting.group_size, Sampling(max_tokens=LENGTH + 1), seed)
    run = Run(learner, state, [learner.reward()])
    for step in range(1, setting.steps + 1):
        if (step - 1) % setting.publish_every == 0:
            sampler.load(learner.weights(), learner.version)
        old, report = learner.table(), Report()
        try:
            collected = collect(sampler, stream, setting.grader, Chosen(algorithm, state), draw, step)
            report = learn(learner, learning, collected.groups, None, step).report
        except TrainingError as error:
            # A selection that finds nothing to learn from ends a real run; here the policy stays as it is.
            if "nothing to learn" not in str(error):
                raise
        run.reports.append(report.values())
        run.moved.append(apart(old, learner.table()))
        run.rewards.append(learner.reward())
        if run.reached >= setting.goal:
            break
    return run


def apart(old: Tensor, new: Tensor) -> float:
    """Mean over states of the exact KL between two tables of log-probabilities."""
    return float((old.exp() * (old - new)).sum(-1).mean())


def learn_values(learner: ToyLearner, kind: str, steps: int) -> list[Group]:
    """Let the critic alone learn, and give the last step's groups."""
    algorithm, sampler, stream = choose("ppo", {"critic": kind}), ToySampler(), PromptStream(PROMPTS, 0)
    learning = Learning(algorithm, Updates(2, 2, warmup_steps=steps), Terms(LENGTH + 1), RowState.of(algorithm))
    draw, groups = Draw(len(PROMPTS), 8, Sampling(), 0), []
    sampler.load(learner.weights(), learner.version)
    for step in range(1, steps + 1):
        chosen = Chosen(algorithm, learning.state)
        groups = collect(sampler, stream, ToyGrader(), chosen, draw, step).groups
        learn(learner, learning, groups, None, step)
    return groups


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_row_learns(name: str, seed: int) -> None:
    setting = SETTINGS.get(name, Setting())
    run = train(choose(name, setting.overrides), setting, seed)
    assert run.rewards[0] < BEFORE
    assert run.reached >= CANNOT.get(name, (GOAL, ""))[0], run.rewards


def test_every_deviation_has_its_reason_and_its_row() -> None:
    assert {*SETTINGS, *CANNOT} <= set(ALGORITHMS)
    assert all(setting.why for setting in SETTINGS.values())
    assert all(reason for _, reason in CANNOT.values())


@pytest.mark.parametrize("name", ["grpo", "ppo", "rebel"])
def test_a_reward_that_knows_nothing_of_the_response_teaches_nothing(name: str) -> None:
    def blind(prompt: Prompt, rollout: Rollout) -> Verdict:
        return Verdict(float(rollout.seed or 0) % 7 / 6)

    run = train(ALGORITHMS[name], Setting(steps=15, grader=ToyGrader(blind)), 0)
    assert max(run.rewards) < 2 * BEFORE


USED = {(column, cell.kind) for row in ALGORITHMS.values() for column, cell in row.cells.items()}
SPARE = [
    (column, kind)
    for column, kinds in CATALOGUE.items()
    for kind in kinds
    if (column, kind) not in USED and column != "reduction"
]


@pytest.mark.parametrize(("column", "kind"), SPARE, ids=lambda word: word)
def test_a_cell_that_no_row_uses_learns_in_a_row_of_its_kind(column: str, kind: str) -> None:
    critic = column == "critic" or "critic" in CATALOGUE[column][kind].asks
    # Some responses are cut, so that every rule for those has something to do.
    sampler = ToySampler(cut=lambda seed, said: seed % 4 == 0)
    run = train(choose("ppo" if critic else "grpo", {column: kind}), Setting(sampler=sampler), 0)
    assert run.reached >= GOAL, run.rewards


@pytest.mark.parametrize("name", ["grpo", "pipeline_rl", "impala", "rloo", "kimi"])
def test_rows_learn_from_an_engine_that_is_some_steps_behind(name: str) -> None:
    run = train(ALGORITHMS[name], Setting(publish_every=3), 0)
    assert run.total("parity/mean_abs_gap") > 0
    assert run.reached >= GOAL, run.rewards


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


def optimum(reference: Tensor, beta: float) -> float:
    """Expected reward of the policy that maximises reward - beta KL(policy || reference), from a table `[8, 3, 12]`.

    It is the reference's times exp(reward / beta), and each hit is worth a third.
    """
    chance = reference.exp()[torch.arange(len(TARGETS)), :, TARGETS]
    lifted = chance * math.exp(1 / (LENGTH * beta))
    return float((lifted / (lifted + 1 - chance)).mean())


HELD = {
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
