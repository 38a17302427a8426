"""Edits of files as a model writes them, unified diffs or search/replace blocks: read, and applied to contents."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

LONGEST = 400_000
"""Characters of a text with edits."""
MOST = 1000
"""Hunks of a text with edits."""

_HUNK = re.compile(r"@@ -(\d{1,9})(?:,(\d{1,9}))? \+(\d{1,9})(?:,(\d{1,9}))? @@")
_SEARCH, _DIVIDE, _REPLACE = "<<<<<<< SEARCH", "=======", ">>>>>>> REPLACE"


@dataclass(frozen=True, slots=True)
class Hunk:
    """Lines that become others. `line` is where a diff says the old ones begin, from 1; None: wherever they stand."""

    old: tuple[str, ...]
    new: tuple[str, ...]
    line: int | None = None


@dataclass(slots=True)
class FileEdit:
    """What happens to one file. `source` is its path before, None: it is new; `path` the one after, None: deleted."""

    source: str | None
    path: str | None
    hunks: list[Hunk] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.path or self.source or ""


def read_edits(text: str) -> list[FileEdit]:
    """Search/replace blocks where there are any, else unified diffs; words around them are left out.

    Raises ValueError saying why where there is no edit, or one that is broken, changes nothing, or is too long.
    """
    if len(text) > LONGEST:
        raise ValueError(f"{len(text)} characters of edits")
    lines = text.replace("\r\n", "\n").split("\n")
    found = _blocks(lines) if any(line.rstrip() == _SEARCH for line in lines) else _diffs(lines)
    if not found:
        raise ValueError("there is no edit")
    if sum(len(edit.hunks) for edit in found) > MOST:
        raise ValueError(f"more than {MOST} hunks")
    return found


def apply(edits: list[FileEdit], files: Mapping[str, str]) -> dict[str, str]:
    """The contents afterwards of the files that were edited; those of a deleted file are empty.

    A diff's hunk goes where its old lines stand nearest to the line it names, with no fuzz; a search block to the first
    place where its lines stand. Raises ValueError where they stand nowhere, or the file is not there.
    """
    after: dict[str, str] = {}
    for edit in edits:
        known = after.get(edit.source or edit.name, files.get(edit.source or edit.name))
        if edit.source is not None and known is None:
            raise ValueError(f"there is no file {edit.source!r}")
        if edit.source is None and known:
            raise ValueError(f"{edit.name!r} is to be made but is there")
        lines = known.split("\n") if known else []
        for hunk, moved in zip(edit.hunks, _shifts(edit.hunks), strict=True):
            lines = _apply(hunk, lines, moved, edit.name)
        if edit.path != edit.source and edit.source is not None:
            after[edit.source] = ""
        if edit.path is not None:
            after[edit.path] = "\n".join(lines)
    return after


def changed_lines(edit: FileEdit) -> list[str]:
    """The lines that go (`-`) and come (`+`), without what stays; the same however much context the edit shows."""
    found: list[str] = []
    for hunk in edit.hunks:
        matcher = difflib.SequenceMatcher(None, hunk.old, hunk.new)
        for tag, i, j, k, m in matcher.get_opcodes():
            if tag != "equal":
                found += [f"-{line}" for line in hunk.old[i:j]] + [f"+{line}" for line in hunk.new[k:m]]
    return found


def _shifts(hunks: list[Hunk]) -> list[int]:
    """By how many lines the hunks before each one have moved what it names."""
    moved, found = 0, []
    for hunk in hunks:
        found.append(moved)
        moved += len(hunk.new) - len(hunk.old)
    return found


def _apply(hunk: Hunk, lines: list[str], moved: int, name: str) -> list[str]:
    size = len(hunk.old)
    if not size:
        if hunk.line is None and any(lines):
            raise ValueError(f"an empty search in {name!r}, which is not empty")
        at = 0 if hunk.line is None else min(max(hunk.line + moved, 0), len(lines))
        return [*lines[:at], *hunk.new, *lines[at:]]
    first, old = hunk.old[0], list(hunk.old)
    places = [i for i, line in enumerate(lines) if line == first and lines[i : i + size] == old]
    if not places:
        raise ValueError(f"the lines to change do not stand in {name!r}: {first!r:.80}")
    wanted = 0 if hunk.line is None else hunk.line - 1 + moved
    at = min(places, key=lambda place: abs(place - wanted))
    return [*lines[:at], *hunk.new, *lines[at + size :]]


def _blocks(lines: list[str]) -> list[FileEdit]:
    """Search/replace blocks. A file is named on a line of its own before its blocks, after `###` or bare."""
    files: dict[str, FileEdit] = {}
    name, i = "", 0
    while i < len(lines):
        if lines[i].rstrip() != _SEARCH:
            line = lines[i].strip().lstrip("#").strip().strip("`*:")
            if re.fullmatch(r"[\w./+@-]+", line) and re.search(r"[/.]\w", line):
                name = line
            i += 1
            continue
        search, i = _until(lines, i + 1, _DIVIDE)
        replace, i = _until(lines, i, _REPLACE)
        if not name:
            raise ValueError("a search block with no file before it")
        if search == replace:
            raise ValueError(f"a block of {name!r} changes nothing")
        edit = files.setdefault(name, FileEdit(name, name))
        if not any(search):
            edit.source = None if not edit.hunks else edit.source
            search = []
        edit.hunks.append(Hunk(tuple(search), tuple(replace)))
    return list(files.values())


def _until(lines: list[str], start: int, mark: str) -> tuple[list[str], int]:
    for i in range(start, len(lines)):
        if lines[i].rstrip() == mark:
            return lines[start:i], i + 1
        if lines[i].rstrip() == _SEARCH:
            break
    raise ValueError(f"a block has no {mark!r}")


def _diffs(lines: list[str]) -> list[FileEdit]:
    found: list[FileEdit] = []
    i = 0
    while i < len(lines):
        if lines[i].startswith("rename from ") and i + 1 < len(lines) and lines[i + 1].startswith("rename to "):
            found.append(FileEdit(lines[i][12:].strip(), lines[i + 1][10:].strip()))
            i += 2
        elif lines[i].startswith("--- ") and i + 1 < len(lines) and lines[i + 1].startswith("+++ "):
            edit = FileEdit(_path(lines[i]), _path(lines[i + 1]))
            i = _hunks(lines, i + 2, edit)
            if found and not found[-1].hunks and (found[-1].source, found[-1].path) == (edit.source, edit.path):
                found.pop()
            found.append(edit)
        else:
            i += 1
    return found


def _path(header: str) -> str | None:
    path = header[4:].partition("\t")[0].strip().strip('"')
    if path == "/dev/null":
        return None
    return path[2:] if path.startswith(("a/", "b/")) else path


def _hunks(lines: list[str], i: int, edit: FileEdit) -> int:
    """Read a file's hunks, from line i on; where they end. A model counts badly, so lines decide and not the header."""
    if not edit.name:
        raise ValueError("a diff of no file")
    while i < len(lines) and (head := _HUNK.match(lines[i])):
        due = [int(head.group(2) or 1), int(head.group(4) or 1)]
        old: list[str] = []
        new: list[str] = []
        i, blank = i + 1, 0
        while i < len(lines) and (lines[i][:1] in " +-\\" or (not lines[i] and max(due) > 0)):
            if max(due) <= 0 and (lines[i].startswith("--- ") or not lines[i]):
                break
            sign, rest = lines[i][:1] or " ", lines[i][1:]
            blank = 0 if lines[i] else blank + 1
            for side, taken, at in ((old, sign in " -", 0), (new, sign in " +", 1)):
                if taken:
                    side.append(rest)
                    due[at] -= 1
            i += 1
        if any(due) and blank:
            # Empty lines behind a hunk of wrong counts belong to the text around it.
            del old[-blank:], new[-blank:]
        if old == new:
            raise ValueError(f"a hunk of {edit.name!r} changes nothing")
        edit.hunks.append(Hunk(tuple(old), tuple(new), int(head.group(1))))
    if not edit.hunks:
        raise ValueError(f"a diff of {edit.name!r} without a hunk")
    return i
