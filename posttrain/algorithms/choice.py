"""How a recipe's choice becomes a row: cells and parameters replaced, every mistake named. Imports no torch."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from posttrain.algorithms.catalogue import CATALOGUE, cell
from posttrain.algorithms.cells import Parameter
from posttrain.algorithms.row import Algorithm
from posttrain.algorithms.table import ALGORITHMS
from posttrain.errors import RecipeError


def choose(name: str, overrides: Mapping[str, Any]) -> Algorithm:
    """The row a recipe asks for, its cells and their parameters replaced as it says.

    An override is a column (`reduction: token_mean`) or a parameter of one of the row's cells (`clip_high: 0.28`).
    Raises RecipeError with every mistake: unknown row, column, kind or parameter, values that would be wrong, and
    cells that contradict one another.
    """
    if name not in ALGORITHMS:
        near = difflib.get_close_matches(name, ALGORITHMS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the table has {', '.join(ALGORITHMS)}"
        raise RecipeError([f"algorithm.name: unknown algorithm {name!r}; {hint}"])
    chosen, mistakes = ALGORITHMS[name], []
    for column in [key for key in overrides if key in CATALOGUE]:
        kind = overrides[column]
        if isinstance(kind, str) and kind in CATALOGUE[column]:
            chosen = chosen.replaced(cell(column, kind))
        else:
            mistakes.append(f"algorithm.{column}: {kind!r} is not one of {', '.join(CATALOGUE[column])}")
    for key in [key for key in overrides if key not in CATALOGUE]:
        owners = [c for c in chosen.cells.values() if key in c.entry.parameters]
        if not owners:
            mistakes.append(_unknown(key, chosen, overrides[key]))
        for owner in owners:
            wrong = _wrong_value(owner.entry.parameters[key], overrides[key])
            refused = owner.entry.refused.get((key, str(overrides[key])))
            if wrong or refused:
                mistakes.append(f"algorithm.{key}: {wrong or refused} (found {overrides[key]!r})")
                break
            chosen = chosen.replaced(replace(owner, values={**owner.values, key: overrides[key]}))
    mistakes += contradictions(chosen)
    if mistakes:
        raise RecipeError(mistakes)
    return chosen


def contradictions(algorithm: Algorithm) -> list[str]:
    """What is wrong with a row's cells taken together, each with a way out."""
    found = []
    objective, sets = algorithm.objective, algorithm.objective.entry.level == "set"
    if sets != (algorithm.reduction.entry.level == "set"):
        way = "group_mean" if sets else ", ".join(k for k, e in CATALOGUE["reduction"].items() if e.level != "set")
        found.append(
            f"algorithm.reduction: {algorithm.reduction.kind}, but objective: {objective.kind} makes a loss for each "
            f"{'group' if sets else 'token'}; use reduction: {way}"
        )
    if sets and algorithm.ratio.kind not in ("sequence", "sequence_sum"):
        found.append(
            f"algorithm.ratio: {algorithm.ratio.kind}, but objective: {objective.kind} compares whole sequences; use "
            "ratio: sequence_sum, or sequence for log-ratios by length"
        )
    if objective.kind in ("binary_tv", "binary_kl", "bellman") and algorithm.ratio.kind != "token":
        found.append(
            f"algorithm.ratio: {algorithm.ratio.kind}, but objective: {objective.kind} reads the probability of each "
            "token; use ratio: token"
        )
    if sets and algorithm.correction.kind != "none":
        found.append(
            f"algorithm.correction: {algorithm.correction.kind} weighs tokens, but objective: {objective.kind} needs "
            "no importance weights; use correction: none"
        )
    if sets and (algorithm.credit.kind != "score" or algorithm.keep.kind != "all"):
        found.append(
            f"algorithm.credit: {algorithm.credit.kind}, keep: {algorithm.keep.kind}, but objective: {objective.kind} "
            "compares the scores of whole groups itself; use credit: score and keep: all"
        )
    if algorithm.needs.critic != (algorithm.critic.kind != "none"):
        asker = next((c for c in algorithm.cells.values() if "critic" in c.entry.asks), algorithm.credit)
        way = "squared, hl_gauss or frozen" if algorithm.needs.critic else "none"
        found.append(
            f"algorithm.critic: {algorithm.critic.kind}, but {asker.column}: {asker.kind} "
            f"{'needs' if algorithm.needs.critic else 'reads no'} values; use critic: {way}"
        )
    if algorithm.anchor.kind == "behaviour" and algorithm.correction.kind != "none":
        found.append(
            f"algorithm.correction: {algorithm.correction.kind} would weigh the gap to the engine a second time beside "
            "anchor: behaviour; use correction: none"
        )
    if algorithm.trust.kind in ("penalty", "fixup") and algorithm.anchor.kind != "previous":
        found.append(f"algorithm.trust: {algorithm.trust.kind} bounds KL(old || new), so it needs anchor: previous")
    return found + _credit_contradictions(algorithm) + _bounds(algorithm)


def _credit_contradictions(algorithm: Algorithm) -> list[str]:
    """Cells before the loss that would do nothing, or the same thing twice."""
    found, credit = [], algorithm.credit
    if credit.kind == "v_trace" and algorithm.correction.kind != "none":
        found.append(
            f"algorithm.correction: {algorithm.correction.kind} would weigh the gap to the engine a second time beside "
            "credit: v_trace; use correction: none"
        )
    if algorithm.truncated.kind == "bootstrap" and "critic" not in credit.entry.asks:
        found.append(f"algorithm.truncated: bootstrap, but credit: {credit.kind} reads no values; use credit: gae")
    if algorithm.whitening.kind != "none" and algorithm.objective.entry.level == "set":
        found.append(
            f"algorithm.whitening: {algorithm.whitening.kind}, but objective: {algorithm.objective.kind} reads scores, "
            "not advantages; use whitening: none"
        )
    if algorithm.needs.parts:
        plain = {"shaping": "none", "scaling": "none", "kl": "none", "truncated": "penalise"}
        for column, kind in plain.items():
            present = getattr(algorithm, column).kind
            if (present == kind) if kind == "penalise" else (present not in (kind, "in_loss")):
                found.append(
                    f"algorithm.{column}: {present} changes the score, but credit: {credit.kind} reads each grader's "
                    f"own; make it a grader, or use credit: group_norm"
                )
    if "greedy" in credit.entry.takes and algorithm.scaling.kind != "none":
        found.append(
            f"algorithm.scaling: {algorithm.scaling.kind} would scale the responses but not the greedy one they are "
            "held against; use scaling: none"
        )
    return found


def _bounds(algorithm: Algorithm) -> list[str]:
    """Two ends of a range must be in order."""
    found = []
    for settings in (c.settings for c in algorithm.cells.values()):
        for name in ("value", "importance", "geometric", "cov"):
            low, high = settings.get(f"{name}_low"), settings.get(f"{name}_high")
            if low is not None and high is not None and low >= high:
                found.append(f"algorithm.{name}_low: {low} is not below algorithm.{name}_high: {high}")
    return found


def _wrong_value(parameter: Parameter, value: Any) -> str | None:
    if parameter.choices:
        return None if value in parameter.choices else f"must be one of {', '.join(parameter.choices)}"
    if value is None:
        return None if parameter.optional else "must be a number"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "must be a number"
    if isinstance(parameter.default, int) and not isinstance(value, int):
        return "must be a whole number"
    if not math.isfinite(value):
        return "must be finite"
    if parameter.least is not None and value < parameter.least:
        return f"must be at least {parameter.least:g}"
    if parameter.low is not None and value <= parameter.low:
        return f"must be greater than {parameter.low:g}"
    return f"must be at most {parameter.high:g}" if parameter.high is not None and value > parameter.high else None


def _unknown(key: str, chosen: Algorithm, value: Any) -> str:
    """Say whose parameter an unknown key would be, or which key is near."""
    for column, kinds in CATALOGUE.items():
        for kind, entry in kinds.items():
            if key in entry.parameters:
                return (
                    f"algorithm.{key}: belongs to {column}: {kind}, but {chosen.name} has "
                    f"{column}: {getattr(chosen, column).kind}; set algorithm.{column}: {kind} as well, or leave it out"
                )
    valid = [*CATALOGUE, *(p for c in chosen.cells.values() for p in c.entry.parameters)]
    near = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"valid keys: name, {', '.join(valid)}"
    return f"algorithm.{key}: unknown key (value {value!r}); {hint}"
