"""Which of several systems is better, by how much, and how sure that is: `posttrain compare`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from posttrain.errors import PosttrainError
from posttrain.metrics.forest import draw
from posttrain.metrics.paired import paired, problems_needed
from posttrain.metrics.seeds import Plan, Scores, decide, difference, improvement, interquartile, seeds_needed
from posttrain.metrics.statistics import clustered_interval, holm, wilson
from posttrain.metrics.systems import SHOWN, Measured, System, Values, default_metric, gather, values

FEW_SEEDS = 10
TOO_NARROW = "95 % intervals over so few cover less (75 to 87 % at 3, 88 to 93 % at 5); go by the sequential test"
HEADER = ("verifiers", "sampling", "prompt", "system", "shots", "engine")
"""What changes figures and is no property of the system."""


def compare(
    paths: Sequence[str | Path], metric: str | None = None, plan: Plan | None = None, seed: int = 0
) -> dict[str, Any]:
    """Every pair of the systems that `paths` name (see `systems.gather`), ready for JSON: each second system less the
    first one.

    `systems`: means with 95 % intervals over problems. `pairs`, by benchmark: the paired difference with its interval,
    an exact or permutation test with Holm's adjustment over all rows, problems won, lost and tied by id, and how many
    would find the plan's smallest difference, or such a one, with its power at level / rows. `seeds`, where each system
    has several runs: interquartile means, probability of improvement, the sequential test's decision after `plan`, and
    how many seeds would do. `notes`: what a reader must know. Ungraded responses are left out and counted.
    Raises PosttrainError as `systems.gather` and `systems.values` do.
    """
    plan = plan or Plan()
    systems = gather(paths)
    metric = metric or default_metric(systems)
    found = {
        name: {s.name: _values(systems[0].runs[name][0], s.runs[name], metric) for s in systems}
        for name in systems[0].runs
    }
    return {
        "metric": metric,
        "systems": [
            _system(system, name, rows[system.name], seed) for name, rows in found.items() for system in systems
        ],
        "pairs": _pairs([system.name for system in systems], found, plan, seed),
        **_seeds(systems, found, plan, seed),
        "notes": [*(note for name in found for note in _notes(systems, name)), *_few_seeds(systems)],
    }


def picture(found: Mapping[str, Any], path: Path) -> None:
    """Write a PNG of what `compare` found: means, and differences, with their intervals."""
    draw(found, path)


def _values(first: Measured, runs: Sequence[Measured], metric: str) -> list[Values]:
    """Each run's, its problems called as in the first system's first file."""
    order = {key: item.problem for key, item in first.items.items()}
    return [values(run, order, metric) for run in runs]


def _worth(rows: Sequence[Values]) -> dict[str, float]:
    """Each problem's mean over the runs that have a score for it."""
    names = dict.fromkeys(name for row in rows for name in row.by_problem)
    scores = {name: [row.by_problem[name] for row in rows if name in row.by_problem] for name in names}
    return {name: sum(found) / len(found) for name, found in scores.items()}


def _single(rows: Sequence[Values]) -> bool:
    return len(rows) == 1 and rows[0].single


def _system(system: System, benchmark: str, rows: Sequence[Values], seed: int) -> dict[str, Any]:
    worth = list(_worth(rows).values())
    mean, low, high = clustered_interval([[v] for v in worth], seed)
    if _single(rows) and set(worth) <= {0.0, 1.0}:
        low, high = wilson(sum(worth), len(worth))
    return {
        "name": system.name,
        "benchmark": benchmark,
        "files": [str(run.path) for run in system.runs[benchmark]],
        "mean": mean,
        "low": low,
        "high": high,
        "problems": len(worth),
        "runs": [sum(row.by_problem.values()) / len(row.by_problem) for row in rows],
        "ungraded": sum(row.ungraded for row in rows),
    }


def _pairs(
    names: Sequence[str], found: Mapping[str, Mapping[str, list[Values]]], plan: Plan, seed: int
) -> list[dict[str, Any]]:
    rows = []
    for benchmark, by_name in found.items():
        for first, second in combinations(names, 2):
            both = by_name[first], by_name[second]
            a, b = (_worth(runs) for runs in both)
            if not a.keys() & b.keys():
                raise PosttrainError(f"compare: {first} and {second} have no graded problem of {benchmark} in common")
            measured = paired(a, b, all(_single(runs) for runs in both), seed)
            named = {"first": first, "second": second, "benchmark": benchmark}
            rows.append((named, measured, len(a.keys() ^ b.keys())))
    adjusted = holm([measured.p for _, measured, _ in rows])
    out = []
    for (named, measured, apart), p in zip(rows, adjusted, strict=True):
        needed = problems_needed(measured, plan.level / len(rows), plan.power, plan.smallest)
        add = None if needed is None else max(0, needed - measured.problems)
        more = {"p_holm": p, "left_out": apart, "problems_needed": needed, "problems_to_add": add}
        out.append({**named, **asdict(measured), **more})
    return json.loads(json.dumps(out))


def _seeds(
    systems: Sequence[System], found: Mapping[str, Mapping[str, list[Values]]], plan: Plan, seed: int
) -> dict[str, Any]:
    """What several runs of each system say of recipes; nothing where a system has one run."""
    counts = {system.name: {name: len(runs) for name, runs in system.runs.items()} for system in systems}
    for name, by_benchmark in counts.items():
        if len(set(by_benchmark.values())) > 1:
            said = ", ".join(f"{count} of {benchmark}" for benchmark, count in by_benchmark.items())
            raise PosttrainError(f"compare: {name} has {said}; give every run's results on each benchmark")
    if any(count < 2 for by_benchmark in counts.values() for count in by_benchmark.values()):
        return {"seeds": [], "plan": asdict(plan)}
    scores: dict[str, Scores] = {
        s.name: [[sum(r.by_problem.values()) / len(r.by_problem) for r in rows[s.name]] for rows in found.values()]
        for s in systems
    }
    named = list(combinations(scores, 2))
    pairs = [(scores[a], scores[b]) for a, b in named]
    level = plan.level / len(pairs)
    rows = []
    for (first, second), (a, b), decision in zip(named, pairs, decide(pairs, plan, seed), strict=True):
        row = {
            "first": first,
            "second": second,
            "runs": [len(a[0]), len(b[0])],
            "interquartile": [asdict(interquartile(s, seed)) for s in (a, b)],
            "difference": asdict(difference(a, b, seed)),
            "improvement": asdict(improvement(a, b, seed)),
            "decision": {"first": f"{first} is better", "second": f"{second} is better"}.get(
                decision.verdict, decision.verdict
            ),
            "decided": decision.verdict != "undecided",
            "looks": decision.looks,
            "add": decision.add,
            "seeds_needed": seeds_needed(a, b, level, plan),
        }
        rows.append(row)
    return {"seeds": rows, "plan": asdict(plan)}


def _notes(systems: Sequence[System], benchmark: str) -> list[str]:
    first = systems[0].runs[benchmark][0]
    notes = []
    for system in systems:
        runs = system.runs[benchmark]
        for run in runs:
            other = sum(item.prompt != first.items[key].prompt for key, item in run.items.items())
            if other:
                notes.append(f"{run.path} asks {other} of {len(run.items)} problems in other words than {first.path}")
            for name in HEADER:
                if run.results.header.get(name) != first.results.header.get(name):
                    notes.append(f"{run.path} and {first.path} differ in {name}: the difference may be of that")
        for a, b in combinations(runs, 2):
            if all(
                [s.completion for s in a.items[k].samples] == [s.completion for s in b.items[k].samples]
                for k in a.items
            ):
                notes.append(f"{a.path} and {b.path} hold the same responses: they are one run")
    return notes


def _few_seeds(systems: Sequence[System]) -> list[str]:
    counts = {system.name: max(map(len, system.runs.values())) for system in systems}
    few = [f"{name} has {count}" for name, count in counts.items() if 1 < count < FEW_SEEDS]
    return [f"{', '.join(few)} seeds: {TOO_NARROW}"] if few else []


def render(found: Mapping[str, Any]) -> RenderableType:
    """What `compare` found, as tables."""
    parts: list[RenderableType] = [_systems_table(found), _pairs_table(found)]
    for row in found["pairs"] if len(found["pairs"]) <= SHOWN else ():
        for word in ("won", "lost"):
            names = row[word]
            if names:
                more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
                parts.append(escape(f"{row['second']} {word} against {row['first']}: {', '.join(names[:SHOWN])}{more}"))
    if found["seeds"]:
        parts.append(_seeds_table(found))
    return Group(*parts, *(escape(f"note: {note}") for note in found["notes"]))


def _systems_table(found: Mapping[str, Any]) -> Table:
    table = Table("system", "benchmark", f"{escape(found['metric'])} [95 %]", "runs", "problems", "ungraded")
    for row in found["systems"]:
        mean = _interval(row["mean"], row["low"], row["high"])
        cells = (row["name"], row["benchmark"], mean, len(row["runs"]), row["problems"], row["ungraded"])
        table.add_row(*(escape(str(cell)) for cell in cells))
    return table


def _pairs_table(found: Mapping[str, Any]) -> Table:
    tests = ", ".join(dict.fromkeys(row["test"] for row in found["pairs"]))
    several = len({row["benchmark"] for row in found["pairs"]}) > 1
    title = f"paired by problem; p: {tests}; adjusted: Holm"
    names = ("difference", "of means [95 %]", "won:lost:tied", "p", "adjusted", _power(found["plan"]))
    table = Table(*names, title=title)
    for row in found["pairs"]:
        add, needed = row["problems_to_add"], row["problems_needed"]
        apart = f", {row['left_out']} left out" if row["left_out"] else ""
        on = f" on {row['benchmark']}" if several else ""
        cells = (
            f"{row['second']} - {row['first']}{on}",
            _interval(row["difference"], row["low"], row["high"], "+"),
            ":".join(str(len(row[word])) for word in ("won", "lost", "tied")) + apart,
            f"{row['p']:.3g}",
            f"{row['p_holm']:.3g}",
            "no difference seen" if needed is None else _more(add, "problem"),
        )
        table.add_row(*map(escape, cells))
    return table


def _seeds_table(found: Mapping[str, Any]) -> Table:
    plan = found["plan"]
    title = f"over seeds; the test looks after every {plan['per_look']} of each, {plan['looks']} times at most"
    names = (
        "difference",
        "seeds",
        "of interquartile means [95 %]",
        "P(more) [95 %]",
        "sequential test",
        _power(plan),
    )
    table = Table(*names, title=title)
    for row in found["seeds"]:
        needed = row["seeds_needed"]
        add = None if needed is None else max(0, needed - min(row["runs"]))
        cells = (
            f"{row['second']} - {row['first']}",
            " and ".join(map(str, reversed(row["runs"]))),
            _interval(**row["difference"], sign="+"),
            _interval(**row["improvement"]),
            row["decision"]
            + ("" if row["decided"] else f": add {row['add']}, to {min(row['runs']) + row['add']} of each"),
            "no difference seen" if add is None else _more(add, "seed"),
        )
        table.add_row(*map(escape, cells))
    return table


def _power(plan: Mapping[str, Any]) -> str:
    """Heads the column of how many more would do."""
    sought = "" if plan["smallest"] is None else f", to find {plan['smallest']:g}"
    return f"for {plan['power']:.0%} power{sought}".replace("%", " %")


def _more(count: int, what: str) -> str:
    return f"enough {what}s" if not count else f"add {count} {what}" + ("s" if count > 1 else "")


def _interval(value: float, low: float | None, high: float | None, sign: str = "") -> str:
    around = "" if low is None or high is None else f" [{low:{sign}.3f}, {high:{sign}.3f}]"
    return f"{value:{sign}.3f}{around}"
