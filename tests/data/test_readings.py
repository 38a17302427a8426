"""Columns made of several: LiveCodeBench's hidden tests, and pickles that are not what they should be."""

from __future__ import annotations

import base64
import json
import os
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest

from posttrain.data.readings import inflated, stored_tests, unpickled
from posttrain.data.rows import columns_of, read_rows
from posttrain.errors import DataError
from posttrain.recipe import FileSource

PUBLIC = [{"input": "1\n", "output": "2\n", "testtype": "stdin"}]
PRIVATE = [
    {"input": "5\n", "output": "6\n", "testtype": "stdin"},
    {"input": "é\u2028\n", "output": "", "testtype": "stdin"},
]
BOTH = "stored_tests(public_test_cases, private_test_cases)"


def packed(value: Any, protocol: int = pickle.DEFAULT_PROTOCOL) -> str:
    """As the data set's makers pack them."""
    return base64.b64encode(zlib.compress(pickle.dumps(value, protocol))).decode()


def source(folder: Path, private: Any, tests: str = BOTH) -> FileSource:
    row = {"question_content": "Add one.", "public_test_cases": json.dumps(PUBLIC), "private_test_cases": private}
    path = folder / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    return FileSource(source="file", path=str(path), columns={"tests": tests})


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_public_and_hidden_tests_become_one_column_of_json(tmp_path: Path, protocol: int) -> None:
    found = source(tmp_path, packed(json.dumps(PRIVATE), protocol))
    assert columns_of(found, "data.eval") == ["question_content", "tests"]
    (row,) = read_rows(found, "data.eval")
    assert list(row) == ["question_content", "tests"]
    assert json.loads(row["tests"]) == PUBLIC + PRIVATE


def test_hidden_tests_may_be_missing_plain_json_or_a_list_and_one_column_alone_is_enough(tmp_path: Path) -> None:
    for private, kept in ((None, []), ("", []), (json.dumps(PRIVATE), PRIVATE), (PRIVATE, PRIVATE), ("[]", [])):
        (row,) = read_rows(source(tmp_path, private), "data.eval")
        assert json.loads(row["tests"]) == PUBLIC + kept
    (row,) = read_rows(source(tmp_path, packed("[]"), "stored_tests(public_test_cases)"), "data.eval")
    assert json.loads(row["tests"]) == PUBLIC
    assert row["private_test_cases"] == packed("[]")
    assert json.loads(stored_tests(packed([["a", {"b": 1.5, "c": None, "d": True}]]))) == [
        ["a", {"b": 1.5, "c": None, "d": True}]
    ]


class Hostile:
    """What a pickle can do to who loads it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.mark),)


def test_a_pickle_that_calls_something_is_refused_and_nothing_is_called(tmp_path: Path) -> None:
    for protocol in range(6):
        text = packed([Hostile(tmp_path / "called")], protocol)
        with pytest.raises(DataError, match="with the step"):
            read_rows(source(tmp_path, text), "data.eval")
    assert not (tmp_path / "called").exists()
    # The same pickle works where it is trusted: the mark is made.
    pickle.loads(zlib.decompress(base64.b64decode(text)))
    assert (tmp_path / "called").exists()


SHARED = ["x" * 1000]
LOOP: list[Any] = []
LOOP.append(LOOP)


@pytest.mark.parametrize(
    "data",
    [
        pickle.dumps({1, 2}),
        pickle.dumps((1, 2)),
        pickle.dumps(b"bytes"),
        pickle.dumps([SHARED, SHARED]),
        pickle.dumps(LOOP),
        pickle.dumps(Path("a")),
        pickle.dumps(print),
        b"cos\nsystem\n(S'true'\ntR.",
        b"\x80\x04P1\n.",
        b"\x80\x04r\xff\xff\xff\x7f.",
        b"",
        b"\x80\x04.",
        b"\x80\x04]e.",
        b"\x80\x04X\xff\xff\xff\x7fab.",
        b"no pickle",
    ],
)
def test_what_is_no_tree_of_plain_data_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"pickle|exhausted|expected|opcode|STOP"):
        unpickled(data)


@pytest.mark.parametrize(
    ("private", "said"),
    [
        ("!!!", "neither JSON nor a deflated pickle"),
        (f"{packed('[1]')[:8]}*{packed('[1]')[8:]}", "neither JSON nor a deflated pickle"),
        (base64.b64encode(b"not deflated").decode(), "neither JSON nor a deflated pickle"),
        (packed("[1, 2]")[:-8] + "AAAAAAA=", "neither JSON nor a deflated pickle"),
        (packed("{]"), "neither JSON nor a deflated pickle"),
        (packed('{"input": 1}'), "a list of tests is due, not dict"),
        ("[1", "neither JSON nor a deflated pickle"),
        (3, "a list of tests is due, not int"),
    ],
)
def test_a_damaged_row_is_named_with_its_columns(tmp_path: Path, private: Any, said: str) -> None:
    with pytest.raises(DataError, match=f"row 0: public_test_cases, private_test_cases: .*{said}"):
        read_rows(source(tmp_path, private), "data.eval")


def test_what_unpacks_to_too_much_is_refused() -> None:
    bomb = base64.b64encode(zlib.compress(b" " * 10_000_000)).decode()
    assert len(bomb) < 15_000
    assert len(inflated(bomb, 10_000_000)) == 10_000_000
    with pytest.raises(ValueError, match="unpacks to more than 9999999 bytes"):
        inflated(bomb, 9_999_999)


def test_a_reading_that_there_is_not_and_a_column_that_there_is_not_are_named(tmp_path: Path) -> None:
    for find in (read_rows, columns_of):
        with pytest.raises(DataError, match="no reading 'eval'; there is: stored_tests"):
            find(source(tmp_path, "[]", "eval(public_test_cases)"), "data.eval")
        with pytest.raises(DataError, match=r"data.eval.columns.tests: no column 'hidden' among .*question_content"):
            find(source(tmp_path, "[]", "stored_tests(public_test_cases, hidden)"), "data.eval")
