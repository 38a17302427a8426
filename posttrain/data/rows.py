"""The rows of a recipe's source, as plain dicts with every column, and their column names without reading them all."""

from __future__ import annotations

import ast
import difflib
import glob
import importlib.util
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import date
from itertools import islice
from pathlib import Path
from typing import Any

from posttrain.data.readings import reading
from posttrain.errors import DataError
from posttrain.recipe import FileSource, HubSource, ReasoningGymSource, Source

Row = dict[str, Any]

REASONING_GYM_COLUMNS = ["question", "answer", "metadata"]
REGISTRATION = re.compile(r"register_dataset\(\s*(\w+|\"\w+\")\s*,\s*\w+\s*,\s*(\w+)")
TASK_NAME = re.compile(r"^DATASET_NAME = [\"'](\w+)[\"']", re.MULTILINE)
SHOW_PROGRESS_FROM = 2000


def read_rows(source: Source, key: str) -> list[Row]:
    """Every row of a source, in its own order, after `skip`, `limit` and `columns`; all have the same columns.

    Values keep their nesting. A column that some rows lack is None there. `key` is how errors call the source, as in
    data.train. Raises DataError for a source that is missing, unreadable, empty, or lacks a column of `columns`.
    """
    if isinstance(source, ReasoningGymSource):
        raw = _reasoning_gym(source, key)
    elif isinstance(source, FileSource):
        raw = list(islice(_dated(_file_rows(source.path, key), source, key), source.skip, _stop(source)))
    else:
        raw = _hub(source, key)
    if not raw:
        behind = f" behind {key}.skip: {source.skip}" if source.skip else ""
        behind += f" in {key}.since: {source.since.first} to {source.since.last}" if source.since else ""
        raise DataError(f"{key}: {name_of(source)} has no rows{behind}")
    names = list(dict.fromkeys(name for row in raw for name in row))
    taken = _origins(names, source.columns, key)
    return [
        {name: _value(row, origin, f"{key}: row {i}") for name, origin in taken.items()} for i, row in enumerate(raw)
    ]


def columns_of(source: Source, key: str) -> list[str] | None:
    """The columns a row will have, from the first row only; None for the hub, where they are not known before the run.

    Imports neither torch, datasets nor reasoning_gym, whose tasks and their settings are read from its source text.
    Raises DataError as read_rows does.
    """
    if isinstance(source, HubSource):
        return None
    if isinstance(source, ReasoningGymSource):
        check_task(source, key)
        return list(_origins(REASONING_GYM_COLUMNS, source.columns, key))
    first = next(_file_rows(source.path, key), None)
    if first is None:
        raise DataError(f"{key}: {name_of(source)} has no rows")
    return list(_origins(list(first), source.columns, key))


def name_of(source: Source) -> str:
    """A short stable name: the first part of its prompts' ids."""
    if isinstance(source, ReasoningGymSource):
        return f"{source.task}@{source.seed}"
    if isinstance(source, FileSource):
        path = Path(source.path)
        return path.stem if any(c.isalnum() for c in path.stem) else path.parent.name or "file"
    return ":".join(part for part in (source.path, source.name, source.split) if part)


def track(items: Sequence[Any], description: str) -> Iterable[Any]:
    """The items, with a progress bar where there are many and a person is watching."""
    if len(items) <= SHOW_PROGRESS_FROM:
        return items
    from rich.console import Console
    from rich.progress import track as bar

    console = Console(stderr=True)
    return bar(items, description, console=console, transient=True, disable=not console.is_terminal)


def nearest(name: str, valid: Iterable[str]) -> str:
    """The end of an error about an unknown name: the closest valid one, or all of them where none is close."""
    valid = list(valid)
    close = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
    return f"did you mean {close[0]}?" if close else f"there are: {', '.join(valid)}"


def check_task(source: ReasoningGymSource, key: str) -> None:
    """Refuse an unknown task and unknown settings of it, without importing reasoning_gym. Raises DataError."""
    clash = sorted({"size", "seed"} & set(source.config))
    if clash:
        raise DataError(f"{key}.config.{clash[0]}: {clash[0]} is a field of the source itself: write {key}.{clash[0]}")
    tasks = _tasks(key)
    if not tasks:
        return  # A release that registers its tasks in another way: it is asked at run time.
    if source.task not in tasks:
        raise DataError(f"{key}.task: reasoning_gym has no task {source.task!r}; {nearest(source.task, sorted(tasks))}")
    file, config_class = tasks[source.task]
    classes = [n for n in ast.parse(file.read_text("utf-8")).body if isinstance(n, ast.ClassDef)]
    config = next((c for c in classes if c.name == config_class), None)
    if config is None or config.bases:
        return
    fields = [s.target.id for s in config.body if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name)]
    for setting in source.config:
        if setting not in fields:
            settings = [f for f in fields if f not in ("size", "seed")]
            raise DataError(f"{key}.config.{setting}: {source.task} has no such setting; {nearest(setting, settings)}")


def _tasks(key: str) -> dict[str, tuple[Path, str]]:
    """Each task's file and the name of its configuration class."""
    package = importlib.util.find_spec("reasoning_gym")
    if package is None or package.origin is None:
        raise DataError(f"{key}: reasoning_gym is not installed: pip install reasoning-gym")
    tasks = {}
    for file in sorted(Path(package.origin).parent.rglob("*.py")):
        text = file.read_text("utf-8")
        name = TASK_NAME.search(text)
        for task, config_class in REGISTRATION.findall(text):
            if task.startswith('"') or name:
                tasks[task.strip('"') if task.startswith('"') or not name else name[1]] = (file, config_class)
    return tasks


def _reasoning_gym(source: ReasoningGymSource, key: str) -> list[Row]:
    check_task(source, key)
    if source.since is not None:
        raise DataError(f"{key}.since: problems that are made have no dates; leave it out")
    from reasoning_gym import create_dataset

    stop = _stop(source)
    size = source.size if stop is None else min(source.size, stop)
    try:
        # The whole size is asked for, not the limit: some tasks lay out their items over it.
        made = create_dataset(source.task, size=source.size, seed=source.seed, **source.config)
        return [dict(made[i]) for i in track(range(source.skip, size), f"{key}: {source.task}")]
    except (AssertionError, TypeError, ValueError, KeyError) as error:
        settings = ", ".join(f"{k}={v!r}" for k, v in source.config.items()) or "no settings"
        raise DataError(f"{key}: reasoning_gym cannot make {source.task} with {settings}: {error}") from error


def _file_rows(path: str, key: str) -> Iterator[Row]:
    """The rows of all files that match, files in order of their names, nothing read before it is asked for."""
    expanded = str(Path(path).expanduser())
    files = [expanded] if Path(expanded).is_file() else sorted(glob.glob(expanded, recursive=True))
    files = [file for file in files if Path(file).is_file()]
    if not files:
        hint = f"; for a folder write {path.rstrip('/')}/*.jsonl" if Path(expanded).is_dir() else ""
        raise DataError(f"{key}.path: no file matches {path!r} in {Path.cwd()}{hint}")
    for file in files:
        suffix = Path(file).suffix.lower()
        reader = READERS.get(suffix)
        if reader is None:
            raise DataError(f"{key}.path: {file} ends in {suffix!r}; known are {', '.join(READERS)}")
        yield from reader(Path(file), key)


def _read_jsonl(file: Path, key: str) -> Iterator[Row]:
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"{key}: {file}:{number} is not JSON: {error}") from error
            yield _as_row(row, f"{key}: {file}:{number}")


def _read_json(file: Path, key: str) -> Iterator[Row]:
    try:
        tree = json.loads(file.read_text("utf-8"))
    except ValueError:
        yield from _read_jsonl(file, key)  # Many .json files hold one object a line.
        return
    if isinstance(tree, dict) and isinstance(tree.get("data"), list):
        tree = tree["data"]
    for index, row in enumerate(tree if isinstance(tree, list) else [tree]):
        yield _as_row(row, f"{key}: {file} item {index}")


def _read_parquet(file: Path, key: str) -> Iterator[Row]:
    import pyarrow  # type: ignore[import-untyped]
    from pyarrow.parquet import ParquetFile  # type: ignore[import-untyped]

    try:
        with ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=1000):
                yield from batch.to_pylist()
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{key}: {file} is not parquet: {error}") from error


READERS = {".jsonl": _read_jsonl, ".json": _read_json, ".parquet": _read_parquet}


def _as_row(value: Any, where: str) -> Row:
    if not isinstance(value, dict):
        raise DataError(f"{where} is a {type(value).__name__}, not an object with columns")
    return value


def _hub(source: HubSource, key: str) -> list[Row]:
    import datasets

    try:
        data = datasets.load_dataset(
            source.path, source.name, data_dir=source.data_dir, split=source.split, revision=source.revision
        )
    except Exception as error:  # The library raises its own, the network's and the hub's kinds: all mean no data.
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise DataError(
            f"{key}: cannot load {name_of(source)} from the Hugging Face hub ({reason}); check path, name and split, "
            f"or download it once and write {{source: file, path: FOLDER/*.parquet}}"
        ) from error
    return list(islice(_dated(data, source, key), source.skip, _stop(source)))


def _dated(rows: Iterable[Row], source: Source, key: str) -> Iterator[Row]:
    """The rows of the days that the source keeps. Raises DataError for a row without a date."""
    since = source.since
    for number, row in enumerate(rows):
        if since is None:
            yield row
            continue
        if since.column not in row:
            raise DataError(f"{key}.since.column: no column {since.column!r}; {nearest(since.column, row)}")
        value = row[since.column]
        try:
            # A datetime's text begins with its day too.
            day = date.fromisoformat(str(value)[:10])
        except ValueError:
            raise DataError(
                f"{key}.since.column: row {number} has {value!r:.40} in {since.column!r}, no date as in 2024-08-31"
            ) from None
        if (since.first is None or since.first <= day) and (since.last is None or day <= since.last):
            yield row


def _stop(source: Source) -> int | None:
    """The index behind the last row that is kept."""
    return None if source.limit is None else source.skip + source.limit


def _origins(present: list[str], renames: dict[str, str], key: str) -> dict[str, str]:
    """Each column of a row and the data set's column it comes from."""
    read: set[str] = set()
    for name, origin in renames.items():
        made = None if origin in present else reading(origin)
        for column in made[1] if made else (origin,):
            if column not in present:
                raise DataError(
                    f"{key}.columns.{name}: no column {column!r} among {', '.join(present)}; {nearest(column, present)}"
                )
            read.add(column)
    kept = {name: name for name in present if name not in read and name not in renames}
    return {**kept, **renames}


def _value(row: Row, origin: str, where: str) -> Any:
    """A column's value, or what a reading makes of several."""
    made = None if origin in row else reading(origin)
    if made is None:
        return row.get(origin)
    try:
        return made[0](*(row.get(column) for column in made[1]))
    except DataError as error:
        raise DataError(f"{where}: {', '.join(made[1])}: {error}") from None
