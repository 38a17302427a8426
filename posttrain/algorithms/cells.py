"""What a cell of the table is: a kind of the catalogue with values for its parameters. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Level = Literal["group", "step", "token", "set", "scorer", "scorer_token"]
"""Credit: from the scores of a `group`, of the whole `step`, or from rewards `token` by token. Objective: a loss for
each `token`, for each token with a view of the whole update (`step`), or for each group as a `set` of sequences. A
`scorer` objective makes a reward model's loss for each group, a `scorer_token` one for each labelled token."""


@dataclass(frozen=True)
class Parameter:
    """A number or word that a recipe may set by its name."""

    default: Any
    low: float | None = None
    """Values must be greater than this."""
    least: float | None = None
    """Values must not be less than this."""
    high: float | None = None
    """Values must not be greater than this."""
    choices: tuple[str, ...] = ()
    optional: bool = False
    """None is legal: no bound, or derived from the recipe."""
    formula: bool = True
    """Handed to the cell's function; otherwise the run itself reads it."""


@dataclass(frozen=True)
class Kind:
    """A cell as the catalogue has it: the formula (module.function under posttrain.objectives), its parameters, and
    what it asks of the run.
    """

    function: str | None
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    about: str = ""
    """One sentence, where no function's docstring says it."""
    level: Level = "token"
    takes: tuple[str, ...] = ()
    """Inputs beside the first ones of its column, by name."""
    asks: frozenset[str] = frozenset()
    """Names of Needs that are true wherever this kind stands."""
    min_group: int | str = 1
    """Smallest legal group, or the parameter that says it."""
    differences: bool = False
    """Whether an objective of groups reads differences of log-ratios only, so that what another divergence makes of
    them may stand in their place.
    """
    teaches_at_zero: bool = False
    """Whether an objective of tokens has a gradient also where the advantage is 0."""
    refused: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """(parameter, value) pairs that would be silently wrong, with the reason."""


def positive(default: float, formula: bool = True) -> Parameter:
    """A number greater than 0."""
    return Parameter(default, low=0.0, formula=formula)


def asks(*needs: str) -> frozenset[str]:
    return frozenset(needs)


@dataclass(frozen=True)
class Cell:
    """One column of one row: a kind of the catalogue with the values of its parameters."""

    column: str
    kind: str
    entry: Kind
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def settings(self) -> dict[str, Any]:
        """Every parameter with its value, defaults included."""
        return {name: self.values.get(name, p.default) for name, p in self.entry.parameters.items()}

    @property
    def min_group(self) -> int:
        least = self.entry.min_group
        return int(self[least]) if isinstance(least, str) else least

    def __getitem__(self, name: str) -> Any:
        return self.settings[name]

    def __str__(self) -> str:
        inside = ", ".join(f"{k}={v}" for k, v in self.settings.items())
        return f"{self.kind}({inside})" if inside else self.kind
