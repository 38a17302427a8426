"""The file of an evaluation: every prompt, completion and verdict, and what made them, so that it can be re-scored and
compared without a model. JSON lines: the header first, then one problem a line. No clock times, so that the same
evaluation gives the same bytes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from posttrain.errors import PosttrainError
from posttrain.metrics import durable
from posttrain.types import Verdict

FORMAT = "posttrain results 1"
NAME = re.compile(r"step-(\d{6,})\.jsonl")


@dataclass(frozen=True, slots=True)
class Sampled:
    """One response to a problem, and its verdict."""

    completion: str
    score: float | None
    """None where it could not be graded."""
    status: str
    reason: str
    parts: dict[str, float | None]
    """Each grader's own score by name, where there are several or one has parts."""
    answer: str | None
    """What was taken for the answer: equal answers are equal texts."""
    length: int
    """Tokens of the completion."""
    truncated: bool
    greedy: bool
    """Decoded at temperature 0, beside the samples."""
    tokens: tuple[int, ...]
    """Of the completion."""
    seed: int | None

    @property
    def unanswered(self) -> bool:
        """Whether there is no answer in it; one that nobody could have judged is another matter."""
        return self.status == "unparsable" and self.score is not None


@dataclass(frozen=True, slots=True)
class Item:
    """One problem with its responses: samples in the order they were drawn, then the greedy one where there is one."""

    problem: str
    """Source and row, as in gsm8k_test/17."""
    prompt: str
    """As rendered for the model."""
    columns: dict[str, Any]
    """The data set's row: what verifiers read. Values that JSON cannot hold are left out; see `plain`."""
    samples: tuple[Sampled, ...]
    prompt_tokens: tuple[int, ...] = ()

    @property
    def sampled(self) -> tuple[Sampled, ...]:
        return tuple(sample for sample in self.samples if not sample.greedy)

    @property
    def greedy(self) -> Sampled | None:
        return next((sample for sample in self.samples if sample.greedy), None)


@dataclass(frozen=True, slots=True)
class Results:
    """An evaluation. `header` says what made it: model, step, template, data, sampling, seed, verifiers, versions."""

    header: dict[str, Any]
    items: tuple[Item, ...]


def judged(sampled: Sampled, verdict: Verdict) -> Sampled:
    """The response with this verdict."""
    return replace(
        sampled,
        score=None if verdict.score is None else float(verdict.score),
        status=verdict.status,
        reason=verdict.reason,
        parts={name: None if part is None else float(part) for name, part in verdict.parts.items()},
        answer=verdict.answer,
    )


def results_path(run: Path, step: int) -> Path:
    """Where a run folder keeps the evaluation of a step."""
    return run / "evaluations" / f"step-{step:06d}.jsonl"


def result_steps(run: Path) -> list[int]:
    """The steps whose evaluations a run folder has, ascending."""
    folder = run / "evaluations"
    found = [NAME.fullmatch(path.name) for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(match[1]) for match in found if match)


def write(path: Path, results: Results) -> None:
    """All or nothing. Raises PosttrainError naming a value that JSON cannot hold, before anything is written."""
    lines = list(_lines(results))
    path.parent.mkdir(parents=True, exist_ok=True)
    durable.write_atomically(path, lines)


def read(path: Path) -> Results:
    """Raises PosttrainError where there is no such file, it is none of results, or it is damaged: naming the line."""
    if not path.is_file():
        raise PosttrainError(f"{path}: no such file; results stand in RUN/evaluations/step-NNNNNN.jsonl")
    lines = durable.read_lines(path)
    first = lines[0] if lines else None
    if not isinstance(first, dict) or first.get("format") != FORMAT:
        said = first.get("format") if isinstance(first, dict) else None
        raise PosttrainError(
            f"{path}: {f'of format {said!r}' if said else 'no file of results'}, but {FORMAT!r} is read here; give a "
            "file that posttrain evaluate or a run wrote"
        )
    header = {name: value for name, value in first.items() if name not in ("format", "problems")}
    items = tuple(_item(line, f"{path}, line {number}") for number, line in enumerate(lines[1:], start=2))
    if len(items) != first.get("problems"):
        raise PosttrainError(f"{path}: {len(items)} problems of {first.get('problems')}: it was cut; evaluate again")
    seen: set[str] = set()
    for item in items:
        if item.problem in seen:
            raise PosttrainError(f"{path}: problem {item.problem!r} stands twice; evaluate again")
        seen.add(item.problem)
    return Results(header, items)


def plain(columns: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A row's values as they come back from JSON, and the names of those that would not: dates, bytes, NaN."""
    kept: dict[str, Any] = {}
    refused: list[str] = []
    for name, value in columns.items():
        try:
            kept[str(name)] = json.loads(json.dumps(value, allow_nan=False))
        except (TypeError, ValueError):
            refused.append(str(name))
    return kept, tuple(refused)


def _lines(results: Results) -> Iterator[str]:
    clash = sorted({"format", "problems"} & set(results.header))
    if clash:
        raise PosttrainError(f"results: the header's name {clash[0]} is taken by the file itself")
    first = {"format": FORMAT, "problems": len(results.items), **results.header}
    yield durable.to_json(first, "header of results") + "\n"
    for item in results.items:
        yield durable.to_json(asdict(item), f"results of {item.problem}") + "\n"


def _item(line: Any, where: str) -> Item:
    found = _taken(line, Item, where)
    samples = tuple(_sampled(s, f"{where}, sample {k}") for k, s in enumerate(found["samples"]))
    tokens = tuple(found.get("prompt_tokens", ()))
    return Item(found["problem"], found["prompt"], found["columns"], samples, tokens)


def _sampled(value: Any, where: str) -> Sampled:
    found = _taken(value, Sampled, where)
    score = found["score"]
    if score is not None and not (isinstance(score, int | float) and math.isfinite(score)):
        raise PosttrainError(f"{where}: score is {score!r}, neither a number nor null")
    return Sampled(**{**found, "score": None if score is None else float(score), "tokens": tuple(found["tokens"])})


def _taken(value: Any, kind: type[Item] | type[Sampled], where: str) -> dict[str, Any]:
    """The fields of a dataclass out of a JSON object; others are not read."""
    if not isinstance(value, dict):
        raise PosttrainError(f"{where}: {value!r:.60} where an object is due")
    names = [field.name for field in fields(kind)]
    missing = [name for name in names if name not in value and name != "prompt_tokens"]
    if missing:
        raise PosttrainError(f"{where}: {', '.join(missing)} missing; it was written by another version, or edited")
    return {name: value[name] for name in names if name in value}
