"""Systems to compare: result files under a name, brought to the same problems in the same order."""

from __future__ import annotations

import glob
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from posttrain.errors import PosttrainError
from posttrain.metrics.estimates import majority_at_k, pass_at_k
from posttrain.metrics.results import Item, Results, Sampled, read, result_steps, results_path

OF_K = re.compile(r"(pass|maj)(?:@|_at_)([1-9]\d*)")
ABOUT: Mapping[str, Callable[[Sampled], float]] = {
    "length_mean": lambda response: float(response.length),
    "truncated_fraction": lambda response: float(response.truncated),
    "no_answer": lambda response: float(response.unanswered),
}
"""Metrics of a response, graded or not, by the names that an evaluation's figures have."""
SHOWN = 5
NAMED = re.compile(r"([^/=]+)=(.+)", re.DOTALL)

Problem = tuple[str, int]
"""Digest of a row, and which of the rows that are equal to it."""


@dataclass(frozen=True)
class Measured:
    """One result file."""

    path: Path
    results: Results
    items: Mapping[Problem, Item]

    @property
    def benchmark(self) -> str:
        """The source of its problems, as their ids say."""
        first = next(iter(self.items.values())).problem
        return first.rpartition("/")[0] or first


@dataclass(frozen=True)
class System:
    """One model or recipe: the runs of each benchmark, in the order in which they were given."""

    name: str
    runs: dict[str, list[Measured]] = field(default_factory=dict)

    @property
    def all_runs(self) -> list[Measured]:
        return [run for runs in self.runs.values() for run in runs]


@dataclass(frozen=True, slots=True)
class Values:
    """What each problem is worth in one run, by id; problems without a graded response are left out."""

    by_problem: dict[str, float]
    ungraded: int
    """Responses without a score, left out."""
    single: bool
    """Each value is that of one response."""


def gather(arguments: Sequence[str | Path]) -> list[System]:
    """The systems that arguments name: a result file, a run folder (its newest evaluation), or NAME=path,path,... for
    several runs of one recipe, where a path may have wildcards.

    Files of one system on the same problems are its seeds, on others further benchmarks. A problem is its row, so that
    systems may ask it in other words. Raises PosttrainError for a path without results, a file given twice to one
    system, fewer than two systems, and systems that were not measured on the same problems: naming them.
    """
    systems: list[System] = []
    for argument in arguments:
        name, files = _named(str(argument))
        if any(system.name == name for system in systems):
            name = str(argument)
        if any(system.name == name for system in systems) or argument in arguments[: len(systems)]:
            raise PosttrainError(f"compare: {name} is given twice; give each system its own name: NAME=path,path")
        systems.append(System(name))
        for path in files:
            _put(_measured(path), systems)
    if len(systems) < 2:
        raise PosttrainError("compare: needs two systems or more, as in posttrain compare runs/a runs/b")
    first = systems[0]
    for system in systems:
        if first.runs.keys() != system.runs.keys():
            raise PosttrainError(
                f"compare: {first.name} was measured on {', '.join(first.runs)}, {system.name} on "
                f"{', '.join(system.runs)}; give the results of the same benchmarks for each"
            )
    return systems


def values(run: Measured, order: Mapping[Problem, str], metric: str) -> Values:
    """What each problem of a run is worth by a metric: accuracy, greedy, pass_at_K or maj_at_K (pass@K, maj@K),
    length_mean, truncated_fraction, no_answer, or a grader's name. All but greedy are of the samples where there are
    any. `order` gives the ids by which problems are called.

    Raises PosttrainError where a file does not have the metric.
    """
    found: dict[str, float] = {}
    ungraded, counts = 0, set()
    for problem, name in order.items():
        item = run.items[problem]
        responses = list(item.sampled or item.samples)
        if metric == "greedy":
            responses = [item.greedy] if item.greedy else []
        if not responses:
            raise PosttrainError(f"{run.path}: {item.problem} has no answer for {metric}; {_what_there_is(run)}")
        graded = [(r, score) for r in responses if (score := _value(r, metric)) is not None]
        ungraded += len(responses) - len(graded)
        counts.add(len(responses))
        worth = _worth(graded, len(responses), metric, run.path)
        if worth is not None:
            found[name] = worth
    if not found:
        raise PosttrainError(f"{run.path}: no response was graded for {metric}; {_what_there_is(run)}")
    return Values(found, ungraded, counts == {1})


def default_metric(systems: Sequence[System]) -> str:
    """Accuracy over samples where every file has samples, else greedy accuracy. Raises PosttrainError for files of
    which some have the one and some the other only."""
    runs = [run for system in systems for run in system.all_runs]
    if all(item.sampled for run in runs for item in run.items.values()):
        return "accuracy"
    lacking = next((r for r in runs if any(item.greedy is None for item in r.items.values())), None)
    if lacking is None:
        return "greedy"
    other = next(run for run in runs if not all(item.sampled for item in run.items.values()))
    raise PosttrainError(
        f"compare: {lacking.path} has no greedy answers and {other.path} no sampled ones; evaluate both the same way"
    )


def _named(argument: str) -> tuple[str, list[Path]]:
    match = None if Path(argument).exists() else NAMED.fullmatch(argument)
    if match is None:
        path = Path(argument)
        return path.stem if path.suffix == ".jsonl" else path.resolve().name, [path]
    files: list[Path] = []
    for part in filter(None, match[2].split(",")):
        files += [Path(part)] if Path(part).exists() else [Path(p) for p in sorted(glob.glob(part))] or [Path(part)]
    if not files:
        raise PosttrainError(f"compare: {argument} names no file; write NAME=path,path")
    return match[1], files


def _measured(path: Path) -> Measured:
    if path.is_dir():
        steps = result_steps(path)
        if not steps:
            raise PosttrainError(f"{path}: no results in its folder evaluations; run posttrain evaluate {path}")
        path = results_path(path, steps[-1])
    results = read(path)
    if not results.items:
        raise PosttrainError(f"{path}: no problems; evaluate again")
    items: dict[Problem, Item] = {}
    for item in results.items:
        row = json.dumps(item.columns, sort_keys=True) if item.columns else item.prompt
        digest, copy = hashlib.sha256(row.encode("utf-8", "backslashreplace")).hexdigest(), 0
        while (digest, copy) in items:
            copy += 1
        items[digest, copy] = item
    return Measured(path, results, items)


def _put(run: Measured, systems: Sequence[System]) -> None:
    """Add a file to the last system, under the benchmark whose problems it has."""
    if any(other.path.resolve() == run.path.resolve() for other in systems[-1].all_runs):
        raise PosttrainError(f"compare: {systems[-1].name} has {run.path} twice; a run counts once")
    known = {name: runs[0] for system in reversed(systems) for name, runs in system.runs.items()}
    same = next((name for name, other in known.items() if other.items.keys() == run.items.keys()), None)
    for other in known.values() if same is None else ():
        if other.benchmark == run.benchmark or other.items.keys() & run.items.keys():
            raise PosttrainError(f"compare: {_unlike(other, run)}; evaluate both on the same rows of data.eval")
    systems[-1].runs.setdefault(same or run.benchmark, []).append(run)


def _unlike(a: Measured, b: Measured) -> str:
    """What two files' problems differ in."""
    first = {item.problem: item.columns for key, item in a.items.items() if key not in b.items}
    second = {item.problem: item.columns for key, item in b.items.items() if key not in a.items}
    said = []
    for name in (changed := [name for name in first if name in second])[:SHOWN]:
        columns = {c for c in {**first[name], **second[name]} if first[name].get(c) != second[name].get(c)}
        said.append(f"{name} ({', '.join(sorted(columns)) or 'the row stands twice'})")
    parts = [f"{len(changed)} have other columns: {_listed(said, len(changed))}"] if changed else []
    for run, rows in ((a, first), (b, second)):
        only = [name for name in rows if name not in changed]
        if only:
            parts.append(f"{len(only)} only in {run.path}: {_listed(only[:SHOWN], len(only))}")
    return f"{a.path} ({len(a.items)} problems) and {b.path} ({len(b.items)}) differ in problems: {'; '.join(parts)}"


def _listed(shown: Sequence[str], count: int) -> str:
    return ", ".join(shown) + (", ..." if count > len(shown) else "")


def _value(response: Sampled, metric: str) -> float | None:
    if metric in ("accuracy", "greedy") or OF_K.fullmatch(metric):
        return response.score
    return ABOUT[metric](response) if metric in ABOUT else response.parts.get(metric)


def _worth(graded: Sequence[tuple[Sampled, float]], responses: int, metric: str, path: Path) -> float | None:
    """A problem's value by its graded responses; None where these are too few for it."""
    scores, of_k = [score for _, score in graded], OF_K.fullmatch(metric)
    if of_k is None:
        return math.fsum(scores) / len(scores) if scores else None
    k = int(of_k[2])
    if responses < k:
        raise PosttrainError(f"{path}: {metric} of problems with {responses} samples; raise evaluation.samples")
    if len(scores) < k:
        return None
    if of_k[1] == "maj":
        return majority_at_k([response.answer for response, _ in graded], scores, k)
    if not set(scores) <= {0.0, 1.0}:
        raise PosttrainError(f"{path}: {metric} is of verdicts that are 0 or 1; compare accuracy")
    return pass_at_k(len(scores), scores.count(1.0), k)


def _what_there_is(run: Measured) -> str:
    first = next(iter(run.items.values()))
    names = [*(["accuracy", "pass_at_K", "maj_at_K"] if first.sampled else []), *(["greedy"] if first.greedy else [])]
    parts = sorted({part for sample in first.samples for part in sample.parts})
    return f"there are {', '.join([*names, *ABOUT, *parts])}"
