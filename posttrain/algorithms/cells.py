"""The catalogue of cells: what may stand in each column of the table, with its parameters. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Parameter:
    """A number or word that a recipe may set by its name."""

    default: Any
    low: float | None = None
    """Values must be greater than this."""
    choices: tuple[str, ...] = ()
    optional: bool = False
    """None is legal: no bound, or derived from the recipe."""


@dataclass(frozen=True)
class Kind:
    """A cell as the catalogue has it: the formula (module.function under posttrain.objectives) and its parameters."""

    function: str | None
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    min_group: int = 1
    reference: bool = False
    behaviour: bool = False
    refused: Mapping[tuple[str, str], str] = field(default_factory=dict)
    """(parameter, value) pairs that would be silently wrong, with the reason."""


KL = {
    "kl_coefficient": Parameter(0.04, low=0.0),
    "kl_estimator": Parameter("k3", choices=("k1", "k2", "k3")),
}
K1_IN_LOSS = (
    "the expected gradient of k1 as a loss is zero, so it would not hold the policy back; "
    "use kl_estimator: k2 or k3, or kl: in_reward"
)

CATALOGUE: dict[str, dict[str, Kind]] = {
    "credit": {
        "group_mean": Kind("advantages.group_mean", min_group=2),
        "group_norm": Kind("advantages.group_norm", {"std_floor": Parameter(1e-6, low=0.0)}, min_group=2),
        "leave_one_out": Kind("advantages.leave_one_out", min_group=2),
    },
    "ratio": {
        "token": Kind("surrogates.token"),
        "sequence": Kind("surrogates.sequence"),
    },
    "objective": {
        "reinforce": Kind("surrogates.reinforce"),
        "clip": Kind("surrogates.clip", {"clip_low": Parameter(0.2, low=0.0), "clip_high": Parameter(0.2, low=0.0)}),
    },
    "reduction": {
        "token_mean": Kind("reductions.token_mean"),
        "sequence_mean": Kind("reductions.sequence_mean"),
        "sequence_sum": Kind("reductions.sequence_sum"),
        "constant": Kind("reductions.constant", {"constant_length": Parameter(None, low=0.0, optional=True)}),
    },
    "correction": {
        "none": Kind("corrections.none"),
        "truncated_importance": Kind(
            "corrections.truncated_importance", {"importance_cap": Parameter(2.0, low=0.0)}, behaviour=True
        ),
    },
    "kl": {
        "none": Kind(None),
        "in_loss": Kind(None, KL, reference=True, refused={("kl_estimator", "k1"): K1_IN_LOSS}),
        "in_reward": Kind(None, {**KL, "kl_estimator": Parameter("k1", choices=("k1", "k2", "k3"))}, reference=True),
    },
    "shaping": {
        "none": Kind("shaping.none"),
        "overlong": Kind(
            "shaping.overlong",
            {"overlong_buffer": Parameter(0.2, low=0.0), "overlong_penalty": Parameter(1.0, low=0.0)},
        ),
    },
    "selection": {
        "all": Kind(None),
        "dynamic": Kind(None, {"max_rounds": Parameter(10, low=0.0)}, min_group=2),
    },
    "truncated": {
        "train": Kind(None),
        "mask": Kind(None),
    },
}


@dataclass(frozen=True)
class Cell:
    """One column of one row: a kind of the catalogue with the values of its parameters."""

    column: str
    kind: str
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def entry(self) -> Kind:
        return CATALOGUE[self.column][self.kind]

    @property
    def settings(self) -> dict[str, Any]:
        """Every parameter with its value, defaults included."""
        return {name: self.values.get(name, p.default) for name, p in self.entry.parameters.items()}

    def __getitem__(self, name: str) -> Any:
        return self.settings[name]

    def __str__(self) -> str:
        inside = ", ".join(f"{k}={v}" for k, v in self.settings.items())
        return f"{self.kind}({inside})" if inside else self.kind
