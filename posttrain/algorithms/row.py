"""A row of the table: one cell for each column, and what these ask of the run. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import cached_property
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
    collision: bool
    """Log-probabilities that two draws are the same token."""
    given: bool
    """Responses that come with the data."""
    sampler: bool
    """An engine that responds while the run lasts."""
    opponent: bool
    """Responses of another policy."""
    refresh: bool
    """A reference that becomes the policy from time to time."""
    mismatched: bool
    """The log-ratio of other prompts' responses, as a reference point."""
    shift: bool
    """The mean log-ratio of the run so far, as a reference point."""
    pairs: bool
    """Responses to a prompt of which one is better than another."""
    margins: bool
    """Scores, or margins, that say by how much."""
    ties: bool
    """Pairs of which neither is better may stand among the others."""
    steps: bool
    """Responses cut into labelled steps."""
    in_context: bool
    """Each response of a pair read with the other one before it."""
    conditioning: bool
    """Texts before the question that say what the answer is worth."""
    scorer: bool
    """What is trained is a reward model."""
    states: bool
    """The reward model's last hidden states."""


ASKED = tuple(
    f.name for f in fields(Needs) if f.name not in ("min_group", "reference", "behaviour", "previous", "scorer")
)
"""Needs that are true where any cell of the row asks for them."""


@dataclass(frozen=True)
class Algorithm:
    """One row. Every column holds a cell of the catalogue."""

    name: str
    paper: str
    source: Cell
    opponent: Cell
    selection: Cell
    shaping: Cell
    truncated: Cell
    scaling: Cell
    credit: Cell
    whitening: Cell
    keep: Cell
    anchor: Cell
    ratio: Cell
    divergence: Cell
    objective: Cell
    weighting: Cell
    correction: Cell
    reduction: Cell
    cloning: Cell
    contrast: Cell
    kl: Cell
    entropy: Cell
    critic: Cell
    trust: Cell

    @cached_property
    def cells(self) -> dict[str, Cell]:
        return {column: getattr(self, column) for column in CATALOGUE}

    @cached_property
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
            scorer=self.objective.entry.level in ("scorer", "scorer_token"),
            **{name: name in asked for name in ASKED},
        )

    @property
    def whole(self) -> bool:
        """Whether the objective sees all tokens of an update at once, so that its gradient needs two passes."""
        return self.objective.entry.level not in ("token", "scorer_token")

    @property
    def silent_at_zero(self) -> bool:
        """Whether a token with an advantage of 0 has no gradient: the only term is a multiple of advantages."""
        terms = self.kl.kind == "in_loss", self.entropy.kind != "none", self.critic.kind != "none"
        multiple = self.objective.entry.level in ("token", "step") and not self.objective.entry.teaches_at_zero
        return multiple and not any(terms) and self.trust.kind not in ("penalty", "fixup")

    @property
    def learns_values(self) -> bool:
        """Whether the value function is trained towards returns."""
        return self.critic.entry.function is not None

    @property
    def frozen_values(self) -> bool:
        """Whether it is one that was trained before, and stays as it is."""
        return self.critic.kind in ("frozen", "frozen_probability")

    def replaced(self, new: Cell) -> Algorithm:
        return Algorithm(self.name, self.paper, **{**self.cells, new.column: new})

    def as_json(self) -> dict[str, Any]:
        """name, paper, needs and cells, as plain values."""
        cells = {column: {"kind": c.kind, **c.settings} for column, c in self.cells.items()}
        return {"name": self.name, "paper": self.paper, "needs": dict(vars(self.needs)), "cells": cells}


DEFAULTS = {
    "source": "sampled",
    "opponent": "none",
    "selection": "all",
    "shaping": "none",
    "truncated": "train",
    "scaling": "none",
    "whitening": "none",
    "keep": "all",
    "anchor": "previous",
    "ratio": "token",
    "divergence": "reverse_kl",
    "weighting": "none",
    "cloning": "none",
    "contrast": "none",
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
