"""A step's groups: as many as asked for, graded, and under dynamic sampling drawn again until they can teach."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from posttrain.algorithms.choice import choose
from posttrain.algorithms.state import RowState
from posttrain.data.stream import PromptStream
from posttrain.errors import DataError, TrainingError
from posttrain.recipe import Grading, Reward
from posttrain.rewards import Grader
from posttrain.rollout import Drawn, Request
from posttrain.rollout.collect import Chosen, Draw, Ungraded, collect
from posttrain.types import Prompt, Rollout, Sampling

DRAW = Draw(prompts=4, group_size=4, sampling=Sampling(max_tokens=4), seed=0)


class Half:
    """Answers half of the samples of every `useful` prompt rightly and all of the others."""

    version = 3

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Rollout]:
        out = []
        for i, r in enumerate(requests):
            greedy = sampling.temperature == 0
            right = not r.prompt.columns["useful"] or (i % 2 == 0 and not greedy)
            text = "yes" if right else "no"
            out.append(Rollout((3, 9), (False, True), text, "stop", (0.0, -1.0), (-1, 3), r.seed, sampling))
        self.requests += requests
        return out


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader([Reward(verifier="tests.graders:equal")], Grading(workers=1)) as grader:
        yield grader


def chosen(name: str, **changes: object) -> Chosen:
    algorithm = choose(name, changes)
    return Chosen(algorithm, RowState.of(algorithm))


def stream(useful: list[bool]) -> PromptStream:
    prompts = [Prompt(f"p/{i}", (3,), "", {"answer": "yes", "useful": u}) for i, u in enumerate(useful)]
    return PromptStream(prompts, seed=0)


def test_without_selection_one_round_is_drawn_whatever_it_teaches(grader: Grader) -> None:
    sampler = Half()
    found = collect(sampler, stream([False] * 8), grader, chosen("grpo"), DRAW, step=1)
    assert (len(found.groups), len(found.dropped)) == (4, 0)
    assert len(sampler.requests) == 16
    assert found.report.values()["reward/mean"] == 1.0
    assert found.report.values()["rollout/rounds"] == 1


def test_dynamic_sampling_replaces_groups_of_one_score_until_there_are_enough(grader: Grader) -> None:
    sampler, source = Half(), stream([i % 2 == 0 for i in range(40)])
    found = collect(sampler, source, grader, chosen("dapo"), DRAW, step=1)
    assert len(found.groups) == 4
    assert all(len({v.score for v in g.verdicts}) == 2 for g in found.groups)
    assert all(len({v.score for v in g.verdicts}) == 1 for g in found.dropped)
    values = found.report.values()
    assert values["rollout/dropped_groups"] == len(found.dropped) > 0
    assert values["rollout/rounds"] > 1
    drawn = [g.prompt.id for g in [*found.groups, *found.dropped]]
    assert len(set(drawn)) == len(drawn)
    # The next step goes on with prompts nobody has seen.
    following = {p.id for p in source.take(4)}
    assert not following & set(drawn)


def test_at_the_cap_what_was_found_is_learnt_and_counted(grader: Grader) -> None:
    useful = stream([i == 0 for i in range(12)])
    found = collect(Half(), useful, grader, chosen("dapo", max_rounds=3), DRAW, step=1)
    assert len(found.groups) == 1
    assert found.report.values()["rollout/rounds"] == 3


def test_when_nothing_teaches_it_stops_with_the_scores_it_saw(grader: Grader) -> None:
    with pytest.raises(TrainingError, match=r"none of 8 groups in 2 rounds.*1\.0: 8"):
        collect(Half(), stream([False] * 20), grader, chosen("dapo", max_rounds=2), DRAW, step=1)


def test_every_response_has_a_seed_of_its_own(grader: Grader) -> None:
    sampler = Half()
    for step in (1, 2):
        collect(sampler, stream([True] * 4), grader, chosen("grpo"), DRAW, step)
    seeds = [r.seed for r in sampler.requests]
    assert len(set(seeds)) == len(seeds) == 32


def test_a_greedy_baseline_is_drawn_once_for_each_prompt_and_kept_beside_the_group(grader: Grader) -> None:
    sampler = Half()
    found = collect(sampler, stream([True, False, True, False]), grader, chosen("remax"), DRAW, step=1)
    assert sum(r.purpose == "baseline" for r in sampler.requests) == 4
    assert [g.greedy.score for g in found.groups] == [0.0 if g.prompt.columns["useful"] else 1.0 for g in found.groups]
    assert found.report.values()["rollout/greedy_score"] == 0.5
    assert all(len(g.rollouts) == 4 for g in found.groups)


def test_prompts_that_are_right_greedily_are_not_sampled_and_others_take_their_place(grader: Grader) -> None:
    sampler = Half()
    found = collect(sampler, stream([True, False] * 8), grader, chosen("self"), DRAW, step=1)
    assert len(found.groups) == 4
    assert all(g.prompt.columns["useful"] and g.greedy.score == 0.0 for g in found.groups)
    sampled = {r.prompt.id for r in sampler.requests if r.purpose == "train"}
    assert sampled == {g.prompt.id for g in found.groups}


def test_when_every_greedy_answer_is_right_the_step_stops_and_says_so(grader: Grader) -> None:
    with pytest.raises(TrainingError, match="greedy answer that was right already"):
        collect(Half(), stream([False] * 8), grader, chosen("self", max_rounds=2), DRAW, step=1)


def test_groups_of_one_score_are_dropped_without_fresh_ones_under_mixed(grader: Grader) -> None:
    sampler = Half()
    found = collect(sampler, stream([True, False, True, False]), grader, chosen("best_of_two"), DRAW, step=1)
    assert (len(found.groups), len(found.dropped)) == (2, 2)
    assert len(sampler.requests) == 16


def test_groups_of_little_spread_are_dropped_once_the_running_mean_is_known(grader: Grader) -> None:
    row = chosen("rlpr", spread_warmup=1, spread_decay=0.5)
    source = stream([True, False, True, False] * 3)
    first = collect(Half(), source, grader, row, DRAW, step=1)
    assert (len(first.groups), len(first.dropped)) == (4, 0)
    # Half of the groups are right in half of their samples (std 1/2), the others never differ.
    assert row.state.spread == pytest.approx(sum(0.5 for g in first.groups if g.prompt.columns["useful"]) / 4)
    second = collect(Half(), source, grader, row, DRAW, step=2)
    assert all(g.prompt.columns["useful"] for g in second.groups)
    assert all(not g.prompt.columns["useful"] for g in second.dropped)


def test_a_prompt_that_comes_round_again_in_a_step_is_answered_anew(grader: Grader) -> None:
    sampler = Half()
    collect(sampler, stream([False, False]), grader, chosen("grpo"), DRAW, step=1)
    assert len({(r.prompt.id, r.seed) for r in sampler.requests}) == len(sampler.requests) == 16
    again = Half()
    collect(again, stream([False, False]), grader, chosen("grpo"), DRAW, step=1)
    assert [r.seed for r in again.requests] == [r.seed for r in sampler.requests]


class Telling(Half):
    """Says each response as soon as it is there, the last one first, and waits before the rest for a file that its
    grader makes of the first whole group.
    """

    def __init__(self, mark: Path | None = None) -> None:
        super().__init__()
        self.mark = mark
        self.streams = 0

    def stream(self, requests: Sequence[Request], sampling: Sampling, drawn: Drawn) -> list[Rollout]:
        self.streams += 1
        out = self.generate(requests, sampling)
        for number, index in enumerate(reversed(range(len(out)))):
            drawn(index, out[index])
            limit = time.monotonic() + 60
            while number == DRAW.group_size - 1 and self.mark is not None and not self.mark.exists():
                assert time.monotonic() < limit, "nothing was graded while others were drawn"
                time.sleep(0.01)
        return out


def test_a_group_is_graded_while_others_are_drawn(tmp_path: Path) -> None:
    noted = Reward(verifier="tests.rewards.graders:Noted", settings={"folder": str(tmp_path)})
    sampler = Telling(tmp_path / "yes")
    with Grader([noted], Grading(workers=1)) as grader:
        found = collect(sampler, stream([False] * 8), grader, chosen("grpo"), DRAW, step=1)
    assert sampler.streams == 1
    assert [len(group.verdicts) for group in found.groups] == [4] * 4


@pytest.mark.parametrize("row", ["grpo", "dapo", "remax"])
def test_what_is_collected_is_the_same_as_where_all_is_graded_in_the_end(row: str) -> None:
    found = []
    for early in (True, False):
        sampler = Telling()
        with Grader([Reward(verifier="tests.graders:equal")], Grading(workers=2, early=early)) as grader:
            one = collect(sampler, stream([True, False] * 8), grader, chosen(row), DRAW, step=1)
        seconds = {"rollout/seconds", "grade/seconds", "rollout/tokens_per_second"}
        figures = {name: value for name, value in one.report.entries.items() if name not in seconds}
        found.append((one.groups, one.dropped, figures, sampler.requests))
        assert (sampler.streams > 0) == early
    assert found[0] == found[1]
    assert found[0][0]


def test_where_nothing_is_graded_or_a_sampler_cannot_tell_all_is_drawn_first(grader: Grader) -> None:
    sampler = Telling()
    collect(sampler, stream([True] * 8), Ungraded(), chosen("grpo"), DRAW, step=1)
    assert sampler.streams == 0
    assert len(collect(Half(), stream([True] * 8), grader, chosen("grpo"), DRAW, step=1).groups) == 4


def test_a_prompt_that_cannot_be_graded_stops_the_step_before_it_is_drawn(grader: Grader) -> None:
    sampler = Telling()
    without = PromptStream([Prompt(f"p/{i}", (3,), "", {"useful": True}) for i in range(8)], seed=0)
    with pytest.raises(DataError, match="needs the column 'answer'"):
        collect(sampler, without, grader, chosen("grpo"), DRAW, step=1)
    assert not sampler.requests
