"""Verifiers that state a version, and count how often they are asked."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from posttrain.types import Verdict


class Counted:
    """Worth the length of the completion in tenths; writes every completion it is asked of into a file."""

    version = "1"

    def __init__(self, log: str, least: int = 0) -> None:
        self.log, self.least = Path(log), least

    def __call__(self, completion: str, *, answer: str = "", bonus: float = 0.0) -> Verdict:
        with self.log.open("a", errors="backslashreplace") as log:
            log.write(completion + "\n")
        if completion == "raise":
            raise ConnectionError("not now")
        if completion == "hang":
            time.sleep(600)
        if completion == "unavailable":
            return Verdict(None, "unavailable", reason="the service is away")
        if completion == "no gold":
            return Verdict(None, "unparsable", reason="no gold")
        if not completion:
            return Verdict(0.0, "unparsable", reason="empty")
        score = len(completion) / 10 + bonus
        return Verdict(score, "ok", {"length": score, "none": None}, f"said {completion!r}", ((0, 0.25),), completion)


class Named(Counted):
    """Another name."""


class Whole(Counted):
    """Sees every column."""

    def __call__(self, completion: str, **columns: Any) -> Verdict:  # type: ignore[override]
        return super().__call__(completion)


class Together:
    """A group at a time, with a version that cannot matter."""

    version = "1"

    def __init__(self, log: str) -> None:
        self.log = Path(log)

    def __call__(self, completions: list[str], **columns: Any) -> list[float]:
        with self.log.open("a", errors="backslashreplace") as log:
            log.write("group\n")
        return [float(len(text)) for text in completions]


class Against(Together):
    """Two at a time."""

    def __call__(self, completion: str, other: str) -> float:  # type: ignore[override]
        with self.log.open("a", errors="backslashreplace") as log:
            log.write("pair\n")
        return 0.5


def answered(completion: str, *, answer: str | None = None) -> Verdict:
    """What stands before a colon is its worth, what stands behind it was taken for the answer."""
    worth, _, found = completion.partition(":")
    return Verdict(float(worth), answer=found or None)


def margins(completions: list[str], **columns: Any) -> list[Verdict]:
    """Worth 1 with a margin's part of its own: what the completion says."""
    return [Verdict(1.0, offset=float(text)) for text in completions]


def away(completion: str) -> Verdict:
    """A service that only answers `a`."""
    return Verdict(1.0) if completion == "a" else Verdict(None, "unavailable", reason="503")


def loaded(completion: str) -> Verdict:
    """Refuses everything, and says which modules its process has."""
    return Verdict(0.0, "ok", reason=" ".join(sorted(sys.modules)))


class Waits:
    """Ready once there is a file `door`; then it makes the file `here`."""

    def __init__(self, door: str, here: str) -> None:
        self.door, self.here = Path(door), Path(here)

    def prepare(self) -> None:
        while not self.door.exists():
            time.sleep(0.01)
        self.here.write_text("")

    def __call__(self, completion: str) -> float:
        return float(self.here.exists())


class Unprepared:
    """Cannot be prepared."""

    def prepare(self) -> None:
        raise OSError("no prepared place")

    def __call__(self, completion: str) -> float:
        return 1.0


class Hurried:
    """Runs into a limit of time, as `way` says it, while there is a file `busy`: hangs, or gives up by itself."""

    version = "1"

    def __init__(self, busy: str, way: str) -> None:
        self.busy, self.way = Path(busy), way

    def __call__(self, completion: str) -> Verdict:
        if not self.busy.exists():
            return Verdict(1.0)
        if self.way == "hangs":
            time.sleep(600)
        return Verdict(0.0, reason="timeout", lasting=False)


class Noted:
    """Makes a file of the name that it is asked of in a folder; `alone` says whether that holds the cores."""

    def __init__(self, folder: str, alone: bool = False) -> None:
        self.folder, self.alone = Path(folder), alone

    def __call__(self, completion: str) -> float:
        (self.folder / completion).write_text("")
        return float(len(completion))
