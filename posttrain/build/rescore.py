"""Stored responses graded again: by the verifiers that the file names, or by others. No model, and no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from rich.console import Console

from posttrain.build.heading import verifiers, versions
from posttrain.errors import DataError, RecipeError
from posttrain.metrics.figures import figures
from posttrain.metrics.results import Item, Results, Sampled, judged, read, write
from posttrain.recipe import Grading, Reward
from posttrain.recipe.load import apply_overrides
from posttrain.rewards import Grader
from posttrain.types import Prompt, Rollout, Verdict

SHOWN = 10
"""Changed verdicts that are printed."""
notes = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)


def rescore(path: Path, out: Path | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The figures of the responses in the results `path`, graded by the file's own verifiers, or by those of an
    override `rewards=[...]`; `grading.KEY=...` says how they run. Written down only where `out` is given.

    `changed` counts the responses whose score, status or answer is another one now; the first are printed. Raises
    RecipeError for other overrides, and DataError where the file lacks a column that a verifier needs.
    """
    results = read(path)
    rewards, grading = _asked(results, overrides, str(path))
    with Grader(rewards, grading) as grader:
        _require_columns(grader, results, str(path))
        kinds = [_graded(grader, results.items, greedy) for greedy in (False, True)]
        names = [signature.name for signature in grader.signatures]
    items = tuple(
        replace(item, samples=tuple(judged(s, kinds[s.greedy][item.problem].pop(0)) for s in item.samples))
        for item in results.items
    )
    header = {**results.header, "verifiers": verifiers(rewards)}
    # What the responses were drawn with stays.
    header["versions"] = {**header.get("versions", {}), **versions(("posttrain",))}
    best_of = header.get("best_of")
    found = figures(items, int(header.get("seed", 0)), best_of if best_of in names else None)
    if out is not None:
        write(out, Results(header, items))
    changed = _changes(results.items, items)
    written = {} if out is None else {"results": str(out)}
    return {
        "model": header.get("model"),
        "step": header.get("step"),
        **{f"eval/{name}": value for name, value in found.items()},
        "changed": changed,
        **written,
    }


def _asked(results: Results, overrides: Sequence[str], source: str) -> tuple[list[Reward], Grading]:
    own = [{n: v for n, v in stored.items() if n != "version"} for stored in results.header.get("verifiers", [])]
    tree = apply_overrides({"rewards": own, "grading": {}}, overrides)
    unknown = sorted(set(tree) - {"rewards", "grading"})
    if unknown:
        raise RecipeError(
            [f"{unknown[0]}: stored responses can only be graded again; write rewards=[...] or grading.KEY=..."],
            source,
        )
    try:
        rewards = [Reward.model_validate(reward) for reward in tree["rewards"]]
        grading = Grading.model_validate(tree["grading"])
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise RecipeError(
            [f"{error.title.lower()}.{key}: {first['msg']} (found {first['input']!r:.80})"], source
        ) from None
    if not rewards:
        raise RecipeError(["rewards: the file names no verifier; give rewards=[...]"], source)
    return rewards, grading


def _require_columns(grader: Grader, results: Results, source: str) -> None:
    for signature in grader.signatures:
        for item in results.items:
            missing = [name for name in signature.required if name not in item.columns]
            if not missing:
                continue
            left = missing[0] in results.header.get("columns_left_out", [])
            why = "which is no JSON and was left out" if left else f"which has only {', '.join(item.columns)}"
            raise DataError(
                f"{source}: {signature.name} needs the column {missing[0]!r} of {item.problem!r}, {why}; evaluate the "
                "model again, or name another verifier"
            )


def _graded(grader: Grader, items: Sequence[Item], greedy: bool) -> dict[str, list[Verdict]]:
    """Verdicts by problem, groups as they were when they were drawn."""
    groups = []
    for item in items:
        prompt = Prompt(item.problem, item.prompt_tokens, item.prompt, item.columns, item.problem.rpartition("/")[0])
        groups.append((prompt, [_rollout(item, s) for s in item.samples if s.greedy == greedy]))
    verdicts = grader.grade(groups) if any(rollouts for _, rollouts in groups) else [() for _ in groups]
    return {item.problem: list(of) for item, of in zip(items, verdicts, strict=True)}


def _rollout(item: Item, sampled: Sampled) -> Rollout:
    before = len(item.prompt_tokens)
    return Rollout(
        tokens=item.prompt_tokens + sampled.tokens,
        mask=(False,) * before + (True,) * len(sampled.tokens),
        text=sampled.completion,
        finish_reason="length" if sampled.truncated else "stop",
        seed=sampled.seed,
    )


def _changes(before: Sequence[Item], after: Sequence[Item]) -> int:
    """How many verdicts are others now; the first of them are printed."""
    count = 0
    for old, new in zip(before, after, strict=True):
        for k, (was, now) in enumerate(zip(old.samples, new.samples, strict=True)):
            if (was.score, was.status, was.answer) == (now.score, now.status, now.answer):
                continue
            count += 1
            if count <= SHOWN:
                notes.print(
                    f"{old.problem}, response {k}: {_said(was)} -> {_said(now)}"
                    + (f" ({now.reason})" * bool(now.reason))
                )
    total = sum(len(item.samples) for item in after)
    notes.print(f"{count} of {total} verdicts changed" + (f", {SHOWN} shown" if count > SHOWN else ""))
    return count


def _said(sampled: Sampled) -> str:
    score = "not graded" if sampled.score is None else f"{sampled.score:g}"
    return (
        score
        + (f" {sampled.status}" if sampled.status != "ok" else "")
        + (f" {sampled.answer!r}" * bool(sampled.answer))
    )
