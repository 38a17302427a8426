"""What a row carries from step to step: coefficients that adapt, and statistics over the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from posttrain.algorithms.row import Algorithm
from posttrain.metrics import Report


@dataclass
class RowState:
    """Plain numbers, written into every checkpoint. Each is changed by the one place that its name says."""

    kl_coefficient: float | None = None
    entropy_coefficient: float | None = None
    trust_coefficient: float | None = None
    entropy_sought: bool = True
    """Whether the entropy of the last step was low enough for an adaptive bonus to be paid at all."""
    baseline: float | None = None
    """Moving average of scores (credit: from_baseline); None before the first step."""
    spread: float | None = None
    """Moving average of groups' standard deviations (selection: steady_spread)."""
    spread_steps: int = 0
    reward_count: float = 0.0
    """Count, mean and sum of squared differences of all scores so far (scaling: running)."""
    reward_mean: float = 0.0
    reward_square: float = 0.0
    log_ratio_count: float = 0.0
    """Count and mean of all responses' log-ratios so far, for rows that take them as reference point."""
    log_ratio_mean: float = 0.0

    @classmethod
    def of(cls, algorithm: Algorithm) -> RowState:
        """The state before the first step."""
        return cls(
            kl_coefficient=algorithm.kl.settings.get("kl_coefficient"),
            entropy_coefficient=0.0
            if algorithm.entropy.kind == "adaptive"
            else algorithm.entropy.settings.get("entropy_coefficient"),
            trust_coefficient=algorithm.trust.settings.get("trust_coefficient"),
        )

    def state(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)

    def restore(self, saved: dict[str, Any]) -> None:
        for name in (f.name for f in fields(self)):
            setattr(self, name, saved[name])

    def coefficients(self, terms: Terms, policy: bool = True) -> Coefficients:
        """What the next update's loss is made with. `policy` False leaves the value function alone to learn."""
        return Coefficients(
            constant_length=terms.max_tokens,
            references=terms.references,
            policy=1.0 if policy else 0.0,
            kl=self.kl_coefficient or 0.0,
            entropy=(self.entropy_coefficient or 0.0) if self.entropy_sought else 0.0,
            trust=self.trust_coefficient or 0.0,
            baseline=self.log_ratio_mean,
        )

    def adapt(self, algorithm: Algorithm, report: Report, sequences: int) -> Report:
        """Move the coefficients that have a target, after a step that reported `report`; what they are then."""
        from posttrain.objectives import penalties

        measured, out = report.values(), Report()
        if algorithm.needs.shift and "learn/log_ratio" in measured:
            self.log_ratio_count += sequences
            step = sequences / self.log_ratio_count
            self.log_ratio_mean += step * (measured["learn/log_ratio"] - self.log_ratio_mean)
        if algorithm.kl.settings.get("kl_target") and self.kl_coefficient is not None and "learn/kl" in measured:
            self.kl_coefficient = penalties.adaptive_coefficient(
                self.kl_coefficient,
                measured["learn/kl"],
                algorithm.kl["kl_target"],
                algorithm.kl["kl_horizon"],
                sequences,
            )
        if algorithm.entropy.kind == "adaptive" and "learn/entropy" in measured:
            self.entropy_sought = measured["learn/entropy"] <= algorithm.entropy["entropy_target"]
            self.entropy_coefficient = penalties.adaptive_entropy(
                self.entropy_coefficient or 0.0,
                measured["learn/entropy"],
                algorithm.entropy["entropy_target"],
                algorithm.entropy["entropy_rate"],
                algorithm.entropy["entropy_largest"],
            )
        if self.trust_coefficient is not None and "learn/kl_old_new" in measured:
            ratio = measured["learn/kl_old_new"] / algorithm.trust["max_kl"]
            self.trust_coefficient *= 2.0 if ratio > 1.5 else 0.5 if ratio < 1 / 1.5 else 1.0
        for name in ("kl", "entropy", "trust"):
            value = getattr(self, f"{name}_coefficient")
            if value is not None:
                out += Report.value(f"learn/{name}_coefficient", value)
        return out


@dataclass(frozen=True)
class Terms:
    """What a row's numbers mean in this run."""

    max_tokens: int
    """New tokens of a response at most."""
    weights: Mapping[str, float] = field(default_factory=dict)
    """Each grader's share of the score, by name."""
    references: tuple[float, ...] = (1.0,)
    """Shares of the reference policies; they add up to 1."""


@dataclass(frozen=True)
class Coefficients:
    """Weights of an update's terms."""

    constant_length: int
    """Token limit of a response: the denominator of the `constant` reduction where the row leaves it open."""
    policy: float = 1.0
    kl: float = 0.0
    entropy: float = 0.0
    trust: float = 0.0
    baseline: float = 0.0
    """A log-ratio to hold those of an update's responses against."""
    references: tuple[float, ...] = (1.0,)
    """Shares of the reference policies; they add up to 1."""
