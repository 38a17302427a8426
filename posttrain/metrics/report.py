"""Numbers that add: sums with counts, and maxima, by name. A mean of means cannot be written."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal, SupportsFloat

from posttrain.errors import TrainingError

Kind = Literal["mean", "sum", "maximum"]


@dataclass(frozen=True, slots=True)
class Entry:
    """One metric: an exact total over an exact count, or the largest value seen."""

    kind: Kind
    total: Fraction
    count: Fraction = Fraction(1)
    """What the total is divided by; 1 for sums and maxima."""

    def __add__(self, other: Entry) -> Entry:
        if self.kind == "mean":
            return Entry("mean", self.total + other.total, self.count + other.count)
        if self.kind == "sum":
            return Entry("sum", self.total + other.total)
        return Entry("maximum", max(self.total, other.total))

    @property
    def value(self) -> float | None:
        """The number to show, rounded once; None for a mean of nothing."""
        return float(self.total / self.count) if self.count else None


@dataclass(frozen=True)
class Report:
    """A frozen mapping from metric names to entries, with `+`.

    Totals are rational numbers, in which every finite float is exact, so `+` is associative and commutative to the
    last bit: micro-batches, ranks and steps may be added in any order, also by `sum(reports, Report())`.
    Picklable, so ranks can exchange it.
    """

    entries: Mapping[str, Entry] = field(default_factory=dict)

    @classmethod
    def mean(cls, name: str, total: SupportsFloat, count: SupportsFloat) -> Report:
        """A sum over `count` things (tokens, sequences, groups); a count of 0 lends its total to what is added later.

        Raises ValueError for a negative count, TrainingError (as everything here) for a number that is not finite.
        """
        entry = Entry("mean", _exact(name, total), _exact(f"the count of {name}", count))
        if entry.count < 0:
            raise ValueError(f"{name}: a count of {float(entry.count)!r}")
        return cls({name: entry})

    @classmethod
    def sum(cls, name: str, value: SupportsFloat) -> Report:
        """A quantity that adds up: seconds, tokens, events."""
        return cls({name: Entry("sum", _exact(name, value))})

    @classmethod
    def maximum(cls, name: str, value: SupportsFloat) -> Report:
        """The largest value survives addition."""
        return cls({name: Entry("maximum", _exact(name, value))})

    @classmethod
    def value(cls, name: str, value: SupportsFloat) -> Report:
        """A plain gauge, such as the learning rate; gauges of one name add to their mean."""
        return cls.mean(name, value, 1)

    @classmethod
    def of(cls, values: Mapping[str, SupportsFloat]) -> Report:
        """Several gauges at once."""
        return sum((cls.value(name, value) for name, value in values.items()), cls())

    def __add__(self, other: Report) -> Report:
        """Raises ValueError when one name stands for two kinds of numbers."""
        if not isinstance(other, Report):
            return NotImplemented
        entries = dict(self.entries)
        for name, entry in other.entries.items():
            mine = entries.get(name)
            if mine is not None and mine.kind != entry.kind:
                raise ValueError(f"{name}: a {mine.kind} and a {entry.kind} do not add; use two names")
            entries[name] = entry if mine is None else mine + entry
        return Report(entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def under(self, prefix: str) -> Report:
        """The same numbers with `prefix/` before every name."""
        return Report({f"{prefix}/{name}": entry for name, entry in self.entries.items()})

    def values(self) -> dict[str, float]:
        """Every metric by name, sorted; a mean whose count is 0 is left out."""
        shown = {name: self.entries[name].value for name in sorted(self.entries)}
        return {name: value for name, value in shown.items() if value is not None}


def _exact(name: str, value: SupportsFloat) -> Fraction:
    if isinstance(value, int):
        return Fraction(value)
    number = float(value)
    if not math.isfinite(number):
        raise TrainingError(f"{name} is {number}: a metric must be finite")
    return Fraction(number)
