"""What a program made of its tests."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from typing import Any

LONGEST = 200
"""Characters of a value or a statement in a reason."""


class BrokenTestsError(Exception):
    """Tests that cannot be run whatever the program: the data set's fault, so no score follows."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How many tests passed, out of how many, and why the first failed. Where the run stopped there, none of the rest
    counts as passed.
    """

    passed: int
    total: int
    reason: str = ""


def shown(value: Any) -> str:
    """A value for people to read, cut."""
    try:
        return cut(_short.repr(value))
    except Exception:  # an integer of more digits than Python prints
        return f"a {type(value).__name__}"


def cut(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


_short = reprlib.Repr()
_short.maxlevel, _short.maxstring, _short.maxother, _short.maxlong = 4, LONGEST, LONGEST, LONGEST
_short.maxlist = _short.maxtuple = _short.maxdict = _short.maxset = _short.maxfrozenset = _short.maxdeque = 20
