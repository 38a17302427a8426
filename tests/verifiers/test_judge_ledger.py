"""Nothing is paid for twice, no limit is passed, and all processes count together."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from posttrain_verifiers.judges.ledger import Answer, Budget, Ledger, Usage
from tests.verifiers.judge_server import Reply, by_length, judge, serving


def test_what_was_answered_once_is_not_asked_again(tmp_path: Path) -> None:
    with serving(by_length) as server:
        found = judge(server, tmp_path)(["q", "q"], ["abc", "abcd"])
        # Another object, as after a resume; nothing left to spend, and a hit takes nothing.
        again = judge(server, tmp_path, budget={"requests": 0})(["q", "q"], ["abcd", "abc"])
        assert server.asked == 2
        for change in ({"temperature": 0.5}, {"max_tokens": 99}, {"extra": {"seed": 1}}, {"scale": (0, 10)}):
            judge(server, tmp_path, **change)(["q"], ["abc"])
        assert server.asked == 6
    assert again == found[::-1]


def test_failures_are_not_kept(tmp_path: Path) -> None:
    with serving(lambda body, count: Reply(status=500) if count == 1 else by_length(body, count)) as server:
        grade = judge(server, tmp_path, retries=0)
        assert [grade(["q"], ["abc"])[0].status for _ in range(3)] == ["unavailable", "ok", "ok"]
        assert server.asked == 2


def test_no_more_requests_than_the_budget_has_are_sent_however_many_are_in_flight(tmp_path: Path) -> None:
    with serving(by_length) as server:
        grade = judge(server, tmp_path, budget={"requests": 3}, concurrency=8)
        verdicts = grade(["q"] * 6, ["a" * n for n in range(1, 7)])
        assert server.asked == 3
    assert sorted(v.status for v in verdicts) == ["ok"] * 3 + ["unavailable"] * 3
    assert all("budget.requests: all 3 are spent" in v.reason for v in verdicts if v.score is None)


@pytest.mark.parametrize(
    "budget",
    [{"tokens": 5000}, {"cost": 0.005, "prompt_price": 1.0, "answer_price": 1.0}],
    ids=["tokens", "cost"],
)
def test_tokens_and_cost_are_never_passed(tmp_path: Path, budget: dict[str, float]) -> None:
    with serving(lambda body, count: Reply(by_length(body, count).strip(), usage=(900, 100))) as server:
        grade = judge(server, tmp_path, budget=budget, max_tokens=1500)
        verdicts = [grade(["q"], ["a" * n])[0] for n in range(1, 10)]
        # Of each at most 2,001 to 3,000 tokens are expected (1,500 of answer), and 1,000 taken.
        assert server.asked == 3
        assert [v.status for v in verdicts] == ["ok"] * 3 + ["unavailable"] * 6
        assert f"budget.{next(iter(budget))}: another request could pass" in verdicts[3].reason
        assert grade(["q"], ["a"])[0].status == "ok"


def test_a_request_that_may_have_been_answered_counts_and_one_that_was_turned_away_does_not(tmp_path: Path) -> None:
    with serving(lambda body, count: Reply(wait=2)) as server:
        judge(server, tmp_path / "late", timeout=0.5)(["q"], ["a"])
        late = Ledger(tmp_path / "late").spent(f"{server.url} m")
    with serving(lambda body, count: Reply(status=503)) as server:
        judge(server, tmp_path / "away", retries=1)(["q"], ["a"])
        away = Ledger(tmp_path / "away").spent(f"{server.url} m")
    with serving(lambda body, count: Reply(by_length(body, count), usage=None)) as server:
        judge(server, tmp_path / "silent", max_tokens=50)(["q"], ["a"])
        silent = Ledger(tmp_path / "silent").spent(f"{server.url} m")
    assert late.requests == 1
    assert late.answer == 1024
    assert away == Usage(0, 0, 0)
    assert (silent.requests, silent.answer) == (1, 50)


def test_processes_share_one_budget(tmp_path: Path) -> None:
    program = """
import sys
from pathlib import Path
from posttrain_verifiers.judges.ledger import Budget, Ledger, Usage
ledger = Ledger(Path(sys.argv[1]))
print(sum(not ledger.reserve("a", Usage(1, 10, 1), Budget(requests=300)) for _ in range(200)))
"""
    command = [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path}\n{program}", str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    granted = [int(process.communicate(timeout=120)[0]) for process in running]
    assert sum(granted) == 300
    assert Ledger(tmp_path).spent("a") == Usage(300, 3000, 300)


def test_no_minute_has_more_requests_than_are_allowed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    taken = [ledger.slot("a", 3, now, now + 1000) for now in (0.0, 0.0, 10.0, 10.0, 11.0, 12.0, 65.0, 300.0)]
    assert taken == [0.0, 0.0, 10.0, 60.0, 60.0, 70.0, 120.0, 300.0]
    assert all(sum(at <= t < at + 60 for t in taken) <= 3 for at in taken)
    # One that would come too late takes no place.
    assert [ledger.slot("b", 1, now, now + 30) for now in (0.0, 10.0, 35.0, 36.0)] == [0.0, None, 60.0, None]
    assert ledger.slot("b", 1, 95.0, 125.0) == 120.0


def test_a_rate_is_kept_and_one_that_cannot_be_is_said(tmp_path: Path) -> None:
    with serving(by_length) as server:
        grade = judge(server, tmp_path, requests_per_minute=2, timeout=5)
        verdicts = grade(["q"] * 4, ["a", "ab", "abc", "abcd"])
        assert server.asked == 2
        assert Ledger(tmp_path).spent(f"{server.url} m").requests == 2
    assert sorted(v.status for v in verdicts) == ["ok", "ok", "unavailable", "unavailable"]
    assert "requests_per_minute" in next(v.reason for v in verdicts if v.score is None)


def test_of_two_answers_to_one_question_the_first_counts(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    assert ledger.find("k") is None
    assert ledger.keep("k", Answer("one", "stop")) == Answer("one", "stop")
    assert Ledger(tmp_path).keep("k", Answer("two", "stop")) == Answer("one", "stop")


def test_threads_of_one_call_and_other_objects_do_not_disturb_each_other(tmp_path: Path) -> None:
    found: list[Any] = []
    with serving(by_length) as server:

        def work(k: int) -> None:
            found.extend(judge(server, tmp_path, timeout=60)(["q"] * 4, ["a" * n for n in range(k, k + 4)]))

        threads = [threading.Thread(target=work, args=(k,)) for k in range(1, 5)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(v.parts["said"] for v in found) == sorted(n for k in range(1, 5) for n in range(k, k + 4))


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot keep a judge's answers"):
        Ledger(tmp_path / "file")


def test_a_price_is_of_a_million_tokens() -> None:
    assert Budget(cost=1, prompt_price=2, answer_price=8).price(Usage(5, 500_000, 250_000)) == 3.0
