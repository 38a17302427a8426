"""Two responses are compared in both orders, so that what a judge prefers for its place counts for nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from posttrain.recipe import Grading, Reward
from posttrain.rewards import Grader
from posttrain.rewards.verifier import signature_of
from posttrain.types import Prompt, Rollout
from posttrain_verifiers.judge import PairJudge, WinRate
from tests.verifiers.judge_server import Reply, Server, judged, nonce, serving


def longer(body: dict[str, Any], _: int) -> str:
    """A judge that prefers the longer one."""
    first, second = judged(body)
    word = "tie" if len(first) == len(second) else "first" if len(first) > len(second) else "second"
    return f"Better {nonce(body)}: {word}"


def always_first(body: dict[str, Any], _: int) -> str:
    """A judge that reads no further."""
    return f"Better {nonce(body)}: first"


def pairs(server: Server, cache: Path, **settings: Any) -> PairJudge:
    return PairJudge(endpoint=server.url, model="m", cache=str(cache), **{"timeout": 20.0, **settings})


def test_a_preference_is_the_mean_of_both_orders(tmp_path: Path) -> None:
    with serving(longer) as server:
        compare = pairs(server, tmp_path)
        assert [compare(a, b, prompt="q") for a, b in (("aa", "b"), ("a", "bb"), ("a", "b"))] == [1.0, 0.0, 0.5]
        assert server.asked == 6
        # The mirror image is known already.
        assert compare("b", "aa", prompt="q") == 0.0
        assert server.asked == 6


def test_a_preference_for_a_place_cancels_and_is_counted(tmp_path: Path) -> None:
    with serving(always_first) as server:
        verdict = pairs(server, tmp_path).compare("a", "b", prompt="q")
        alone = pairs(server, tmp_path / "2", both_orders=False).compare("a", "b", prompt="q")
    assert verdict.score == 0.5
    assert verdict.parts == {"as_first": 1.0, "as_second": 0.0, "disagrees": 1.0}
    assert verdict.reason.startswith("the orders disagree")
    assert (alone.score, dict(alone.parts)) == (1.0, {"as_first": 1.0})


def test_orders_that_agree_are_not_counted(tmp_path: Path) -> None:
    with serving(longer) as server:
        verdict = pairs(server, tmp_path).compare("aa", "b", prompt="q")
    assert verdict.parts == {"as_first": 1.0, "as_second": 1.0, "disagrees": 0.0}
    assert "disagree" not in verdict.reason


def test_a_tie_in_one_order_is_no_disagreement(tmp_path: Path) -> None:
    def half(body: dict[str, Any], count: int) -> str:
        return f"Better {nonce(body)}: {'first' if judged(body)[0] == 'aa' else 'tie'}"

    with serving(half) as server:
        verdict = pairs(server, tmp_path).compare("aa", "b", prompt="q")
    assert (verdict.score, verdict.parts["disagrees"]) == (0.75, 0.0)


def test_without_one_of_the_orders_there_is_no_preference(tmp_path: Path) -> None:
    def half(body: dict[str, Any], count: int) -> Reply | str:
        return Reply(status=400) if judged(body)[0] == "a" else longer(body, count)

    with serving(half) as server:
        assert pairs(server, tmp_path).compare("bb", "a", prompt="q").score is None
        with pytest.raises(ValueError, match=r"error: .*status 400"):
            pairs(server, tmp_path)("bb", "a", prompt="q")
    with serving(lambda body, count: Reply(status=500)) as server:
        compare = pairs(server, tmp_path, retries=0)
        with pytest.raises(ConnectionError, match=r"unavailable: .*status 500"):
            compare("bb", "a", prompt="q")


def test_its_columns_are_those_of_its_template(tmp_path: Path) -> None:
    settings = {"endpoint": "http://127.0.0.1:1/v1", "model": "m", "columns": {"prompt": "question"}}
    signature = signature_of(Reward(verifier="posttrain_verifiers.judge:PairJudge", settings=settings))
    assert (signature.kind, signature.required) == ("pair", ("question",))


def test_a_group_gets_its_win_rates(tmp_path: Path) -> None:
    prompt = Prompt("p", (1,), "q", {"prompt": "q"})
    rollouts = [Rollout((1,), (True,), text, "stop") for text in ("a", "aaa", "aa")]
    with serving(longer) as server:
        settings = {"endpoint": server.url, "model": "m", "cache": str(tmp_path)}
        reward = Reward(verifier="posttrain_verifiers.judge:PairJudge", settings=settings)
        with Grader([reward], Grading(workers=1, timeout=60)) as grader:
            (verdicts,) = grader.grade([(prompt, rollouts)])
        assert server.asked == 6
    assert [v.score for v in verdicts] == [0.0, 1.0, 0.5]


def test_a_group_is_compared_at_once_and_says_how_often_the_orders_disagree(tmp_path: Path) -> None:
    prompt = Prompt("p", (1,), "q", {})
    rollouts = [Rollout((1,), (True,), text, "stop") for text in ("a", "aaa", "aa", "aa")]

    def partial(body: dict[str, Any], count: int) -> Reply:
        """Prefers the longer one, or whichever comes first where both have two characters or more."""
        first, second = judged(body)
        return Reply(always_first(body, count) if min(len(first), len(second)) > 1 else longer(body, count), wait=0.1)

    with serving(partial) as server:
        settings = {"endpoint": server.url, "model": "m", "cache": str(tmp_path), "concurrency": 4, "timeout": 20}
        reward = Reward(verifier="posttrain_verifiers.judge:WinRate", settings=settings)
        with Grader([reward], Grading(workers=1, timeout=60)) as grader:
            (verdicts,) = grader.grade([(prompt, rollouts)])
            (alone,) = grader.grade([(prompt, rollouts[:1])])
        # Five pairs of unequal texts, of which two are equal to two others, in both orders.
        assert server.asked == 6
        assert server.at_once == 4
    assert [v.score for v in verdicts] == [0.0, pytest.approx(2 / 3), pytest.approx(2 / 3), pytest.approx(2 / 3)]
    assert [v.parts["WinRate.disagrees"] for v in verdicts] == [0.0, *[pytest.approx(n / 3) for n in (2, 1, 1)]]
    assert "disagree in 2 of 3" in verdicts[1].reason
    assert alone[0].score is None


def test_a_pair_judge_gives_the_win_rates_that_the_grader_computes(tmp_path: Path) -> None:
    with serving(longer) as server:
        found = pairs(server, tmp_path).win_rates(["a", "aaa", "aa"], prompt="q")
    assert [v.score if v else None for v in found] == [0.0, 1.0, 0.5]


def test_a_missing_comparison_takes_the_score_of_its_two_responses_only(tmp_path: Path) -> None:
    def half(body: dict[str, Any], count: int) -> Reply | str:
        return Reply(status=503) if set(judged(body)) == {"a", "aa"} else longer(body, count)

    with serving(half) as server:
        grade = WinRate(endpoint=server.url, model="m", cache=str(tmp_path), retries=0)
        verdicts = grade(["q"] * 3, ["a", "aa", "aaa"])
    assert [v.status if v else None for v in verdicts] == ["unavailable", "unavailable", "ok"]
    assert verdicts[2] is not None
    assert verdicts[2].score == 1.0
