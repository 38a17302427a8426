"""Held-out figures: what is averaged, what is left out, and which interval fits which scores."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from posttrain.errors import GradingError
from posttrain.evaluation import Benchmark, Result, evaluate, items, summary
from posttrain.metrics.statistics import wilson
from posttrain.recipe import Grading, Reward
from posttrain.rewards import Grader
from posttrain.rollout import Request
from posttrain.types import Prompt, Rollout, Sampling


class Scripted:
    """A sampler that says what the prompt's columns hold: `says` by the sample's number, `greedy` at temperature 0."""

    version = 1

    def __init__(self) -> None:
        self.asked: dict[str, int] = {}
        self.calls: list[tuple[int, Sampling]] = []
        self.seeds: list[int] = []

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Rollout]:
        out = []
        self.calls.append((len(requests), sampling))
        self.seeds += [r.seed for r in requests]
        for r in requests:
            number = self.asked.get(r.prompt.id, 0)
            self.asked[r.prompt.id] = number + 1
            text = r.prompt.columns["says"][number] if sampling.temperature else r.prompt.columns["greedy"]
            said = Rollout((*r.prompt.tokens, 9), (False, True), text, "stop", (0.0, -1.0), (-1, 1), r.seed, sampling)
            out.append(said)
        return out


def prompt(name: str, says: list[str], greedy: str) -> Prompt:
    return Prompt(name, (3,), name, {"answer": "yes", "says": says, "greedy": greedy})


def measure(prompts: list[Prompt], verifier: str = "tests.graders:equal", samples: int = 2) -> dict[str, float]:
    return whole(prompts, verifier, samples=samples)[1].metrics


def whole(
    prompts: list[Prompt], verifier: str = "tests.graders:equal", sampler: Scripted | None = None, **settings: int
) -> tuple[Benchmark, Result]:
    with Grader([Reward(verifier=verifier)], Grading(workers=1, max_failure_rate=1.0)) as grader:
        fields = {"samples": 2, "greedy": True, **settings}
        benchmark = Benchmark(prompts, grader, temperature=0.7, max_tokens=4, seed=0, top_p=0.9, **fields)
        return benchmark, evaluate(sampler or Scripted(), benchmark)


def test_accuracy_is_the_mean_over_samples_and_greedy_has_wilsons_interval() -> None:
    found = measure(
        [prompt("a", ["yes", "no"], "yes"), prompt("b", ["no", "no"], "no"), prompt("c", ["yes", "yes"], "yes")]
    )
    assert found["eval/accuracy"] == pytest.approx(0.5)
    assert found["eval/accuracy_low"] <= 0.5 <= found["eval/accuracy_high"]
    assert found["eval/greedy"] == pytest.approx(2 / 3)
    assert (found["eval/greedy_low"], found["eval/greedy_high"]) == wilson(2, 3)


def test_a_response_that_could_not_be_graded_is_left_out_and_counted() -> None:
    found = measure([prompt("a", ["raise", "yes"], "yes"), prompt("b", ["no", "no"], "no")], "tests.graders:naughty")
    assert found["eval/accuracy"] == pytest.approx((1 + 0) / 2)
    assert found["eval/ungraded"] == 1


def test_scores_that_are_no_proportion_get_a_bootstrap_interval() -> None:
    found = measure([prompt(n, ["x", "x"], "x") for n in "ab"], "tests.graders:half")
    assert found["eval/greedy"] == found["eval/greedy_low"] == found["eval/greedy_high"] == 0.5


def test_nothing_gradable_is_an_error_that_says_why() -> None:
    with pytest.raises(GradingError, match=r"none of 1 held-out problems.*the grader is down"):
        measure([prompt("a", ["yes", "yes"], "yes")], "tests.graders:always_raises")


PROMPTS = [prompt(n, ["yes", "no"], "yes") for n in "abcde"]


def test_responses_are_drawn_in_parts_with_seeds_that_do_not_depend_on_them() -> None:
    one, parts = Scripted(), Scripted()
    _, alone = whole(PROMPTS, sampler=one)
    _, divided = whole(PROMPTS, sampler=parts, at_once=4)
    assert [count for count, _ in one.calls] == [10, 5]
    assert [count for count, _ in parts.calls] == [4, 4, 2, 4, 1]
    assert len(set(one.seeds)) == 15
    assert one.seeds == parts.seeds
    assert divided == alone


def test_samples_are_filtered_as_asked_and_greedy_responses_not_at_all() -> None:
    sampler = Scripted()
    whole(PROMPTS, sampler=sampler)
    assert [sampling for _, sampling in sampler.calls] == [Sampling(0.7, 4, top_p=0.9), Sampling(0.0, 4)]


def test_without_samples_only_greedy_responses_are_drawn() -> None:
    sampler = Scripted()
    benchmark, result = whole(PROMPTS, sampler=sampler, samples=0)
    assert [count for count, _ in sampler.calls] == [5]
    assert result.metrics["eval/greedy"] == 1.0
    assert "eval/accuracy" not in result.metrics
    assert all(item.greedy and not item.sampled for item in items(benchmark, result.groups))


def test_items_hold_every_response_under_its_problem() -> None:
    benchmark, result = whole(PROMPTS)
    found = items(benchmark, result.groups)
    assert [item.problem for item in found] == list("abcde")
    for item in found:
        assert [(s.completion, s.score, s.greedy) for s in item.samples] == [
            ("yes", 1.0, False),
            ("no", 0.0, False),
            ("yes", 1.0, True),
        ]
        assert (item.prompt_tokens, item.samples[0].tokens, item.columns["answer"]) == ((3,), (9,), "yes")


def test_a_summary_has_the_figures_before_and_after_and_none_where_there_is_none() -> None:
    found = summary({"eval/greedy": 0.25, "eval/greedy_low": 0.1}, {"eval/greedy": 0.5, "eval/nll": 1.0})
    assert found["greedy_before"] == 0.25
    assert found["greedy_before_low"] == 0.1
    assert found["greedy_after"] == 0.5
    assert found["accuracy_after"] is None
    assert found["nll_after"] == 1.0
