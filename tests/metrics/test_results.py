"""The file of an evaluation: what is written is read again, and what is damaged is named."""

from __future__ import annotations

import datetime
import json
from pathlib import Path

import pytest

from posttrain.errors import PosttrainError
from posttrain.metrics.results import Item, Results, Sampled, plain, read, result_steps, results_path, write

SAMPLE = Sampled(
    completion="It is 4.\n\u2028 \ud83d",
    score=1.0,
    status="ok",
    reason="extracted '4'",
    parts={"Math": 1.0, "form": None},
    answer="4",
    length=3,
    truncated=False,
    greedy=False,
    tokens=(5, 6, 2),
    seed=7,
)
LOST = Sampled("", None, "timeout", "no answer within 10 s", {}, None, 4, True, True, (1, 1, 1, 1), None)
RESULTS = Results(
    {"model": "m", "sampling": {"temperature": 0.6}, "versions": {"posttrain": "1"}},
    (
        Item(
            "gsm8k/0", "<user>2 + 2?", {"question": "2 + 2?", "answer": "4", "tags": ["a", {"b": None}]}, (SAMPLE, LOST)
        ),
        Item("gsm8k/1", "ünïcode", {}, (), (1, 2)),
    ),
)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = results_path(tmp_path, 12)
    write(path, RESULTS)
    found = read(path)
    # A lone surrogate has no UTF-8: it comes back as the same character.
    assert found == RESULTS
    assert (path.parent.name, path.name) == ("evaluations", "step-000012.jsonl")
    assert found.items[0].greedy == LOST
    assert found.items[0].sampled == (SAMPLE,)
    assert found.items[1].greedy is None


def test_the_same_results_are_the_same_bytes_and_lie_whole_under_their_name(tmp_path: Path) -> None:
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    write(one, RESULTS)
    write(two, read(one))
    assert one.read_bytes() == two.read_bytes()
    assert one.read_bytes().count(b"\n") == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one.jsonl", "two.jsonl"]


def test_the_first_line_is_the_header(tmp_path: Path) -> None:
    write(tmp_path / "r.jsonl", RESULTS)
    first = json.loads((tmp_path / "r.jsonl").read_text().split("\n")[0])
    assert first == {"format": "posttrain results 1", "problems": 2, **RESULTS.header}


def test_a_value_that_json_cannot_hold_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    write(path, RESULTS)
    before = path.read_bytes()
    for header, name in (({"seed": float("nan")}, "seed is nan"), ({"format": 1}, "format is taken")):
        with pytest.raises(PosttrainError, match=name):
            write(path, Results(header, RESULTS.items))
    assert path.read_bytes() == before


def test_columns_that_json_cannot_hold_are_left_out_and_named() -> None:
    row = {"a": (1, 2), "day": datetime.date(2024, 8, 31), "raw": b"x", "none": None, "nan": float("nan")}
    assert plain(row) == ({"a": [1, 2], "none": None}, ("day", "raw", "nan"))


def damaged(path: Path, change: str) -> None:
    write(path, RESULTS)
    # Other line separators are legal inside JSON strings.
    lines = path.read_text().split("\n")[:-1]
    first, item = json.loads(lines[0]), json.loads(lines[1])
    if change == "cut":
        lines = lines[:2]
    elif change == "format":
        lines[0] = json.dumps({**first, "format": "posttrain results 2"})
    elif change == "header":
        lines = lines[1:]
    elif change == "field":
        del item["samples"][1]["status"]
        lines[1] = json.dumps(item)
    elif change == "score":
        item["samples"][0]["score"] = "1.0"
        lines[1] = json.dumps(item)
    elif change == "twice":
        lines[2] = lines[1]
    elif change == "torn":
        lines[1] = lines[1][:40]
    path.write_text("".join(line + "\n" for line in lines))


MESSAGES = {
    "cut": "1 problems of 2: it was cut",
    "format": "of format 'posttrain results 2', but 'posttrain results 1' is read here",
    "header": "no file of results",
    "field": r"line 2, sample 1: status missing",
    "score": r"line 2, sample 0: score is '1.0', neither a number nor null",
    "twice": "problem 'gsm8k/0' stands twice",
    "torn": "line 2: not JSON",
}


@pytest.mark.parametrize("change", MESSAGES)
def test_a_damaged_file_is_refused_by_what_is_wrong_with_it(tmp_path: Path, change: str) -> None:
    path = tmp_path / "r.jsonl"
    damaged(path, change)
    with pytest.raises(PosttrainError, match=MESSAGES[change]):
        read(path)


def test_a_missing_or_empty_file_says_so(tmp_path: Path) -> None:
    with pytest.raises(PosttrainError, match="no such file"):
        read(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(PosttrainError, match="no file of results"):
        read(tmp_path / "empty.jsonl")


def test_a_run_tells_which_steps_were_evaluated(tmp_path: Path) -> None:
    assert result_steps(tmp_path) == []
    for step in (10, 0):
        write(results_path(tmp_path, step), RESULTS)
    (tmp_path / "evaluations" / "other.jsonl").write_text("")
    assert result_steps(tmp_path) == [0, 10]
