"""Held-out figures: what is averaged, what is left out, and which interval fits which scores."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from posttrain.errors import GradingError
from posttrain.evaluation import Benchmark, evaluate
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

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Rollout]:
        out = []
        for r in requests:
            number = self.asked.get(r.prompt.id, 0)
            self.asked[r.prompt.id] = number + 1
            text = r.prompt.columns["says"][number] if sampling.temperature else r.prompt.columns["greedy"]
            out.append(Rollout((*r.prompt.tokens, 9), (False, True), text, "stop", (0.0, -1.0), (-1, 1)))
        return out


def prompt(name: str, says: list[str], greedy: str) -> Prompt:
    return Prompt(name, (3,), name, {"answer": "yes", "says": says, "greedy": greedy})


def measure(prompts: list[Prompt], verifier: str = "tests.graders:equal", samples: int = 2) -> dict[str, float]:
    with Grader([Reward(verifier=verifier)], Grading(workers=1, max_failure_rate=1.0)) as grader:
        benchmark = Benchmark(prompts, grader, samples, 1.0, 4, greedy=True, seed=0)
        return evaluate(Scripted(), benchmark).metrics


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
