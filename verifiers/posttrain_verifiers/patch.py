"""How like the known patch is the one in the completion (SWE-RL, 2502.18449)?"""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from posttrain.types import Verdict
from posttrain_verifiers.edits import FileEdit, apply, changed_lines, read_edits

WORK = 10_000_000
"""Pairs of equal characters that difflib may look at: a second or two. Beyond, lines are compared in their place."""


class Patch:
    """difflib's similarity of the completion's edits with those of the column `patch`, the mean over the files of both.

    Both may be unified diffs or search/replace blocks. A file that only one of them edits counts 0. With the column
    `files` (path to content before), the edits are applied and the resulting diffs compared, in the paper's way, so how
    much context a patch shows does not matter; an edit that does not apply is one of wrong format. Without it, the
    lines that go and come are compared. `tag` names the tags that the edits stand in, so that drafts in the reasoning
    are not read; empty reads the whole completion. No edit, or one of wrong format, scores `wrong_format`, the paper's
    -1. Parts: `similarity`, `files` (the share of all edited files that both edit) and `readable`.
    """

    version = "1"

    def __init__(self, wrong_format: float = -1.0, tag: str = "") -> None:
        if not math.isfinite(wrong_format) or wrong_format > 0:
            raise ValueError(f"wrong_format is a score of 0 or below, not {wrong_format}")
        self.wrong_format, self.tag = wrong_format, tag

    def __call__(self, completion: str, *, patch: str, files: Mapping[str, str] | None = None) -> Verdict:
        """No score where the known patch cannot be read, does not apply to `files`, or is too large to compare."""
        try:
            oracle = _changes(read_edits(patch), files)
        except ValueError as error:
            return Verdict(None, "unparsable", reason=f"the known patch cannot be used: {error!s:.200}")
        try:
            ours = _changes(read_edits(self._solution(completion)), files)
        except ValueError as error:
            nothing = {"similarity": 0.0, "files": 0.0, "readable": 0.0}
            return Verdict(self.wrong_format, "unparsable", nothing, reason=f"{error!s:.200}")
        names = sorted({*oracle, *ours})
        both = [name for name in names if name in oracle and name in ours]
        found = {name: similarity(ours[name], oracle[name]) for name in both}
        if any(found[n] is None and similarity(oracle[n], oracle[n] + " ") is None for n in both):
            return Verdict(None, "unparsable", reason="the known patch is too large to be compared")
        score = math.fsum(value or 0.0 for value in found.values()) / len(names)
        parts = {"similarity": score, "files": len(both) / len(names), "readable": 1.0}
        reason = "; ".join(f"{name}: {found.get(name) or 0.0:.2f}" for name in names[:8])
        return Verdict(score, parts=parts, reason=reason)

    def _solution(self, completion: str) -> str:
        if not self.tag:
            return completion
        _, mark, rest = completion.rpartition(f"<{self.tag}>")
        body, end, _ = rest.partition(f"</{self.tag}>")
        if not mark or not end:
            raise ValueError(f"no <{self.tag}>…</{self.tag}>")
        return body


def similarity(one: str, other: str) -> float | None:
    """difflib's ratio by characters, by lines where that would take too long; None where those would too."""
    if one == other:
        return 1.0
    if _work(one, other) <= WORK:
        return difflib.SequenceMatcher(None, one, other, autojunk=False).ratio()
    lines, others = one.splitlines(keepends=True), other.splitlines(keepends=True)
    if _work(lines, others) > WORK:
        return None
    matcher = difflib.SequenceMatcher(None, lines, others, autojunk=False)
    equal = sum(len(line) for block in matcher.get_matching_blocks() for line in lines[block.a : block.a + block.size])
    return 2 * equal / (len(one) + len(other))


def _work(one: Sequence[str], other: Sequence[str]) -> int:
    """How many pairs of equal members difflib looks at in its first pass."""
    counts = Counter(other)
    return sum(times * counts[member] for member, times in Counter(one).items())


def _changes(edits: list[FileEdit], files: Mapping[str, str] | None) -> dict[str, str]:
    """What is compared of each file that changes: a diff of its contents, or the lines that go and come."""
    if files is None:
        found: dict[str, list[str]] = {}
        for edit in edits:
            found.setdefault(edit.name, []).extend(changed_lines(edit))
        return {name: "\n".join(lines) for name, lines in found.items()}
    after = apply(edits, files)
    changes = {name: _diff(files.get(name, ""), text) for name, text in after.items() if files.get(name, "") != text}
    if not changes:
        raise ValueError("the edits change nothing")
    return changes


def _diff(before: str, after: str) -> str:
    """A unified diff without names and line numbers, which would be alike for any edit of the file."""
    lines = list(difflib.unified_diff(before.split("\n"), after.split("\n"), lineterm=""))[2:]
    return "\n".join("@@" if re.match(r"@@ -\d", line) else line for line in lines)
