"""Where no judge answers there is no verdict: it is counted as unavailable, with its reason, and never as a zero."""

from __future__ import annotations

import email.utils
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import GradingError
from posttrain.recipe import Grading, Reward
from posttrain.rewards import Grader
from posttrain.types import Prompt, Rollout, Verdict
from posttrain_verifiers.judge import Judge
from tests.verifiers.judge_server import Reply, by_length, judge, nonce, serving


def first(*replies: Reply) -> Callable[[dict[str, Any], int], Reply | str]:
    """These replies, then an honest judge's."""
    return lambda body, count: replies[count - 1] if count <= len(replies) else by_length(body, count)


def one(verdicts: Sequence[Verdict], *words: str) -> None:
    """A single verdict, unavailable for the reason that has these words."""
    (verdict,) = verdicts
    assert (verdict.score, verdict.status) == (None, "unavailable"), verdict
    assert all(word in verdict.reason for word in words), verdict.reason


NOT_JSON = Reply(raw=b"<html>busy</html>")
FAULTS = [
    Reply(status=500),
    Reply(status=503),
    Reply(status=429, headers={"Retry-After": "0"}),
    Reply(status=408),
    NOT_JSON,
    Reply(raw=b'{"choices": []}'),
    Reply(raw=b'{"choices": [{"message": {"content": [1]}}]}'),
    # Fewer bytes than announced: the connection ends in the middle.
    Reply("cut", headers={"Content-Length": "9999", "Connection": "close"}),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f"{f.status}-{(f.raw or b'')[:12]!r}")
def test_a_passing_fault_is_asked_again(tmp_path: Path, fault: Reply) -> None:
    with serving(first(fault)) as server:
        (verdict,) = judge(server, tmp_path, timeout=30)(["q"], ["abc"])
        assert server.asked == 2
    assert verdict.parts["said"] == 3


def test_a_lasting_fault_is_unavailable_after_the_retries(tmp_path: Path) -> None:
    with serving(lambda body, count: Reply(status=502)) as server:
        one(judge(server, tmp_path, timeout=30, retries=1)(["q"], ["abc"]), "status 502", "2 tries", server.url)
        assert server.asked == 2


def test_an_endpoint_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
        one(Judge(endpoint=url, model="m", cache=str(tmp_path), retries=0)(["q"], ["abc"]), "no connection")


def test_what_comes_too_late_is_unavailable_and_is_not_waited_for(tmp_path: Path) -> None:
    with serving(lambda body, count: Reply("late", wait=15)) as server:
        start = time.monotonic()
        one(judge(server, tmp_path, timeout=0.5)(["q"], ["abc"]), "no answer within 0.5 s")
        # Far from the fifteen seconds, however busy the machine is.
        assert time.monotonic() - start < 10
        assert server.asked == 1


def test_the_time_for_a_verdict_is_for_both_answers_together(tmp_path: Path) -> None:
    with serving(lambda body, count: Reply("No score here.", wait=1.5)) as server:
        # The second answer would come after three seconds, and make it unparsable.
        one(judge(server, tmp_path, timeout=2.0)(["q"], ["abc"]), "no answer within 2 s")
        assert server.asked == 2


@pytest.mark.parametrize(
    "when", ["30", email.utils.formatdate(time.time() + 3600, usegmt=True)], ids=["seconds", "date"]
)
def test_a_server_that_asks_for_more_patience_than_there_is_is_not_waited_for(tmp_path: Path, when: str) -> None:
    with serving(first(Reply(status=429, headers={"Retry-After": when}))) as server:
        start = time.monotonic()
        one(judge(server, tmp_path, timeout=10)(["q"], ["abc"]), "status 429", "too late")
        assert time.monotonic() - start < 5
        assert server.asked == 1


def test_the_pause_that_a_server_asks_for_is_made(tmp_path: Path) -> None:
    with serving(first(Reply(status=429, headers={"Retry-After": "1.5"}))) as server:
        start = time.monotonic()
        (verdict,) = judge(server, tmp_path, timeout=30)(["q"], ["abc"])
        assert time.monotonic() - start >= 1.5
    assert verdict.status == "ok"


@pytest.mark.parametrize("status", [400, 401, 404, 302])
def test_a_request_that_is_refused_is_an_error_and_not_repeated(tmp_path: Path, status: int) -> None:
    with serving(lambda body, count: Reply(status=status, raw=b"no such model", headers={"Location": "/x"})) as server:
        (verdict,) = judge(server, tmp_path)(["q"], ["abc"])
        assert server.asked == 1
    assert (verdict.score, verdict.status) == (None, "error")
    assert f"status {status}: no such model" in verdict.reason


def test_one_response_without_a_verdict_takes_none_from_the_others(tmp_path: Path) -> None:
    def answer(body: dict[str, Any], count: int) -> Reply | str:
        return Reply(status=400) if "bad" in str(body) else by_length(body, count)

    with serving(answer) as server:
        verdicts = judge(server, tmp_path)(["q"] * 3, ["abc", "bad", "abcd"])
    assert [v.status for v in verdicts] == ["ok", "error", "ok"]


def test_the_key_is_sent_and_appears_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret-7")
    with serving(first(Reply(status=400))) as server:
        (verdict,) = judge(server, tmp_path, api_key_env="JUDGE_KEY")(["q"], ["abc"])
        judge(server, tmp_path, api_key_env="JUDGE_KEY")(["q"], ["abc"])
        assert server.keys == ["Bearer secret-7"] * 2
    assert "secret-7" not in repr(verdict)
    assert not any(b"secret-7" in file.read_bytes() for file in tmp_path.iterdir())
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(ValueError, match="the environment has no JUDGE_KEY"):
        Judge(endpoint="http://h/v1", model="m", cache=str(tmp_path), api_key_env="JUDGE_KEY").prepare()


def test_a_text_that_is_half_a_character_is_judged_and_kept(tmp_path: Path) -> None:
    with serving(lambda body, count: f"It says \ud83d.\nScore {nonce(body)}: 5") as server:
        for _ in range(2):
            (verdict,) = judge(server, tmp_path)(["q"], ["half \ud83d"])
            assert verdict.parts["said"] == 5
        assert server.asked == 1


def test_a_run_counts_what_was_unavailable_and_stops_where_it_is_too_much(tmp_path: Path) -> None:
    rollouts = [Rollout((1,), (True,), text, "stop") for text in ("abc", "bad")]
    groups = [(Prompt("p", (1,), "q", {}), rollouts)]

    def half(body: dict[str, Any], count: int) -> Reply | str:
        return Reply(status=503) if "bad" in str(body) else by_length(body, count)

    with serving(half) as server:
        settings = {"endpoint": server.url, "model": "m", "cache": str(tmp_path), "retries": 0}
        reward = Reward(verifier="posttrain_verifiers.judge:Judge", settings=settings)
        with Grader([reward], Grading(workers=1, timeout=90)) as grader:
            (verdicts,) = grader.grade(groups)
            assert grader.failures["unavailable"] == 1
            with pytest.raises(GradingError, match="status 503"):
                grader.grade([(groups[0][0], rollouts[1:])])
    assert [v.status for v in verdicts] == ["ok", "unavailable"]
    assert verdicts[1].score is None
