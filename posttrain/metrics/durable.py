"""Writing so that a reader, or a run that comes back after being killed, never meets half a file."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from posttrain.errors import PosttrainError

PARTIAL = ".partial"
_locked: set[Path] = set()
"""What this process holds: the kernel's lock is per process and would let it in twice."""


def write_atomically(path: Path, chunks: Iterable[str]) -> None:
    """Put text under a temporary name beside `path` and rename it, on disk before this returns.

    Killed at any moment, `path` holds the old content or the new, and at most a hidden *.partial stays behind.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}{PARTIAL}")
    try:
        # A lone surrogate (half an emoji from a grader) has no UTF-8; its backslash form is what JSON writes for it.
        with open(partial, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(chunks)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync(path.parent)


def append_line(path: Path, line: str) -> None:
    """Add one line and wait until it is on disk."""
    new = not path.exists()
    with open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())
    if new:
        sync(path.parent)


def sync(path: Path) -> None:
    """Wait until a file's content, or a folder's names, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_partials(folder: Path) -> None:
    """Clear what killed writers left. Only while no other writer can be at work."""
    for partial in folder.glob(f".*{PARTIAL}"):
        partial.unlink(missing_ok=True)


def to_json(value: Any, what: str) -> str:
    """One line of JSON, floats by repr. Raises PosttrainError naming the key of a value JSON cannot hold."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):
        raise PosttrainError(f"{what}: {_culprit(value)}") from None


def _culprit(value: Any, key: str = "") -> str:
    """The first value that JSON refuses, by its path."""
    if isinstance(value, dict):
        items: list[tuple[Any, Any]] = list(value.items())
    elif isinstance(value, list | tuple):
        items = list(enumerate(value))
    else:
        return f"{key or 'value'} is {value!r}, which JSON cannot hold"
    for name, item in items:
        try:
            json.dumps(item, allow_nan=False)
        except (TypeError, ValueError):
            return _culprit(item, f"{key}.{name}" if key else str(name))
    return f"{key or 'value'} has a key that is no text"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a JSON-lines file; a last line without its newline was torn by a kill and is left out.

    Raises PosttrainError naming a line that is damaged in any other way.
    """
    records = []
    # Split at \n alone: other line separators are legal inside JSON strings.
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise PosttrainError(f"{path}, line {number}: not JSON ({error}); restore or remove the file") from None
    return records


def drop_torn_line(path: Path) -> None:
    """Cut off a last line that has no newline, so that the next one does not grow out of it."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold a file's lock; the kernel frees it however this process ends, and forked children do not inherit it.

    Raises PosttrainError naming the process that holds it.
    """
    key = path.resolve()
    if key in _locked:
        raise PosttrainError(f"{path.parent} is in use by this process (pid {os.getpid()}): use another run.folder")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            holder = os.pread(descriptor, 64, 0).decode(errors="replace").strip() or "unknown"
            raise PosttrainError(
                f"{path.parent} is in use by another run (pid {holder}): wait for it or use another run.folder"
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        _locked.add(key)
        try:
            yield
        finally:
            _locked.discard(key)
            with suppress(OSError):
                os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)
