"""Audits: every row counted once and under the right name, faulty rows named, and a deadline that holds."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import DataError, RecipeError
from posttrain.metrics.statistics import wilson
from posttrain.recipe import Grading, Reward
from posttrain.rewards import Grader
from posttrain.rewards.audit import Auditor
from posttrain.rewards.audit_report import AuditReport, AuditRow, Judged
from posttrain.rewards.shipped import AuditSet
from posttrain.rewards.worker import Part
from posttrain.types import Prompt, Rollout
from tests.rewards.sets import audit_set, row, written

ROWS = [
    row("a", True, answer="a", kind="gold"),
    row("b", True, answer="b", kind="gold"),
    row("b", True, answer="a", kind="near_miss"),
    row("a", False, answer="a", kind="near_miss"),
    row("c", False, answer="a", kind="near_miss"),
    row("hang", False, answer="a", kind="hostile"),
    row("exit", True, answer="a", kind="hostile"),
    row("unreadable", False, answer="a"),
]


def auditor(**fields: Any) -> Auditor:
    return Auditor(Grading(**{"timeout": 1.0, "workers": 2} | fields))


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> AuditReport:
    return auditor().audit(audit_set(tmp_path_factory.mktemp("audit") / "rows.jsonl", ROWS))


def test_every_row_is_accepted_refused_or_not_graded(report: AuditReport) -> None:
    matrix = {(e, a): report.count(e, a) for e in (True, False) for a in (True, False, None)}
    assert matrix == {
        (True, True): 2,
        (True, False): 1,
        (True, None): 1,
        (False, True): 1,
        (False, False): 1,
        (False, None): 2,
    }
    assert [one.row.line for one in report.judged] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [one.row.line for one in report.false_positives] == [4]
    assert [one.row.line for one in report.false_negatives] == [3]
    assert [(one.row.line, one.part.status) for one in report.ungraded] == [
        (6, "timeout"),
        (7, "error"),
        (8, "unparsable"),
    ]
    assert report.kinds == ("gold", "near_miss", "hostile", "")
    assert [report.rate(False, kind).count for kind in report.kinds] == [0, 2, 0, 0]


def test_rates_are_over_what_was_graded_with_wilsons_intervals(report: AuditReport) -> None:
    for expect, wrong, count in ((False, 1, 2), (True, 1, 3)):
        rate = report.rate(expect)
        assert (rate.wrong, rate.count, rate.share, rate.interval) == (
            wrong,
            count,
            wrong / count,
            wilson(wrong, count),
        )
    nothing = report.rate(True, "no such kind")
    assert (nothing.share, nothing.interval, str(nothing)) == (None, (0.0, 1.0), "none graded")
    assert "false positives 1 of 2 (50.0 % [" in report.line()
    assert "3 not graded" in report.line()


def test_the_json_lists_wrong_rows_with_their_columns_and_reason(report: AuditReport) -> None:
    found = json.loads(json.dumps(report.as_json(), allow_nan=False))
    assert (found["rows"], found["timeouts"], found["errors"], found["left_out"]) == (8, 1, 1, 0)
    (positive,), (negative,) = found["false_positives"], found["false_negatives"]
    assert {k: positive[k] for k in ("completion", "answer", "expect", "kind", "line", "score", "status")} == {
        "completion": "a",
        "answer": "a",
        "expect": False,
        "kind": "near_miss",
        "line": 4,
        "score": 1.0,
        "status": "ok",
    }
    assert (negative["line"], negative["score"]) == (3, 0.0)
    assert ["no answer within 1 s" in one["reason"] for one in found["ungraded"]] == [True, False, False]
    assert found["ungraded"][2]["reason"] == "no gold"
    assert set(found["false_positive_rate"]) == {"rate", "low", "high", "wrong", "count"}
    assert sum(sum(matrix.values()) for matrix in found["kinds"].values()) == 8
    assert found["seconds"] >= 1.0


def test_time_is_the_verifiers_own_and_a_timeout_takes_its_limit(report: AuditReport) -> None:
    spent = report.seconds_per_verdict()
    assert spent is not None
    assert spent["max"] == spent["p99"] == 1.0
    # Six graded rows take no time; the worker that had to start anew is not counted.
    assert 1 / 7 <= spent["mean"] < 1 / 7 + 0.1


@pytest.mark.parametrize(("count", "expected"), [(1, 1.0), (100, 99.0), (101, 100.0), (200, 198.0)])
def test_the_99th_percentile_is_a_verdicts_own_time(count: int, expected: float) -> None:
    """At least 99 of 100 verdicts take no longer, counted one by one."""
    one = AuditRow(1, "a", True, "", {})
    judged = tuple(Judged(one, Part(1.0, seconds=float(n))) for n in range(count, 0, -1))
    spent = AuditReport(AuditSet(Path("x.jsonl"), "v"), judged, count, 0.0).seconds_per_verdict()
    assert spent is not None
    slow = min(n for n in range(1, count + 1) if 100 * n >= 99 * count)
    assert spent["p99"] == expected == slow
    kept = AuditReport(AuditSet(Path("x.jsonl"), "v"), (Judged(one, Part(1.0)),), 1, 0.0)
    assert kept.seconds_per_verdict() is None


def test_a_score_at_the_threshold_is_accepted(tmp_path: Path) -> None:
    rows = [row("ab", False, letter="x"), row("aX", True, letter="x"), row("1", False, letter="x")]
    for threshold, lines in ((0.5, [1]), (0.50001, [1, 2]), (1.0, [1, 2])):
        found = auditor().audit(audit_set(tmp_path / "rows.jsonl", rows, "letters", threshold=threshold))
        wrong = [one.row.line for one in (*found.false_positives, *found.false_negatives)]
        assert wrong == lines, threshold


def test_an_audit_gives_the_verdicts_that_training_gives(tmp_path: Path) -> None:
    texts = ["ab", "a1", "11", "J"]
    found = auditor().audit(audit_set(tmp_path / "rows.jsonl", [row(t, True, letter="b") for t in texts], "letters"))
    rollouts = [Rollout((1, 7), (False, True), text, "stop") for text in texts]
    with Grader([Reward(verifier="tests.graders:letters")], Grading(workers=1)) as grader:
        (verdicts,) = grader.grade([(Prompt("p", (1,), "", {"letter": "b"}), rollouts)])
    assert [one.part.score for one in found.judged] == [v.score for v in verdicts]


def test_a_verifier_of_groups_is_shown_groups_of_one_and_one_of_pairs_is_refused(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "hello"}]
    rows = [row("b", True, answer="b"), row("a", False, answer="b", prompt=chat), row("c", True, answer="b")]
    found = auditor().audit(audit_set(tmp_path / "rows.jsonl", rows, "trl_answers"))
    assert [one.part.score for one in found.judged] == [1.0, 0.0, 0.0]
    with pytest.raises(RecipeError, match=r"tests\.graders:longer compares two responses"):
        auditor().audit(audit_set(tmp_path / "rows.jsonl", rows, "longer"))


def test_a_column_may_be_called_kind_and_text_may_hold_ends_of_lines(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    line = json.dumps(row("a\u2028b\x85", True, kind="gold", note=1), ensure_ascii=False)
    file.write_text(f"{line}\n\n{line}\r\n", encoding="utf-8")
    found = auditor().audit(AuditSet(file, "tests.graders:everything"))
    assert [(one.row.line, one.row.completion) for one in found.judged] == [(1, "a\u2028b\x85"), (3, "a\u2028b\x85")]
    # `everything` counts its columns: a row's kind is not one of them for a verifier that does not ask for it.
    assert [one.part.score for one in found.judged] == [1.0, 1.0]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", ["not JSON"]),
        ("[1]", ["a row is an object"]),
        ('{"expect": true, "answer": "a"}', ["completion: missing", "its keys: expect, answer"]),
        ('{"completion": 3, "expect": true, "answer": "a"}', ["completion: 3 is not a text"]),
        ('{"completion": "a", "answer": "a"}', ["expect: missing"]),
        ('{"completion": "a", "expect": 1, "answer": "a"}', ["expect: 1 is not true or false"]),
        ('{"completion": "a", "expect": true}', ["answer: missing", "naughty needs this column"]),
    ],
)
def test_a_faulty_row_is_named_before_anything_runs(tmp_path: Path, line: str, words: list[str]) -> None:
    file = written(tmp_path / "rows.jsonl", [row("hang", True, answer="a")])
    file.write_text(file.read_text() + line + "\n")
    started = time.monotonic()
    with pytest.raises(DataError) as caught:
        auditor(timeout=600.0).audit(AuditSet(file, "tests.graders:naughty"))
    assert time.monotonic() - started < 60
    for word in (f"{file}:2: ", *words):
        assert word in str(caught.value)


def test_many_faulty_rows_are_counted_and_no_rows_are_a_fault(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text("{\n" * 8)
    with pytest.raises(DataError) as caught:
        auditor().audit(AuditSet(file, "tests.graders:equal"))
    assert str(caught.value).count(": not JSON") == 5
    assert "and 3 more faulty rows" in str(caught.value)
    file.write_text("\n")
    with pytest.raises(DataError, match="no rows"):
        auditor().audit(AuditSet(file, "tests.graders:equal"))
    with pytest.raises(DataError, match="cannot be read"):
        auditor().audit(AuditSet(tmp_path / "none.jsonl", "tests.graders:equal"))


def test_rows_that_the_deadline_leaves_out_are_counted_and_not_called_timeouts(tmp_path: Path) -> None:
    rows = [row("0", True), row("600", True), row("600", True), row("600", True)]
    started = time.monotonic()
    found = Auditor(Grading(workers=1, timeout=300.0), deadline=started + 15).audit(
        audit_set(tmp_path / "rows.jsonl", rows, "slow", threshold=0.0)
    )
    # A worker that was killed may take as long to start anew as there was to begin with; a machine at rest needs 2 s.
    assert 15 <= time.monotonic() - started < 60
    assert [one.row.line for one in found.judged] == [1]
    assert (found.rows, found.timeouts, found.count(True, True)) == (4, 0, 1)
    assert found.line().endswith("3 rows left out for want of time")
    assert found.as_json()["left_out"] == 3


def test_progress_is_told_of_every_row(tmp_path: Path) -> None:
    seen: list[Any] = []

    def watch(things: Any, count: int) -> Any:
        seen.append(count)
        for thing in things:
            seen.append(thing.row.line)
            yield thing

    rows = [row("a", True, answer="a")] * 3
    Auditor(Grading(workers=1), watch=watch).audit(audit_set(tmp_path / "rows.jsonl", rows, "equal"))
    assert seen == [3, 1, 2, 3]
    assert math.isinf(Auditor(Grading()).deadline)
