"""Every kind of source gives its rows and their columns, and names what it cannot read."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from posttrain.data.rows import columns_of, name_of, read_rows
from posttrain.errors import DataError
from posttrain.recipe import FileSource, HubSource
from tests.data import file, gym


def test_jsonl_json_and_parquet_give_the_same_nested_rows(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"a": 1, "b": [{"c": "x", "d": [1, 2]}]}, {"a": 2, "b": []}]
    (tmp_path / "list.json").write_text(json.dumps(rows))
    (tmp_path / "data.json").write_text(json.dumps({"data": rows}))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    lines = file(tmp_path, rows)
    assert read_rows(lines, "data.train") == rows
    for name in ("list.json", "data.json", "rows.parquet"):
        assert read_rows(FileSource(source="file", path=str(tmp_path / name)), "data.train") == rows


def test_files_of_a_pattern_are_read_in_order_of_name_up_to_the_limit(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        file(tmp_path, [{"n": name + "0"}, {"n": name + "1"}], f"{name}.jsonl")
    source = FileSource(source="file", path=str(tmp_path / "*.jsonl"), limit=5)
    assert [row["n"] for row in read_rows(source, "data.train")] == ["a0", "a1", "b0", "b1", "c0"]


def test_rows_before_skip_are_left_out_and_the_limit_counts_from_there(tmp_path: Path) -> None:
    rows = [{"n": n} for n in range(7)]
    assert [row["n"] for row in read_rows(file(tmp_path, rows, skip=2), "k")] == [2, 3, 4, 5, 6]
    assert [row["n"] for row in read_rows(file(tmp_path, rows, skip=2, limit=3), "k")] == [2, 3, 4]
    assert [row["n"] for row in read_rows(file(tmp_path, rows, skip=5, limit=3), "k")] == [5, 6]
    with pytest.raises(DataError, match=r"data\.eval: rows has no rows behind data\.eval\.skip: 7"):
        read_rows(file(tmp_path, rows, skip=7), "data.eval")
    made = gym(task="basic_arithmetic", size=6, seed=3)
    whole = read_rows(made, "k")
    assert read_rows(made.model_copy(update={"skip": 2}), "k") == whole[2:]
    assert read_rows(made.model_copy(update={"skip": 2, "limit": 3}), "k") == whole[2:5]


def test_a_column_that_some_rows_lack_is_none_there(tmp_path: Path) -> None:
    assert read_rows(file(tmp_path, [{"a": 1}, {"b": 2}]), "k") == [{"a": 1, "b": None}, {"a": None, "b": 2}]


def test_columns_are_renamed_to_what_verifiers_expect(tmp_path: Path) -> None:
    source = file(
        tmp_path, [{"q": "x", "solution": "s", "answer": "a"}], columns={"answer": "solution", "question": "q"}
    )
    assert read_rows(source, "data.train") == [{"answer": "s", "question": "x"}]
    assert columns_of(source, "data.train") == ["answer", "question"]


def test_a_column_that_is_not_there_is_named_with_the_nearest(tmp_path: Path) -> None:
    source = file(tmp_path, [{"question": "x", "solution": "s"}], columns={"answer": "soluton"})
    for read in (read_rows, columns_of):
        with pytest.raises(
            DataError, match=r"data\.train\.columns\.answer: no column 'soluton'.*did you mean solution"
        ):
            read(source, "data.train")


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "has no rows"), ('{"a": 1}\n{"a"\n', r"rows\.jsonl:2 is not JSON"), ("[1]\n", "is a list, not an object")],
)
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "rows.jsonl").write_text(content)
    with pytest.raises(DataError, match=message):
        read_rows(FileSource(source="file", path=str(tmp_path / "rows.jsonl")), "data.train")


def test_a_path_without_files_says_where_it_looked(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "none.jsonl", "no file matches"), (tmp_path, r"for a folder write .*\*\.jsonl")):
        with pytest.raises(DataError, match=message):
            columns_of(FileSource(source="file", path=str(path)), "data.eval")


def test_reasoning_gym_rows_are_the_same_for_the_same_seed() -> None:
    source = gym(task="basic_arithmetic", size=5, seed=7, config={"max_terms": 2})
    rows = read_rows(source, "data.train")
    assert rows == read_rows(source, "data.train")
    assert rows != read_rows(source.model_copy(update={"seed": 8}), "data.train")
    assert rows[:3] == read_rows(source.model_copy(update={"limit": 3}), "data.train")
    assert list(rows[0]) == columns_of(source, "data.train") == ["question", "answer", "metadata"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "basic_arithmetik"}, r"data\.train\.task: .*did you mean basic_arithmetic\?"),
        ({"task": "basic_arithmetic", "config": {"max_term": 2}}, r"config\.max_term: .*did you mean max_terms\?"),
        ({"task": "basic_arithmetic", "config": {"size": 2}}, r"write data\.train\.size"),
    ],
)
def test_an_unknown_task_or_setting_is_named_with_the_nearest(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        columns_of(gym(**fields), "data.train")


def test_a_setting_that_the_task_refuses_is_a_data_error() -> None:
    with pytest.raises(DataError, match="min_terms=0: min_terms must be positive"):
        read_rows(gym(task="basic_arithmetic", config={"min_terms": 0}), "data.train")


def test_every_task_and_setting_is_found_without_importing_reasoning_gym() -> None:
    from dataclasses import fields

    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    assert reasoning_gym.create_dataset
    for task, (_, config) in DATASETS.items():
        settings = {f.name: None for f in fields(config) if f.init and f.name not in ("size", "seed")}
        assert columns_of(gym(task=task, config=settings), "data.train") == ["question", "answer", "metadata"]


def test_columns_are_known_without_torch_or_the_data_libraries(tmp_path: Path) -> None:
    source = file(tmp_path, [{"a": 1}])
    code = f"""
import sys
from posttrain.recipe import FileSource, HubSource, ReasoningGymSource
from posttrain.data.sources import columns_of
assert columns_of(FileSource(source="file", path={source.path!r}), "k") == ["a"]
assert columns_of(ReasoningGymSource(source="reasoning_gym", task="basic_arithmetic"), "k")
assert columns_of(HubSource(source="hub", path="openai/gsm8k"), "k") is None
print([m for m in ("torch", "transformers", "datasets", "reasoning_gym", "pyarrow", "rich") if m in sys.modules])
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_hub_loader_reads_a_folder_and_says_what_to_do_when_it_cannot_reach_the_hub(tmp_path: Path) -> None:
    rows = [{"question": "a", "tags": [{"k": "v"}]}, {"question": "b", "tags": []}]
    (tmp_path / "set").mkdir()
    file(tmp_path / "set", rows, "train.jsonl")
    code = f"""
from posttrain.errors import DataError
from posttrain.recipe import HubSource
from posttrain.data.sources import read_rows
print(read_rows(HubSource(source="hub", path={str(tmp_path / "set")!r}), "data.train") == {rows!r})
print(read_rows(HubSource(source="hub", path={str(tmp_path / "set")!r}, skip=1, limit=1), "data.train") == {rows[1:]!r})
try:
    read_rows(HubSource(source="hub", path="nobody/nothing", name="main"), "data.eval")
except DataError as error:
    print(error)
"""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    whole, skipped, second = done.stdout.strip().split("\n")
    assert (whole, skipped) == ("True", "True")
    assert second.startswith("data.eval: cannot load nobody/nothing:main:train from the Hugging Face hub")
    assert "{source: file" in second


def test_a_hub_source_is_named_by_path_configuration_and_split() -> None:
    assert name_of(HubSource(source="hub", path="openai/gsm8k", name="main", split="test")) == "openai/gsm8k:main:test"
