"""A step's groups: as many as asked for, graded, and under dynamic sampling drawn again until they can teach."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from posttrain.algorithms.choice import choose
from posttrain.data.stream import PromptStream
from posttrain.errors import TrainingError
from posttrain.recipe import Grading, Reward
from posttrain.rewards import Grader
from posttrain.rollout import Request
from posttrain.rollout.collect import Draw, collect
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
            right = not r.prompt.columns["useful"] or i % 2 == 0
            text = "yes" if right else "no"
            out.append(Rollout((3, 9), (False, True), text, "stop", (0.0, -1.0), (-1, 3), r.seed, sampling))
        self.requests += requests
        return out


@pytest.fixture(scope="module")
def grader() -> Iterator[Grader]:
    with Grader([Reward(verifier="tests.graders:equal")], Grading(workers=1)) as grader:
        yield grader


def stream(useful: list[bool]) -> PromptStream:
    prompts = [Prompt(f"p/{i}", (3,), "", {"answer": "yes", "useful": u}) for i, u in enumerate(useful)]
    return PromptStream(prompts, seed=0)


def test_without_selection_one_round_is_drawn_whatever_it_teaches(grader: Grader) -> None:
    sampler = Half()
    found = collect(sampler, stream([False] * 8), grader, choose("grpo", {}), DRAW, step=1)
    assert (len(found.groups), len(found.dropped)) == (4, 0)
    assert len(sampler.requests) == 16
    assert found.report.values()["reward/mean"] == 1.0
    assert found.report.values()["rollout/rounds"] == 1


def test_dynamic_sampling_replaces_groups_of_one_score_until_there_are_enough(grader: Grader) -> None:
    sampler, source = Half(), stream([i % 2 == 0 for i in range(40)])
    found = collect(sampler, source, grader, choose("dapo", {}), DRAW, step=1)
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
    found = collect(Half(), useful, grader, choose("dapo", {"max_rounds": 3}), DRAW, step=1)
    assert len(found.groups) == 1
    assert found.report.values()["rollout/rounds"] == 3


def test_when_nothing_teaches_it_stops_with_the_scores_it_saw(grader: Grader) -> None:
    with pytest.raises(TrainingError, match=r"none of 8 groups in 2 rounds.*1\.0: 8"):
        collect(Half(), stream([False] * 20), grader, choose("dapo", {"max_rounds": 2}), DRAW, step=1)


def test_every_response_has_a_seed_of_its_own(grader: Grader) -> None:
    sampler = Half()
    for step in (1, 2):
        collect(sampler, stream([True] * 4), grader, choose("grpo", {}), DRAW, step)
    seeds = [r.seed for r in sampler.requests]
    assert len(set(seeds)) == len(seeds) == 32
