"""What a stage of a pipeline came to, in few numbers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """What one stage came to: a row of the table at the end."""

    stage: str
    made: str
    steps: int | None
    seconds: float
    figures: Mapping[str, Any]


BESIDE = ("length_mean", "truncated_fraction", "no_answer")
"""What an evaluation says of responses beside what they are worth."""


def main_figures(summary: Mapping[str, Any]) -> list[str]:
    """A summary's numbers that have an interval or are those after the run, with the one before; else all of them."""
    numbers = [
        name
        for name, value in summary.items()
        if isinstance(value, int | float)
        and name not in ("step", "steps", "seconds")
        and not name.endswith(("_low", "_high", "_before"))
    ]
    main = [name for name in numbers if name.endswith("_after") or f"{name}_low" in summary]
    main = [name for name in main if not name.endswith(BESIDE)]
    lines = []
    for name in main or numbers:
        stem = name.removesuffix("_after")
        before = f"{stem}_before"
        start = f"{_figure(summary, before)} -> " if stem != name and summary.get(before) is not None else ""
        lines.append(f"{stem} {start}{_figure(summary, name)}")
    return lines


def _figure(summary: Mapping[str, Any], name: str) -> str:
    low, high = summary.get(f"{name}_low"), summary.get(f"{name}_high")
    around = f" [{low:.3f}, {high:.3f}]" if low is not None and high is not None else ""
    return f"{summary[name]:.4g}{around}"
