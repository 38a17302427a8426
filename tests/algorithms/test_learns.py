"""Every row that samples learns: on a toy task, through the project's own selection, credit, loss and updates.

The mean reward is the exact expected share of right tokens under the policy, about .08 before the first step.
"""

from __future__ import annotations

import pytest

from posttrain.algorithms.catalogue import CATALOGUE, cell
from posttrain.algorithms.choice import choose
from posttrain.algorithms.contradictions import contradictions
from posttrain.algorithms.table import ALGORITHMS
from posttrain.types import Prompt, Rollout, Verdict
from tests.algorithms.toy_runs import (
    BEFORE,
    CANNOT,
    GAMES,
    GOAL,
    OFFLINE,
    ONLINE,
    POLICIES,
    SEEDS,
    SETTINGS,
    Setting,
    train,
)
from tests.toy import ToyGrader, ToySampler


def test_every_row_of_a_policy_is_learnt_in_one_of_three_ways() -> None:
    """As here, from given answers, or against another policy. Reward models have learners of their own."""
    assert sorted([*ONLINE, *OFFLINE, *GAMES]) == sorted(POLICIES)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", ONLINE)
def test_every_row_that_samples_learns(name: str, seed: int) -> None:
    setting = SETTINGS.get(name, Setting())
    run = train(choose(name, setting.overrides), setting, seed)
    assert run.rewards[0] < BEFORE
    assert run.reached >= CANNOT.get(name, (GOAL, ""))[0], run.rewards


def test_every_deviation_has_its_reason_and_its_row() -> None:
    assert {*SETTINGS, *CANNOT} <= set(ONLINE)
    assert all(setting.why for setting in SETTINGS.values())
    assert all(reason for _, reason in CANNOT.values())


@pytest.mark.parametrize("name", ["grpo", "ppo", "rebel"])
def test_a_reward_that_knows_nothing_of_the_response_teaches_nothing(name: str) -> None:
    def blind(prompt: Prompt, rollout: Rollout) -> Verdict:
        return Verdict(float(rollout.seed or 0) % 7 / 6)

    run = train(ALGORITHMS[name], Setting(steps=15, grader=ToyGrader(blind)), 0)
    assert max(run.rewards) < 2 * BEFORE


USED = {(column, used.kind) for row in ALGORITHMS.values() for column, used in row.cells.items()}
OF_SCORERS = ("scorer", "scorer_token")
SPARE = [
    (column, kind)
    for column, kinds in CATALOGUE.items()
    for kind, entry in kinds.items()
    if (column, kind) not in USED and column != "reduction" and entry.level not in OF_SCORERS
]
HOSTS = ("grpo", "ppo", "online_dpo")
"""Rows of tokens without values, of tokens with values, and of sets."""
STEEP = {("divergence", "forward_kl"): {"contrast_beta": 1.0}}
"""Its slope falls as 1 / t: at .1 what lies below the reference takes nearly all of it, and what rises gets none."""


@pytest.mark.parametrize(("column", "kind"), SPARE, ids=lambda word: word)
def test_a_cell_that_no_row_uses_learns_in_a_row_of_its_kind(column: str, kind: str) -> None:
    host = next(h for h in HOSTS if not contradictions(ALGORITHMS[h].replaced(cell(column, kind))))
    # Some responses are cut, so that every rule for those has something to do.
    sampler = ToySampler(cut=lambda seed, said: seed % 4 == 0)
    overrides = {column: kind, **STEEP.get((column, kind), {})}
    run = train(choose(host, overrides), Setting(sampler=sampler), 0)
    assert run.reached >= GOAL, run.rewards


@pytest.mark.parametrize("name", ["grpo", "pipeline_rl", "impala", "rloo", "kimi"])
def test_rows_learn_from_an_engine_that_is_some_steps_behind(name: str) -> None:
    run = train(ALGORITHMS[name], Setting(publish_every=3), 0)
    assert run.total("lag/mean_abs_gap") > 0
    assert run.reached >= GOAL, run.rewards
