"""Rows by their date, and solved examples before a question."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path

import pytest

from posttrain.data.chat import Chat
from posttrain.data.formats import question
from posttrain.data.rows import read_rows
from posttrain.errors import DataError
from posttrain.recipe import FileSource, ReasoningGymSource, Shot, Since
from tests.data import tiny_tokenizer

DAYS = ["2024-07-31", "2024-08-01T00:00:00", "2024-08-15", "2024-09-01"]
SHOTS = (Shot(asked="one?", said="1"), Shot(asked="two?", said="2"))


def dated(folder: Path, since: Since | None, **more: int) -> FileSource:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"q": i, "day": day}) + "\n" for i, day in enumerate(DAYS)))
    return FileSource(source="file", path=str(path), since=since, **more)


@pytest.mark.parametrize(
    ("first", "last", "kept"),
    [
        (None, None, [0, 1, 2, 3]),
        (date(2024, 8, 1), None, [1, 2, 3]),
        (None, date(2024, 8, 1), [0, 1]),
        (date(2024, 8, 1), date(2024, 8, 31), [1, 2]),
    ],
)
def test_rows_of_the_days_between_stay_both_ends_included(
    tmp_path: Path, first: date | None, last: date | None, kept: list[int]
) -> None:
    source = dated(tmp_path, Since(column="day", first=first, last=last))
    assert [row["q"] for row in read_rows(source, "data.eval")] == kept


def test_skip_and_limit_count_the_rows_that_stay(tmp_path: Path) -> None:
    source = dated(tmp_path, Since(column="day", first=date(2024, 8, 1)), skip=1, limit=1)
    assert [row["q"] for row in read_rows(source, "data.eval")] == [2]


def test_a_date_may_be_renamed_after_it_was_read(tmp_path: Path) -> None:
    source = dated(tmp_path, Since(column="day", last=date(2024, 7, 31)))
    source = source.model_copy(update={"columns": {"published": "day"}})
    assert read_rows(source, "data.eval") == [{"q": 0, "published": "2024-07-31"}]


def test_what_is_no_date_and_no_row_is_named(tmp_path: Path) -> None:
    for since, message in (
        (Since(column="dya"), "data.eval.since.column: no column 'dya'; did you mean day"),
        (Since(column="q"), "data.eval.since.column: row 0 has 0 in 'q', no date"),
        (Since(column="day", first=date(2030, 1, 1)), "no rows in data.eval.since: 2030-01-01 to None"),
    ):
        with pytest.raises(DataError, match=message):
            read_rows(dated(tmp_path, since), "data.eval")
    made = ReasoningGymSource(source="reasoning_gym", task="basic_arithmetic", since=Since(column="day"))
    with pytest.raises(DataError, match="problems that are made have no dates"):
        read_rows(made, "data.eval")


def asked(row: dict[str, object], system: str | None = None, template: bool = True) -> object:
    tokenizer = tiny_tokenizer()
    if not template:
        tokenizer.chat_template = None
    source = FileSource(source="file", path="x", shots=SHOTS, system=system)
    return question(row, source, Chat(tokenizer))


def test_solved_examples_are_turns_before_the_question_and_behind_the_system_message() -> None:
    turns = [("user", "one?"), ("assistant", "1"), ("user", "two?"), ("assistant", "2"), ("user", "three?")]
    messages = [{"role": role, "content": content} for role, content in turns]
    assert asked({"question": "three?"}) == messages
    assert asked({"question": "three?"}, "Be brief.") == [{"role": "system", "content": "Be brief."}, *messages]
    own = [{"role": "system", "content": "Own."}, {"role": "user", "content": "three?"}]
    assert asked({"prompt": own}) == [own[0], *messages]


def test_solved_examples_of_a_base_model_are_text_in_the_form_of_the_question() -> None:
    assert asked({"question": "three?"}, template=False) == [
        {"role": "user", "content": "one?\n1\n\ntwo?\n2\n\nthree?\n"}
    ]


def test_a_prompt_that_is_rendered_already_has_no_place_for_examples() -> None:
    rendered = Chat(tiny_tokenizer()).render([{"role": "user", "content": "three?"}])
    with pytest.raises(DataError, match="rendered already, so `shots` cannot be put before it"):
        asked({"prompt": rendered})
