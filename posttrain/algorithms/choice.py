"""How a recipe's choice becomes a row: cells and parameters replaced, every mistake named. Imports no torch."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from posttrain.algorithms.catalogue import CATALOGUE, cell
from posttrain.algorithms.cells import Parameter
from posttrain.algorithms.contradictions import contradictions
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
