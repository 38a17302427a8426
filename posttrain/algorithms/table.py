"""The table of algorithms, and how a recipe's choice becomes a row of it. Imports no torch.

An algorithm's name is read here and nowhere else. `needs` is the one source for what a row asks of the run.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from posttrain.algorithms.cells import CATALOGUE, Cell, Parameter
from posttrain.errors import RecipeError


@dataclass(frozen=True)
class Needs:
    """What a row asks of the rest of the run."""

    min_group: int
    """Smallest legal group, and the smallest number of graded responses that can be compared."""
    reference: bool
    """Log-probabilities of the reference policy."""
    behaviour: bool
    """Log-probabilities of the engine that sampled."""
    previous: bool
    """Log-probabilities from before the step's first update, wherever several updates share a step's roll-outs."""
    critic: bool = False
    scores: bool = True


@dataclass(frozen=True)
class Algorithm:
    """One row. Every column holds a cell of the catalogue."""

    name: str
    paper: str
    credit: Cell
    ratio: Cell
    objective: Cell
    reduction: Cell
    correction: Cell
    kl: Cell
    shaping: Cell
    selection: Cell
    truncated: Cell

    @property
    def cells(self) -> dict[str, Cell]:
        return {column: getattr(self, column) for column in CATALOGUE}

    @property
    def needs(self) -> Needs:
        entries = [cell.entry for cell in self.cells.values()]
        return Needs(
            min_group=max(e.min_group for e in entries),
            reference=any(e.reference for e in entries),
            behaviour=any(e.behaviour for e in entries),
            previous=self.objective.kind != "reinforce" or self.correction.entry.behaviour,
        )

    def as_json(self) -> dict[str, Any]:
        """name, paper, needs and cells, as plain values."""
        cells = {c: {"kind": cell.kind, **cell.settings} for c, cell in self.cells.items()}
        return {"name": self.name, "paper": self.paper, "needs": dict(vars(self.needs)), "cells": cells}


DEFAULTS = {
    "ratio": "token",
    "correction": "truncated_importance",
    "kl": "none",
    "shaping": "none",
    "selection": "all",
    "truncated": "train",
}


def row(name: str, paper: str, /, **cells: str | tuple[str, dict[str, Any]]) -> Algorithm:
    """A row from kinds, or (kind, values) pairs; columns left out take DEFAULTS."""
    made = {}
    for column in CATALOGUE:
        kind = cells.get(column, DEFAULTS.get(column, ""))
        made[column] = Cell(column, kind) if isinstance(kind, str) else Cell(column, *kind)
    return Algorithm(name, paper, **made)


ALGORITHMS: dict[str, Algorithm] = {
    entry.name: entry
    for entry in (
        row("reinforce", "10.1007/BF00992696", credit="group_mean", objective="reinforce", reduction="token_mean"),
        row("rloo", "2402.14740", credit="leave_one_out", objective="reinforce", reduction="sequence_sum"),
        row("grpo", "2402.03300", credit="group_norm", objective="clip", reduction="sequence_mean"),
        row("dr_grpo", "2503.20783", credit="group_mean", objective="clip", reduction="constant"),
        row(
            "dapo",
            "2503.14476",
            credit="group_norm",
            objective=("clip", {"clip_high": 0.28}),
            reduction="token_mean",
            shaping="overlong",
            selection="dynamic",
        ),
        row(
            "gspo",
            "2507.18071",
            credit="group_norm",
            ratio="sequence",
            objective=("clip", {"clip_low": 3e-4, "clip_high": 4e-4}),
            reduction="sequence_mean",
        ),
    )
}


def choose(name: str, overrides: Mapping[str, Any]) -> Algorithm:
    """The row a recipe asks for, its cells and their parameters replaced as it says.

    An override is a column (`reduction: token_mean`) or a parameter of one of the row's cells (`clip_high: 0.28`).
    Raises RecipeError with every mistake: unknown row, column, kind or parameter, and values that would be wrong.
    """
    if name not in ALGORITHMS:
        near = difflib.get_close_matches(name, ALGORITHMS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the table has {', '.join(ALGORITHMS)}"
        raise RecipeError([f"algorithm.name: unknown algorithm {name!r}; {hint}"])
    chosen, mistakes = ALGORITHMS[name], []
    for column in [key for key in overrides if key in CATALOGUE]:
        kind = overrides[column]
        if kind in CATALOGUE[column]:
            chosen = _with(chosen, Cell(column, kind))
        else:
            mistakes.append(f"algorithm.{column}: {kind!r} is not one of {', '.join(CATALOGUE[column])}")
    for key in [key for key in overrides if key not in CATALOGUE]:
        owner = next((cell for cell in chosen.cells.values() if key in cell.entry.parameters), None)
        if owner is None:
            mistakes.append(_unknown(key, chosen, overrides[key]))
            continue
        wrong = _wrong_value(owner.entry.parameters[key], overrides[key])
        refused = owner.entry.refused.get((key, str(overrides[key])))
        if wrong or refused:
            mistakes.append(f"algorithm.{key}: {wrong or refused} (found {overrides[key]!r})")
            continue
        chosen = _with(chosen, replace(owner, values={**owner.values, key: overrides[key]}))
    if mistakes:
        raise RecipeError(mistakes)
    return chosen


def _with(algorithm: Algorithm, cell: Cell) -> Algorithm:
    cells = {**algorithm.cells, cell.column: cell}
    return Algorithm(algorithm.name, algorithm.paper, **cells)


def _wrong_value(parameter: Parameter, value: Any) -> str | None:
    if parameter.choices:
        return None if value in parameter.choices else f"must be one of {', '.join(parameter.choices)}"
    if value is None:
        return None if parameter.optional else "must be a number"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return "must be a number"
    if isinstance(parameter.default, int) and not isinstance(value, int):
        return "must be a whole number"
    return f"must be greater than {parameter.low:g}" if parameter.low is not None and value <= parameter.low else None


def _unknown(key: str, chosen: Algorithm, value: Any) -> str:
    """Say whose parameter an unknown key would be, or which key is near."""
    for column, kinds in CATALOGUE.items():
        for kind, entry in kinds.items():
            if key in entry.parameters:
                return (
                    f"algorithm.{key}: belongs to {column}: {kind}, but {chosen.name} has "
                    f"{column}: {getattr(chosen, column).kind}; set algorithm.{column}: {kind} as well, or leave it out"
                )
    valid = [*CATALOGUE, *(p for cell in chosen.cells.values() for p in cell.entry.parameters)]
    near = difflib.get_close_matches(key, valid, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"valid keys: name, {', '.join(valid)}"
    return f"algorithm.{key}: unknown key (value {value!r}); {hint}"
