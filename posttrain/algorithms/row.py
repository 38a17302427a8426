"""A row of the table: one cell for each column, and what these ask of the run. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from posttrain.algorithms.catalogue import CATALOGUE, cell
from posttrain.algorithms.cells import Cell


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
    trainer: bool
    """The same, also where a step has one update: credit reads the gap to the engine."""
    critic: bool
    """A value function."""
    greedy: bool
    """One greedy response to each prompt, graded."""
    preference: bool
    """A grader that compares two responses."""
    parts: bool
    """Scores of several graders, one by one."""
    uniform: bool
    """Log-probabilities averaged over the vocabulary."""


@dataclass(frozen=True)
class Algorithm:
    """One row. Every column holds a cell of the catalogue."""

    name: str
    paper: str
    selection: Cell
    shaping: Cell
    truncated: Cell
    scaling: Cell
    credit: Cell
    whitening: Cell
    keep: Cell
    anchor: Cell
    ratio: Cell
    objective: Cell
    correction: Cell
    reduction: Cell
    kl: Cell
    entropy: Cell
    critic: Cell
    trust: Cell

    @property
    def cells(self) -> dict[str, Cell]:
        return {column: getattr(self, column) for column in CATALOGUE}

    @property
    def needs(self) -> Needs:
        asked = frozenset[str]().union(*(c.entry.asks for c in self.cells.values()))
        trust = self.trust.kind != "none"
        return Needs(
            min_group=max(c.min_group for c in self.cells.values()),
            reference="reference" in asked,
            behaviour="behaviour" in asked,
            previous=trust
            or self.correction.kind != "none"
            or (self.anchor.kind == "previous" and "previous" in self.objective.entry.asks),
            **{name: name in asked for name in ("trainer", "critic", "greedy", "preference", "parts", "uniform")},
        )

    @property
    def whole(self) -> bool:
        """Whether the objective sees all tokens of an update at once, so that its gradient needs two passes."""
        return self.objective.entry.level != "token"

    def replaced(self, new: Cell) -> Algorithm:
        return Algorithm(self.name, self.paper, **{**self.cells, new.column: new})

    def as_json(self) -> dict[str, Any]:
        """name, paper, needs and cells, as plain values."""
        cells = {column: {"kind": c.kind, **c.settings} for column, c in self.cells.items()}
        return {"name": self.name, "paper": self.paper, "needs": dict(vars(self.needs)), "cells": cells}


DEFAULTS = {
    "selection": "all",
    "shaping": "none",
    "truncated": "train",
    "scaling": "none",
    "whitening": "none",
    "keep": "all",
    "anchor": "previous",
    "ratio": "token",
    "correction": "truncated_importance",
    "kl": "none",
    "entropy": "none",
    "critic": "none",
    "trust": "none",
}


def row(name: str, paper: str, /, **cells: str | tuple[str, dict[str, Any]]) -> Algorithm:
    """A row from kinds, or (kind, values) pairs; columns left out take DEFAULTS."""
    made = {}
    for column in CATALOGUE:
        kind = cells.get(column, DEFAULTS.get(column, ""))
        made[column] = cell(column, kind) if isinstance(kind, str) else cell(column, kind[0], **kind[1])
    return Algorithm(name, paper, **made)
