"""What the processes of a program hold of memory, read by its cell from a folder of /proc."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Callable

_PAGE = resource.getpagesize()


def mapped(proc: int) -> int:
    """Bytes of address space of the process that asks."""
    return int(_read(proc, "self/statm").split()[0]) * _PAGE


def check(proc: int) -> None:
    """Raises OSError where the system does not tell what is asked here."""
    pid = _own(proc)
    for name in (f"{pid}/task/{pid}/children", f"{pid}/smaps_rollup", f"{pid}/statm"):
        _read(proc, name)


def holds_more(proc: int, memory: int) -> bool:
    """Whether all descendants of the process that asks hold more than that many bytes together."""
    pids = descendants(proc)
    # A page that several share counts for each of them at first, and for its share where that is too much.
    return _total(proc, pids, _resident) > memory and _total(proc, pids, _proportional) > memory


def descendants(proc: int) -> list[str]:
    found: list[str] = []
    more = [_own(proc)]
    while more:
        children = _children(proc, more.pop())
        found += children
        more += children
    return found


def _own(proc: int) -> str:
    """The number there of the process that asks."""
    return _read(proc, "self/stat").split()[0]


def _children(proc: int, pid: str) -> list[str]:
    try:
        folder = os.open(f"{pid}/task", os.O_RDONLY | os.O_DIRECTORY, dir_fd=proc)
    except OSError:
        return []  # it has ended meanwhile
    try:
        threads = os.listdir(folder)
    except OSError:
        return []
    finally:
        os.close(folder)
    found: list[str] = []
    for thread in threads:
        try:
            found += _read(proc, f"{pid}/task/{thread}/children").split()
        except OSError:
            continue
    return found


def _total(proc: int, pids: list[str], size: Callable[[int, str], int]) -> int:
    total = 0
    for pid in pids:
        try:
            total += size(proc, pid)
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
    return total


def _resident(proc: int, pid: str) -> int:
    return int(_read(proc, f"{pid}/statm").split()[1]) * _PAGE


def _proportional(proc: int, pid: str) -> int:
    found = re.search(r"^Pss:\s+(\d+) kB", _read(proc, f"{pid}/smaps_rollup"), re.MULTILINE)
    return int(found[1]) << 10 if found else 0


def _read(proc: int, name: str) -> str:
    descriptor = os.open(name, os.O_RDONLY, dir_fd=proc)
    try:
        return os.read(descriptor, 1 << 16).decode()
    finally:
        os.close(descriptor)
