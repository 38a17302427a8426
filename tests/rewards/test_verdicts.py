"""What several graders' parts become: the answer, the margin's part, and a service that is away."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from posttrain.errors import GradingError
from posttrain.recipe import Grading, Reward
from posttrain.rewards import Grader
from posttrain.types import Prompt, Rollout, Verdict


def reward(name: str, weight: float = 1.0, title: str | None = None) -> Reward:
    return Reward(verifier=f"tests.rewards.graders:{name}", weight=weight, name=title)


def grade(rewards: Sequence[Reward], texts: Sequence[str], rate: float = 1.0) -> tuple[Verdict, ...]:
    rollouts = [Rollout((1, 7), (False, True), text, "stop") for text in texts]
    with Grader(rewards, Grading(workers=1, max_failure_rate=rate)) as grader:
        (verdicts,) = grader.grade([(Prompt("p", (1,), ""), rollouts)])
        unavailable = sum(v.status == "unavailable" for v in verdicts)
        assert grader.failures == {"unparsable": 0, "timeout": 0, "error": 0, "unavailable": unavailable}
    return verdicts


def test_the_answer_is_the_first_weighted_graders_that_found_one() -> None:
    shown = Reward(verifier="tests.graders:always_one")
    verdicts = grade([reward("answered", 0.0, "unweighted"), shown, reward("answered", 0.5)], ["2:x", "3:", "4"])
    assert [(v.score, v.answer) for v in verdicts] == [(2.0, "x"), (2.5, None), (3.0, None)]
    only = grade([reward("answered", 0.0), shown], ["2:x"])
    assert [(v.score, v.answer) for v in only] == [(1.0, None)]


def test_a_margins_part_is_weighed_like_the_score_that_does_not_say_it() -> None:
    """By hand: 0.5 * 3 for the grader with a part of its own, 2 * 1 for the one whose score says it."""
    verdicts = grade([reward("margins", 0.5), Reward(verifier="tests.graders:always_one", weight=2.0)], ["3", "-1"])
    assert [(v.score, v.offset) for v in verdicts] == [(2.5, 0.5 * 3 + 2.0), (2.5, 0.5 * -1 + 2.0)]
    assert [v.offset for v in grade([reward("margins", 0.0), reward("answered")], ["3"])] == [None]


def test_a_service_that_is_away_gives_no_score_and_counts_as_a_failure() -> None:
    verdicts = grade([reward("away")], ["a", "b"])
    assert [(v.score, v.status, v.reason) for v in verdicts] == [(1.0, "ok", ""), (None, "unavailable", "503")]
    with pytest.raises(GradingError, match="2 of 3 verdicts failed for reasons that are not the policy's") as caught:
        grade([reward("away")], ["a", "b", "c"], rate=0.5)
    assert "503" in str(caught.value)
