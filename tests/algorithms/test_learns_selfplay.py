"""Every row that plays against another policy, or against one it has been, learns: it samples, lets an opponent answer
too where the row has one, grades, learns, and moves its reference to where it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

import pytest

from posttrain.algorithms.choice import choose
from posttrain.algorithms.row import Algorithm
from posttrain.algorithms.state import RowState, Terms
from posttrain.data.stream import GroupStream, PromptStream
from posttrain.hybrid import Hybrid
from posttrain.loops.learning import Learning, learn, refresh
from posttrain.loops.opponents import Opponents, joined
from posttrain.recipe import Reference
from posttrain.rollout.collect import Chosen, Draw, Grades, Ungraded, collect
from posttrain.types import Group, Prompt, Rollout, Sampling, Verdict
from tests.algorithms.toy_given import EVENLY, ONE, drawn, flipped, pairs
from tests.algorithms.toy_runs import BEFORE, GAMES, SEEDS, Run
from tests.toy import LENGTH, PROMPTS, ToyDuel, ToyGrader, ToyLearner, ToySampler


def texts(seed: int, chance: float = 0.9) -> list[Group]:
    """One answer each, nearly all of whose tokens hit."""
    return drawn(seed, 8, 1, chance)


@dataclass(frozen=True)
class Game:
    """How a row plays. `why` it does not play like all the others."""

    why: str = ""
    goal: float = 0.9
    """The exact expected reward, a mean over the last steps, at which a run ends early."""
    rate: float = 0.03
    steps: int = 30
    prompts: int = 8
    """A step's."""
    group_size: int = 8
    grader: Grades = field(default_factory=ToyGrader)
    data: Callable[[int], list[Group]] | None = None
    """Answers that stand beside the sampled ones, or in their place."""
    every: int = 2
    """Steps after which the reference becomes the policy, where it does."""
    momentum: float = 0.0
    references: tuple[float, ...] = (1.0,)


JOINED = Game(prompts=16, group_size=2, grader=Ungraded(), data=texts, goal=0.8)
SETTINGS = {
    "sppo": Game("it asks for win rates", grader=ToyDuel()),
    "inpo": Game("it has a second reference, which stays where it is", references=(0.67, 0.33)),
    "accelerated_dpo": Game(
        "its answers are given, and few of their tokens hit", data=pairs, prompts=32, every=4, momentum=0.3, goal=0.7
    ),
    "spin": replace(JOINED, why="the data's answers, of which nine tenths hit, are held against its own"),
    "spin_pool": replace(JOINED, why="as spin"),
    "spac": replace(JOINED, why="a third of the data's best answers' tokens hit", data=pairs, goal=0.5),
}


def play(algorithm: Algorithm, game: Game, seed: int, folder: Path) -> Run:
    """The online loop, or the offline one for a row whose answers are all given, on the toy task."""
    learner, state = ToyLearner(seed, game.rate, references=len(game.references)), RowState.of(algorithm)
    learning = Learning(algorithm, ONE, Terms(LENGTH + 1, references=game.references), state)
    reference = Reference(
        refresh="copy" if algorithm.needs.refresh else "never", every=game.every, momentum=game.momentum
    )
    rounds = Rounds(algorithm, game, seed, Hybrid(learner, ToySampler()), state, folder)
    run = Run(learner, state, [learner.reward()])
    for step in range(1, game.steps + 1):
        run.reports.append(learn(learner, learning, rounds.groups(step), None, step).report.values())
        refresh(learner, reference, step)
        if rounds.opponents is not None:
            rounds.opponents.note(reference, step)
        run.rewards.append(learner.reward())
        if run.reached >= game.goal:
            break
    return run


class Rounds:
    """Where a step's groups come from."""

    def __init__(
        self, algorithm: Algorithm, game: Game, seed: int, engine: Hybrid, state: RowState, folder: Path
    ) -> None:
        self.chosen, self.game, self.engine = Chosen(algorithm, state), game, engine
        against = int(algorithm.opponent.settings.get("opponent_responses", 0))
        self.opponents = Opponents(algorithm, engine, folder, seed) if against else None
        self.draw = Draw(game.prompts, game.group_size, Sampling(max_tokens=LENGTH + 1), seed, against)
        self.given = {group.prompt.id: group for group in game.data(seed)} if game.data else {}
        prompts = [group.prompt for group in self.given.values()] or PROMPTS
        self.stream = PromptStream(prompts, seed)
        self.answers = GroupStream(list(self.given.values()), seed) if self.given else None

    def groups(self, step: int) -> list[Group]:
        if not self.chosen.algorithm.needs.sampler:
            assert self.answers is not None
            return self.answers.take(self.game.prompts)
        sampling = self.engine.generating() if self.opponents is None else self.opponents.against(step)
        with sampling as sampler:
            collected = collect(sampler, self.stream, self.game.grader, self.chosen, self.draw, step)
        return (joined(collected, self.given) if self.given else collected).groups


@pytest.mark.parametrize("seed", SEEDS[:2])
@pytest.mark.parametrize("name", GAMES)
def test_every_row_learns_by_playing(name: str, seed: int, tmp_path: Path) -> None:
    game = SETTINGS.get(name, Game())
    run = play(choose(name, {}), game, seed, tmp_path)
    assert run.rewards[0] < BEFORE
    assert run.reached >= game.goal, run.rewards


def test_every_deviation_has_its_reason_and_its_row() -> None:
    assert set(SETTINGS) <= set(GAMES)
    assert all(game.why for game in SETTINGS.values())


@pytest.mark.parametrize("name", [name for name in GAMES if name not in SETTINGS])
def test_a_reward_that_knows_nothing_of_the_response_teaches_nothing(name: str, tmp_path: Path) -> None:
    def blind(prompt: Prompt, rollout: Rollout) -> Verdict:
        return Verdict(float(rollout.seed or 0) % 7 / 6)

    run = play(choose(name, {}), Game(grader=ToyGrader(blind), steps=15), 0, tmp_path)
    assert max(run.rewards) < 2 * BEFORE


@pytest.mark.parametrize("name", ["accelerated_dpo", "spac"])
def test_pairs_of_which_every_other_is_the_wrong_way_round_teach_nothing(name: str, tmp_path: Path) -> None:
    game = replace(SETTINGS[name], data=lambda seed: flipped(pairs(seed)), goal=2.0)
    run = play(choose(name, {}), game, 0, tmp_path)
    # A policy that imitates both answers alike says what they do, and a fifth of their tokens hit.
    assert max(run.rewards) < 0.3


@pytest.mark.parametrize("chance", [EVENLY, 0.5])
@pytest.mark.parametrize("name", ["spin", "spin_pool"])
def test_a_game_against_the_data_ends_where_nobody_can_tell_the_policy_from_it(
    name: str, chance: float, tmp_path: Path
) -> None:
    game = replace(SETTINGS[name], data=lambda seed: texts(seed, chance), goal=2.0)
    run = play(choose(name, {}), game, 0, tmp_path)
    said = fmean(group.verdicts[0].score or 0.0 for group in texts(0, chance))
    # Few answers are met at a time, and nothing slows the steps down, so that it swings around what the data say.
    assert fmean(run.rewards[-10:]) == pytest.approx(said, abs=0.1)


def test_a_policy_that_goes_on_as_it_came_is_ahead_of_one_that_does_not(tmp_path: Path) -> None:
    algorithm, game = choose("accelerated_dpo", {}), replace(SETTINGS["accelerated_dpo"], steps=9, goal=2.0)
    on, plain = (play(algorithm, replace(game, momentum=m), 0, tmp_path) for m in (0.3, 0.0))
    assert on.rewards[:4] == plain.rewards[:4]
    assert on.rewards[4] > plain.rewards[4] + 0.02
    assert on.rewards[-1] > plain.rewards[-1] + 0.02
