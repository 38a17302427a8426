"""Where the seconds of a run went: phases of its steps from metrics.jsonl, and what the computed positions were."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from posttrain.metrics.report import Report

Line = Mapping[str, Any]
SYNC = ("sync/seconds", "sync/switch_seconds")


def handed_over(report: Report) -> float:
    """Seconds in which weights were published and an engine woke or slept."""
    values = report.values()
    return sum(values.get(name, 0.0) for name in SYNC)


@dataclass(frozen=True)
class Phase:
    """A part of a step. Phases of the first level and what is unaccounted add up to the step."""

    name: str
    label: str
    adds: tuple[str, ...]
    """Metrics whose sum is the phase."""
    less: tuple[str, ...] = ()
    """Metrics of what another phase has counted."""
    tokens: str | None = None
    """The metric of the tokens that it handled."""
    within: str | None = None
    """The phase that it is a part of."""


PHASES = (
    Phase("generate", "generate", ("rollout/seconds",), ("rollout/sync_seconds",), "rollout/tokens"),
    Phase("grade", "grade", ("grade/seconds",), tokens="rollout/tokens"),
    Phase("learn", "learn", ("learn/seconds",)),
    Phase("reading", "policy read", ("learn/reading_seconds",), (), "work/reading_tokens", "learn"),
    Phase("reference", "reference read", ("learn/reference_seconds",), (), "work/reference_tokens", "learn"),
    Phase("values", "critic read", ("learn/values_seconds",), (), "work/values_tokens", "learn"),
    Phase("pass", "forward, backward", ("learn/pass_seconds",), (), "work/computed", "learn"),
    Phase("optimizer", "optimiser step", ("learn/optimizer_seconds",), within="learn"),
    Phase("waiting", "wait for the next step's draws", ("ahead/waited_seconds",)),
    Phase("publish", "publish, wake, sleep", SYNC),
    Phase("evaluate", "evaluate", ("eval/seconds",), ("eval/sync_seconds",)),
)
REST, OTHER = "rest", "other"
BETWEEN = {"write": "write/seconds", "save": "save/seconds"}
"""After a step was measured, and so noted in the line of the next one, or beside the lines where none followed."""


@dataclass(frozen=True)
class Spent:
    """One phase over the steps after the first one."""

    label: str
    within: str | None
    first: float | None
    """Seconds in the first step, in which engines and kernels start."""
    steps: int
    """How many of the later steps had the phase; what follows is None where none had it, or did not measure it."""
    median: float | None = None
    low: float | None = None
    high: float | None = None
    """Median, tenth and ninetieth percentile over these steps."""
    mean: float | None = None
    """Over all later steps: means add up to the step's."""
    share: float | None = None
    """Of the step."""
    tokens_per_second: float | None = None


@dataclass(frozen=True)
class Profile:
    """A run's seconds and positions."""

    steps: int
    """How many were measured, the first one included."""
    before: float | None
    """Seconds of the measurement before the first step."""
    phases: Mapping[str, Spent]
    """By name, in the order of a step: phases, `rest` of learning, `other`, `step`; then `write` and `save`."""
    work: Mapping[str, float | None]
    """Sums over the steps after the first one, and shares of them; None where a run did not count it."""
    waited: float | None
    """Seconds a step in which a rank, in the mean, waited for others or exchanged with them; None on one process."""
    evaluated_between: float
    """Seconds a step, in the mean, of evaluations that were not the last step's."""
    dropped: float
    """Groups a step that were drawn and not learnt from."""
    epochs: float
    """How often the run went through given data, the present time included; 0 where prompts are sampled from."""


def profile(lines: Sequence[Line], after: Mapping[str, float] | None = None) -> Profile:
    """The seconds of each phase of the steps in metrics.jsonl; a step that did not measure one has None there. `after`
    is what was noted after the last step.
    """
    steps = [line for line in lines if line["step"] > 0 and "step/seconds" in line]
    parts, later = [_parts(line) for line in steps], steps[1:]
    for here, following in zip(parts, [*later, after or {}], strict=False):
        here |= {name: following.get(metric) for name, metric in BETWEEN.items()}
    phases = {}
    for name, (label, within) in _order().items():
        tokens = next((p.tokens for p in PHASES if p.name == name), None)
        handled = [line.get(tokens) if tokens else None for line in later]
        first = parts[0].get(name) if parts else None
        whole = sum(part["step"] or 0.0 for part in parts[1:])
        phases[name] = _spent((label, within), first, [part.get(name) for part in parts[1:]], whole, handled)
    evaluated = sum(part["evaluate"] or 0.0 for part in parts[1:-1])
    start = next((line for line in lines if line["step"] == 0), {})
    return Profile(
        len(steps),
        start.get("step/seconds"),
        phases,
        _work(later or steps),
        _mean(later, "ranks/waited_seconds"),
        evaluated / len(later) if later else 0.0,
        _mean(later, "rollout/dropped_groups") or 0.0,
        1 + max((line["data/epoch"] for line in steps if "data/epoch" in line), default=-1.0),
    )


def _order() -> dict[str, tuple[str, str | None]]:
    """Label and place of every phase, in the order of a step."""
    found: dict[str, tuple[str, str | None]] = {}
    for phase in PHASES:
        found[phase.name] = phase.label, phase.within
        if phase.name == "optimizer":
            found[REST] = "rest", "learn"
    found |= {OTHER: ("idle or not timed", None), "step": ("step", None)}
    return found | {name: (f"then: {name}", "between") for name in BETWEEN}


def _mean(lines: Sequence[Line], name: str) -> float | None:
    """Over the lines that have it."""
    found = [line[name] for line in lines if name in line]
    return sum(found) / len(found) if found else None


def _parts(line: Line) -> dict[str, float | None]:
    """Seconds of each phase of one step. Without `eval/sync_seconds` (older runs) it is not known how much of the
    publishing lay in the evaluation: what is known to be counted twice is left to the evaluation.
    """
    out: dict[str, float | None] = {}
    for phase in PHASES:
        there = [line[name] for name in phase.adds if name in line]
        out[phase.name] = sum(there) - sum(line.get(name, 0.0) for name in phase.less) if there else None
    if "eval/seconds" in line and "eval/sync_seconds" not in line:
        out["publish"] = None
    inner = [out[p.name] or 0.0 for p in PHASES if p.within]
    out[REST] = out["learn"] - sum(inner) if out["learn"] is not None and out["pass"] is not None else None
    out["step"] = line["step/seconds"]
    out[OTHER] = line["step/seconds"] - sum(out[p.name] or 0.0 for p in PHASES if not p.within)
    return out


def _spent(
    label: tuple[str, str | None],
    first: float | None,
    values: Sequence[float | None],
    whole: float,
    handled: Sequence[float | None],
) -> Spent:
    there = [value for value in values if value is not None]
    if not there:
        return Spent(*label, first, 0)
    low, median, high = np.quantile(there, [0.1, 0.5, 0.9]).tolist()
    done = [(n, value) for n, value in zip(handled, values, strict=True) if n is not None and value is not None]
    seconds = sum(value for _, value in done)
    return Spent(
        *label,
        first,
        len(there),
        median,
        low,
        high,
        sum(there) / len(values),
        sum(there) / whole if whole else None,
        sum(n for n, _ in done) / seconds if seconds > 0 else None,
    )


COUNTED = (
    *("computed", "padding", "learnt", "repeated", "shared", "waiting"),
    *("first_pass", "silent_computed", "samples", "silent_samples"),
)
OF = {
    "learnt_share": ("learnt", "computed"),
    "padding_share": ("padding", "computed"),
    "repeated_share": ("repeated", "computed"),
    "silent_share": ("silent_samples", "samples"),
}


def _work(steps: Sequence[Line]) -> dict[str, float | None]:
    """Sums of what was counted, and shares: positions of passes with a gradient, those of an update counted once."""
    found: dict[str, float | None] = {}
    for name in COUNTED:
        values = [line[f"work/{name}"] for line in steps if f"work/{name}" in line]
        found[name] = sum(values) if values else None
    for share, (part, whole) in OF.items():
        of = found[whole]
        found[share] = None if not of or found[part] is None else (found[part] or 0.0) / of
    return found
