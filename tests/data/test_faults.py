"""Rows that cannot be learnt from are counted by kind, shown, and stop the run where they are many."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.data.chat import Chat
from posttrain.data.faults import KINDS
from posttrain.data.sources import Wanted, groups
from posttrain.errors import DataError
from posttrain.recipe import Conditioning, FileSource
from tests.data import assistant, file, real, user

PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}
LIST = {"prompt": "a", "completions": ["b", "c"], "scores": [2, 1]}
RANKS = {"prompt": "a", "completions": ["b", "c", "d"], "ranks": [1, 2, 3]}
STEPS = {"prompt": "a", "completions": ["b", "c"], "labels": [True, 0.5]}
SCORED = {"prompt": "a", "completion": "b", "score": 1.5}
GRADED = PAIR | {"chosen_score": 2, "rejected_score": 1}
PREFIXED = PAIR | {"chosen": "xb", "rejected": "xc", "prefix": "x"}

FAULTY: list[tuple[str, dict[str, Any], dict[str, Any], dict[str, Any], str]] = [
    ("missing side", PAIR, {"rejected": None}, {}, "column 'rejected' is None"),
    ("missing side", PAIR, {"prompt": None}, {}, "column 'prompt' is None"),
    ("missing side", LIST, {"completions": None}, {}, "column 'completions' is None"),
    ("missing side", LIST, {"completions": ["b", None]}, {}, "column 'completions' is None"),
    ("missing side", STEPS, {"labels": None}, {}, "column 'labels' is None"),
    ("missing side", {"messages": [user("a"), assistant("b")]}, {"messages": []}, {}, r"column 'messages' is \[\]"),
    ("missing side", PAIR, {"chosen": [{"role": "assistant", "content": None}]}, {}, "'assistant' without content"),
    ("empty response", PAIR, {"chosen": ""}, {}, "the assistant says nothing"),
    ("empty response", PAIR, {"rejected": " \n"}, {}, "the assistant says nothing"),
    ("empty response", LIST, {"completions": ["b", ""]}, {}, "the assistant says nothing"),
    ("empty response", PREFIXED, {"chosen": "x"}, {}, "the assistant says nothing"),
    ("empty response", {"messages": [user("a"), assistant("b")]}, {"messages": [user("a")]}, {}, "says nothing"),
    ("empty response", STEPS, {"completions": [], "labels": []}, {}, "no step"),
    ("equal answers", PAIR, {"rejected": "b"}, {}, "two of its answers are equal"),
    ("equal answers", PAIR, {"rejected": "b", "label": "tie"}, {"ties": True}, "two of its answers are equal"),
    ("equal answers", PAIR, {"rejected": "b"}, {"in_context": True}, "two of its answers are equal"),
    ("equal answers", LIST, {"completions": ["b", "b"]}, {}, "two of its answers are equal"),
    ("equal answers", RANKS, {"completions": ["b", "c", "b"]}, {}, "two of its answers are equal"),
    ("no common prompt", {"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]},
     {"rejected": [user("b"), assistant("c")]}, {}, "begin with no common prompt"),
    ("do not share the prefix", PREFIXED, {"rejected": "c"}, {}, "an answer does not begin with 'x'"),
    ("score not a number", GRADED, {"chosen_score": "2"}, {}, "column 'chosen_score' is '2'"),
    ("score not a number", GRADED, {"rejected_score": float("nan")}, {}, "column 'rejected_score' is nan"),
    ("score not a number", GRADED, {"chosen_score": float("inf")}, {}, "is inf"),
    ("score not a number", GRADED, {"chosen_score": 10**400}, {}, "is 1000"),
    ("score not a number", GRADED, {"chosen_score": True}, {}, "is True"),
    ("score not a number", PAIR | {"margin": 1}, {"margin": None}, {"margins": True}, "column 'margin' is None"),
    ("score not a number", LIST, {"scores": [1, "x"]}, {}, r"scores\[1\] is 'x'"),
    ("score not a number", STEPS, {"labels": [True, None]}, {}, r"labels\[1\] is None"),
    ("score not a number", SCORED, {"score": False}, {}, "column 'score' is False"),
    ("score not a number", {"prompt": "a", "completion": "b", "label": True}, {"label": None}, {}, "'label' is None"),
    ("label out of range", STEPS, {"labels": [1.5, True]}, {}, r"labels\[0\] is 1.5"),
    ("label out of range", STEPS, {"labels": [0, -1]}, {}, r"labels\[1\] is -1"),
    ("too few answers", LIST, {"completions": ["b"], "scores": [1]}, {"pairs": True}, "has 1"),
    ("too few answers", LIST, {"completions": [], "scores": []}, {}, "has 0"),
    ("tie", PAIR, {"label": "tie"}, {}, "both worth 0.5"),
    ("tie", GRADED, {"rejected_score": 2}, {}, "both worth 2"),
    ("tie", LIST, {"scores": [1, 1]}, {"pairs": True}, "all 2 completions are worth 1"),
    ("rejected scored higher", GRADED, {"rejected_score": 3}, {}, "chosen is worth 2, rejected 3"),
    ("ranks that are no ranking", RANKS, {"ranks": [0, 1, 2]}, {}, r"\['0', '1', '2'\]"),
    ("ranks that are no ranking", RANKS, {"ranks": [1, 3, 3.5]}, {}, "ranks"),
    ("ranks that are no ranking", RANKS, {"ranks": [1, 2, 4]}, {}, "ranks"),
    ("lengths differ", LIST, {"scores": [1, 2, 3]}, {}, "2 completions with 3 scores"),
    ("lengths differ", STEPS, {"labels": [1]}, {}, "2 steps with 1 labels"),
    ("step without tokens", STEPS, {"completions": ["b", ""]}, {}, r"completions\[1\] is ''"),
    ("step without tokens", STEPS, {"completions": [" \n", "c"]}, {}, r"completions\[0\]"),
]  # fmt: skip


def test_every_kind_of_fault_is_planted_here() -> None:
    assert {kind for kind, *_ in FAULTY} == set(KINDS)


@pytest.mark.parametrize(("kind", "good", "change", "wanted", "detail"), FAULTY)
def test_a_faulty_row_is_counted_by_kind_left_out_and_refused_above_the_share(
    tmp_path: Path, chat: Chat, kind: str, good: dict[str, Any], change: dict[str, Any], wanted: dict[str, Any],
    detail: str,
) -> None:  # fmt: skip
    source = file(tmp_path, [good, good | change, good])
    kept, report = groups(source, chat, "data.train", Wanted(**wanted, max_faulty_share=0.5))
    assert [group.prompt.id for group in kept] == ["rows/0", "rows/2"]
    assert (report.kept, report.faults, report.too_long) == (2, {kind: 1}, 0)
    (example,) = report.examples
    assert example.startswith("rows/1: ")
    assert str(report) == f"kept 2 of 3: 1 {kind} ({example})"
    with pytest.raises(DataError, match=rf"1 {kind} \(rows/1: .*{detail}") as refused:
        groups(source, chat, "data.train", Wanted(**wanted))
    assert str(refused.value).startswith(
        "data.train: 1 of 3 rows (33.3%) cannot be learnt from, which is more than data.max_faulty_share: 0.01; "
    )
    assert str(refused.value).endswith(f": {KINDS[kind]}")


def test_a_refusal_lists_every_kind_with_its_count_and_its_first_rows(tmp_path: Path, chat: Chat) -> None:
    bad = [PAIR | {"rejected": "b"}] * 5 + [PAIR | {"chosen": None}, PAIR | {"chosen": "b" * 50}]
    source = file(tmp_path, [PAIR] * 93 + bad)
    with pytest.raises(DataError) as refused:
        groups(source, chat, "data.train", Wanted(max_length=40, max_faulty_share=0.05))
    first, equal, missing = str(refused.value).split("\n")
    assert first.startswith("data.train: 6 of 100 rows (6.0%) ")
    assert first.endswith(f"; 1 more are too long (rows/99: {21 + 51 - 6} > 40 tokens)")
    shown = "; ".join(f"rows/{i}: two of its answers are equal" for i in (93, 94, 95))
    assert equal == f"  - 5 equal answers ({shown}): {KINDS['equal answers']}"
    assert missing == f"  - 1 missing side (rows/98: column 'chosen' is None): {KINDS['missing side']}"
    kept, report = groups(source, chat, "data.train", Wanted(max_length=40, max_faulty_share=0.06))
    assert len(kept) == report.kept == 93
    assert report.faults == {"equal answers": 5, "missing side": 1}
    assert report.too_long == 1
    assert str(report).startswith("kept 93 of 100: 5 equal answers, 1 missing side, 1 too long (rows/93: ")


def test_a_row_that_is_too_long_is_left_out_whole(tmp_path: Path, chat: Chat) -> None:
    rows = [PAIR | {"rejected": "c" * n} for n in (3, 4, 5)]
    exact = 15 + 4 + 1  # prompt, four letters, stop
    kept, report = groups(file(tmp_path, rows), chat, "data.train", Wanted(max_length=exact))
    assert [max(len(r.tokens) for r in group.rollouts) for group in kept] == [exact - 1, exact]
    assert str(report) == f"kept 2 of 3: 1 too long (rows/2: {exact + 1} > {exact} tokens)"
    with pytest.raises(DataError, match=r"kept 0 of 3: 3 too long .*; raise model\.max_length"):
        groups(file(tmp_path, rows), chat, "data.train", Wanted(max_length=10))


def test_a_source_without_a_sound_row_is_refused_whatever_the_share(tmp_path: Path, chat: Chat) -> None:
    with pytest.raises(DataError, match=r"kept 0 of 1: 1 tie .*; no row can be learnt from"):
        groups(file(tmp_path, [PAIR | {"label": "tie"}]), chat, "data.train", Wanted(max_faulty_share=1.0))


def test_ids_count_over_the_whole_file_when_rows_are_skipped(tmp_path: Path, chat: Chat) -> None:
    rows = [PAIR, PAIR | {"rejected": None}, PAIR | {"chosen": "d"}, PAIR | {"chosen": None}, PAIR]
    kept, report = groups(file(tmp_path, rows, skip=2, limit=2), chat, "k", Wanted(max_faulty_share=0.5))
    assert [group.prompt.id for group in kept] == ["rows/2"]
    assert kept[0].rollouts[0].text == "d"
    assert report.examples == ("rows/3: column 'chosen' is None",)


@pytest.mark.parametrize(
    ("row", "wanted", "message"),
    [
        (STEPS | {"completions": [["b"], "c"]}, {}, r"completions\[0\] is \['b'\], not the text of a step"),
        (LIST | {"completions": "b"}, {}, "column 'completions' is 'b', not a list"),
        (LIST | {"scores": 3}, {}, "column 'scores' is 3, not a list"),
        (LIST | {"scores": "2, 1"}, {}, "column 'scores' is '2, 1', not a list"),
        (PAIR | {"chosen": 5}, {}, "column 'chosen' is 5, neither text nor messages"),
        (PREFIXED | {"prefix": ["x"]}, {}, "column 'prefix' is .*, not text"),
        (PREFIXED | {"chosen": [assistant("x"), user("b"), assistant("c")]}, {}, "has 3 messages"),
        (RANKS, {"in_context": True}, "has 3, but answers are read beside each other in twos"),
        ({"messages": "hello"}, {}, "column 'messages' is text"),
        ({"messages": [assistant("b")], "score": 1}, {"conditioning": Conditioning()}, "no message of a user"),
    ],
)
def test_columns_of_another_kind_than_they_should_be_stop_at_once(
    tmp_path: Path, chat: Chat, row: dict[str, Any], wanted: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=rf"data\.train: row rows/0: .*{message}"):
        groups(file(tmp_path, [row]), chat, "data.train", Wanted(**wanted, max_faulty_share=1.0))


@pytest.mark.parametrize("name", ["hh_harmless_test.jsonl", "preference_demo.json"])
def test_faults_planted_in_real_pairs_are_all_found_and_nothing_else(tmp_path: Path, chat: Chat, name: str) -> None:
    found = Path(real(name).path).read_text()
    rows = json.loads(found) if name.endswith(".json") else [json.loads(line) for line in found.splitlines()[:80]]
    rows = rows[:80]
    for i in range(0, 80, 10):
        rows[i] = dict(rows[i]) | {"rejected": rows[i]["chosen"]}
        rows[i + 3] = dict(rows[i + 3]) | {"chosen": None}
        rows[i + 7] = dict(rows[i + 7]) | {"label": "tie"}
    (tmp_path / "planted.json").write_text(json.dumps(rows))
    source = FileSource(source="file", path=str(tmp_path / "planted.json"))
    kept, report = groups(source, chat, "data.train", Wanted(pairs=True, max_faulty_share=0.3))
    assert report.faults == {"equal answers": 8, "missing side": 8, "tie": 8}
    assert {int(group.prompt.id.split("/")[1]) % 10 for group in kept} == {1, 2, 4, 5, 6, 8, 9}
    assert len(kept) == 56
