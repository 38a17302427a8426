"""What rows bring is told from their columns, and a recipe that wants more is refused before a row is read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from posttrain.data.chat import Chat
from posttrain.data.shapes import Wanted, brings, require, shape_of
from posttrain.errors import DataError
from posttrain.recipe import Conditioning
from tests.data import read

PAIR = ["prompt", "chosen", "rejected"]


@pytest.mark.parametrize(
    ("columns", "found"),
    [
        (PAIR, {"pairs"}),
        ([*PAIR, "label"], {"pairs"}),
        ([*PAIR, "margin"], {"pairs", "margins"}),
        ([*PAIR, "chosen_score", "rejected_score"], {"pairs", "margins", "scores"}),
        ([*PAIR, "score_chosen", "score_rejected"], {"pairs", "margins", "scores"}),
        ([*PAIR, "score_chosen", "rejected_score"], {"pairs"}),
        (["messages", "chosen", "rejected", "completion"], {"pairs"}),
        (["prompt", "completions", "scores"], {"lists", "margins", "scores"}),
        (["prompt", "completions", "ranks"], {"lists"}),
        (["prompt", "completions", "labels"], {"steps", "labels"}),
        (["prompt", "completions", "labels", "ranks"], {"steps", "labels", "lists"}),
        (["prompt", "completions"], set()),
        (["prompt", "completion"], {"completion"}),
        (["prompt", "completion", "score"], {"completion", "scores"}),
        (["prompt", "completion", "reward"], {"completion", "scores"}),
        (["prompt", "completion", "label"], {"completion", "labels"}),
        (["messages", "label"], {"messages", "labels"}),
        (["conversations"], {"messages"}),
        (["question", "answer", "score", "label", "margin"], set()),
    ],
)
def test_columns_tell_what_rows_bring(columns: list[str], found: set[str]) -> None:
    assert brings(columns) == found


@pytest.mark.parametrize(
    ("wanted", "columns", "message"),
    [
        ({}, ["question", "answer"], "needs chosen and rejected, completions with scores or ranks, .*or messages"),
        (
            {"pairs": True},
            ["prompt", "completion"],
            "two answers .* needs chosen and rejected, or completions with sco",
        ),
        ({"steps": True}, PAIR, "every step needs a label, .* needs completions with labels"),
        ({"margins": True}, PAIR, "the margin .* needs margin, chosen_score and rejected_score, or completions with s"),
        ({"margins": True}, ["prompt", "completions", "ranks"], "the margin must be the data's own"),
        ({"scores": True}, [*PAIR, "margin"], "the data's own number, .* needs .*chosen_score and rejected_score"),
        ({"scores": True}, ["prompt", "completion"], "completion or messages with score, reward or label"),
        ({"scores": True}, ["prompt", "completions", "ranks", "labels"], "the data's own number"),
        ({"in_context": True}, ["messages"], "read with another one before it, .* needs chosen and rejected"),
        ({"conditioning": Conditioning()}, [*PAIR, "chosen_score", "rejected_score"], "what its one answer is worth"),
        ({"conditioning": Conditioning()}, ["messages"], "data.conditioning .* with score, reward or label"),
    ],
)
def test_what_the_columns_cannot_bring_is_refused_with_those_that_would(
    wanted: dict[str, Any], columns: list[str], message: str
) -> None:
    with pytest.raises(DataError, match=rf"^data\.train: .*{message}") as refused:
        require(columns, Wanted(**wanted), "data.train")
    assert ", ".join(columns) in str(refused.value)
    assert "data.train.columns" in str(refused.value)


def test_columns_that_bring_what_is_wanted_are_read_in_one_form() -> None:
    graded = [*PAIR, "chosen_score", "rejected_score"]
    assert require(graded, Wanted(pairs=True, margins=True, scores=True, in_context=True), "k") == "pairs"
    assert require(["prompt", "completion", "label"], Wanted(scores=True, conditioning=Conditioning()), "k") == (
        "completion"
    )
    both = ["prompt", "completions", "labels", "scores"]
    assert require(both, Wanted(), "k") == "lists"
    assert require(both, Wanted(steps=True), "k") == "steps"


def test_a_word_beside_an_answer_is_no_number_unless_numbers_are_wanted() -> None:
    row = {"prompt": "a", "completion": "b"}
    classes = [{**row, "label": "spam"}, {**row, "label": None}]
    assert shape_of(classes, Wanted(), "k").numbers == ()
    assert shape_of(classes, Wanted(scores=True), "k").numbers == ("label",)
    assert shape_of([*classes, {**row, "label": True}], Wanted(), "k").numbers == ("label",)
    graded = [{"prompt": "a", "chosen": "b", "rejected": "c", "margin": "large"}]
    assert shape_of(graded, Wanted(), "k").numbers == ()
    assert shape_of(graded, Wanted(margins=True), "k").numbers == ("margin",)
    assert shape_of([{**row, "score": "high", "label": False}], Wanted(), "k").numbers == ("label",)
    assert shape_of([{**row, "score": 1, "label": False}], Wanted(), "k").numbers == ("score",)


def test_ranks_stand_in_for_scores_only_where_an_order_is_enough() -> None:
    rows = [{"prompt": "a", "completions": ["b", "c"], "scores": None, "ranks": [1, 2]}]
    assert shape_of(rows, Wanted(pairs=True), "k").numbers == ("ranks",)
    for wanted in (Wanted(scores=True), Wanted(margins=True)):
        assert shape_of(rows, wanted, "k").numbers == ("scores",)


def test_the_columns_that_are_read_follow_what_is_wanted(tmp_path: Path, chat: Chat) -> None:
    row = {"prompt": "a", "chosen": "b", "rejected": "c", "margin": 2, "score_chosen": 7, "score_rejected": 4}
    for wanted, scores in (({}, [7, 4]), ({"scores": True}, [7, 4]), ({"margins": True}, [1, 0])):
        (group,) = read(tmp_path, [row], chat, **wanted)
        assert [v.score for v in group.verdicts] == scores
        assert [v.offset for v in group.verdicts] == ([2, 0] if "margins" in wanted else [None, None])


def test_shapes_are_known_without_torch() -> None:
    code = """
import sys
from posttrain.data.shapes import Wanted, brings, require
assert brings(["prompt", "chosen", "rejected"]) == {"pairs"}
require(["prompt", "chosen", "rejected"], Wanted(pairs=True), "data.train")
print([m for m in ("torch", "transformers", "datasets", "pyarrow", "rich") if m in sys.modules])
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
