"""What an audit found: the confusion matrix, error rates with their intervals, every wrong case, and the time taken."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.rewards.shipped import AuditSet
from posttrain.rewards.worker import Part


@dataclass(frozen=True, slots=True)
class AuditRow:
    """A completion, the columns it is graded with, and whether it should be accepted."""

    line: int
    """In its file, from 1."""
    completion: str
    expect: bool
    kind: str
    columns: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Judged:
    """A row with its verdict."""

    row: AuditRow
    part: Part


@dataclass(frozen=True, slots=True)
class Rate:
    """`wrong` of `count` verdicts, as a share with Wilson's 95 % interval; the share of nothing is None."""

    wrong: int
    count: int

    @property
    def share(self) -> float | None:
        return self.wrong / self.count if self.count else None

    @property
    def interval(self) -> tuple[float, float]:
        from posttrain.metrics.statistics import wilson  # it brings numpy, which no other command needs

        return wilson(self.wrong, self.count)

    def __str__(self) -> str:
        low, high = self.interval
        if self.share is None:
            return "none graded"
        return f"{self.wrong} of {self.count} ({_percent(self.share)} [{_percent(low)}, {_percent(high)}])"


@dataclass(frozen=True)
class AuditReport:
    """A row that has no score is neither accepted nor refused: it is counted as not graded, and not in the rates."""

    source: AuditSet
    judged: tuple[Judged, ...]
    rows: int
    """How many the set has; more than were judged where time ran out."""
    seconds: float
    """Of the whole audit, workers' start included."""

    def accepts(self, one: Judged) -> bool | None:
        """Whether its score reaches the threshold; None without a score."""
        return None if one.part.score is None else one.part.score >= self.source.threshold

    def count(self, expect: bool, accepted: bool | None, kind: str | None = None) -> int:
        """A cell of the confusion matrix, of all rows or those of a kind; `accepted` None: not graded."""
        return sum(
            one.row.expect is expect and self.accepts(one) is accepted and kind in (None, one.row.kind)
            for one in self.judged
        )

    @property
    def false_positives(self) -> tuple[Judged, ...]:
        return tuple(one for one in self.judged if not one.row.expect and self.accepts(one) is True)

    @property
    def false_negatives(self) -> tuple[Judged, ...]:
        return tuple(one for one in self.judged if one.row.expect and self.accepts(one) is False)

    @property
    def ungraded(self) -> tuple[Judged, ...]:
        return tuple(one for one in self.judged if one.part.score is None)

    @property
    def timeouts(self) -> int:
        return sum(one.part.status == "timeout" for one in self.ungraded)

    @property
    def kinds(self) -> tuple[str, ...]:
        """In the order of the file."""
        return tuple(dict.fromkeys(one.row.kind for one in self.judged))

    def rate(self, expect: bool, kind: str | None = None) -> Rate:
        """Wrong verdicts among the graded rows of one expectation: of False the false positives."""
        wrong, right = (self.count(expect, accepted, kind) for accepted in (not expect, expect))
        return Rate(wrong, wrong + right)

    def seconds_per_verdict(self) -> dict[str, float] | None:
        """Mean, 99th percentile and maximum, of verdicts in this audit that ended or were ended; None without any."""
        times = sorted(one.part.seconds for one in self.judged if one.part.seconds is not None)
        if not times:
            return None
        at = math.ceil(0.99 * len(times)) - 1
        return {"mean": math.fsum(times) / len(times), "p99": times[at], "max": times[-1]}

    def as_json(self) -> dict[str, Any]:
        """Everything, as plain data; `rows` is how many were judged."""
        return {
            "verifier": self.source.verifier,
            "settings": dict(self.source.settings),
            "threshold": self.source.threshold,
            "file": str(self.source.rows),
            "rows": len(self.judged),
            "left_out": self.rows - len(self.judged),
            "confusion": _matrix(self),
            "false_positives": _listed(self.false_positives),
            "false_negatives": _listed(self.false_negatives),
            "ungraded": _listed(self.ungraded),
            "false_positive_rate": _as_json(self.rate(False)),
            "false_negative_rate": _as_json(self.rate(True)),
            "kinds": {kind: _matrix(self, kind) for kind in self.kinds},
            "timeouts": self.timeouts,
            "errors": sum(one.part.status == "error" for one in self.ungraded),
            "seconds": self.seconds,
            "seconds_per_verdict": self.seconds_per_verdict(),
        }

    def line(self) -> str:
        """The error rates in one line."""
        missing = self.rows - len(self.judged)
        said = [f"false positives {self.rate(False)}", f"false negatives {self.rate(True)}"]
        said += [f"{len(self.ungraded)} not graded"] if self.ungraded else []
        said += [f"{missing} rows left out for want of time"] if missing else []
        return f"audited on {len(self.judged)} rows ({self.source.name}): {', '.join(said)}"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _matrix(report: AuditReport, kind: str | None = None) -> dict[str, int]:
    return {
        "true_positives": report.count(True, True, kind),
        "false_negatives": report.count(True, False, kind),
        "false_positives": report.count(False, True, kind),
        "true_negatives": report.count(False, False, kind),
        "ungraded": report.count(True, None, kind) + report.count(False, None, kind),
    }


def _as_json(rate: Rate) -> dict[str, float | int | None]:
    low, high = rate.interval
    return {"rate": rate.share, "low": low, "high": high, "wrong": rate.wrong, "count": rate.count}


def _listed(found: Sequence[Judged]) -> list[dict[str, Any]]:
    """Rows as they stand in the file, with the line and what the verifier said."""
    return [
        {
            **one.row.columns,
            "completion": one.row.completion,
            "expect": one.row.expect,
            "kind": one.row.kind,
            "line": one.row.line,
            "score": one.part.score,
            "status": one.part.status,
            "reason": one.part.reason,
            "seconds": one.part.seconds,
        }
        for one in found
    ]
