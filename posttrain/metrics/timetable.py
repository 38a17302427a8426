"""A run's profile for a person, as a table, and for a script, as plain values."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from posttrain.metrics.folder import RunFolder
from posttrain.metrics.inspection import MISSING
from posttrain.metrics.savings import savings, sentence
from posttrain.metrics.timing import Profile, Spent, profile

SELDOM = ("reading", "reference", "values")
"""Parts of learning that many algorithms do without: shown where there are any."""


def as_json(folder: RunFolder) -> dict[str, Any]:
    """Everything that `render_time` shows, unrounded, null where it was not measured."""
    recipe, found = folder.recipe(), _profile(folder)
    fixes = [asdict(saving) for saving in savings(found, recipe)]
    return {"run": str(folder.path), **asdict(found), "savings": fixes, "largest": sentence(found, recipe)}


def render_time(folder: RunFolder) -> RenderableType:
    """Where each step's seconds went, phase by phase, what the learner computed, and the largest thing to fix."""
    recipe, found = folder.recipe(), _profile(folder)
    title = f"seconds of {found.steps} steps" + (", the first apart" if found.steps > 1 else "")
    table = Table("phase", "median", "10–90 %", "steps", "mean", "share", "tokens/s", "first step", title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, spent in found.phases.items():
        if name in SELDOM and spent.first is None and not spent.steps:
            continue
        if name in ("step", "write"):
            table.add_section()
        table.add_row(*_row(spent))
    lines = [Text(line) for line in _lines(found)]
    return Group(table, *lines, Text(sentence(found, recipe), style="bold"))


def _profile(folder: RunFolder) -> Profile:
    lines = folder.read_metrics()
    return profile(lines, folder.read_after(lines[-1]["step"]) if lines else None)


def _row(spent: Spent) -> list[str]:
    indent = "  " if spent.within == "learn" else ""
    spread = f"{_seconds(spent.low)} – {_seconds(spent.high)}" if spent.low is not None else MISSING
    return [
        indent + spent.label,
        _seconds(spent.median),
        spread,
        str(spent.steps or MISSING),
        _seconds(spent.mean),
        MISSING if spent.share is None else f"{spent.share:.1%}",
        MISSING if spent.tokens_per_second is None else f"{spent.tokens_per_second:,.0f}",
        _seconds(spent.first),
    ]


def _lines(found: Profile) -> list[str]:
    """What the table does not say: positions, samples, waiting, the time before the first step."""
    work = found.work
    said = [
        f"positions computed {_count(work['computed'])}: learnt tokens {_count(work['learnt'])} "
        f"({_share(work['learnt_share'])}), padding {_share(work['padding_share'])}, prompt tokens computed again "
        f"{_count(work['repeated'])} ({_share(work['repeated_share'])}), shared instead {_count(work['shared'])}",
        f"samples with nothing to learn (advantage 0): {_share(work['silent_share'])}",
    ]
    if work["silent_computed"]:
        said.append(
            f"positions of rows without an advantage, read without a backward pass: {_count(work['silent_computed'])}"
        )
    if work["first_pass"]:
        said.append(
            f"computed before that without gradient, for losses of a whole update: {_count(work['first_pass'])}"
        )
    if found.waited is not None:
        said.append(f"a rank waited for others or exchanged with them {found.waited:.3g} s a step, in the mean")
    if found.before is not None:
        said.append(f"before the first step: {found.before:.3g} s")
    return said


def _seconds(value: float | None) -> str:
    return MISSING if value is None else f"{value:.3f}"


def _count(value: float | None) -> str:
    return MISSING if value is None else f"{value:,.0f}"


def _share(value: float | None) -> str:
    return MISSING if value is None else f"{value:.1%}"
