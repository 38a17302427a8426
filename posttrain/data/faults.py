"""Rows that teach nothing or teach something false: counted by kind, shown, and refused where they are many."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from posttrain.errors import DataError

EXAMPLES = 3
"""Rows that are shown of each kind."""

KINDS: Mapping[str, str] = {
    "missing side": "fill the column in, or take the rows out",
    "empty response": "take the rows out: only to stop at once could be learnt from them",
    "equal answers": "take the rows out: nothing tells their answers apart",
    "no common prompt": "add a column 'prompt'",
    "do not share the prefix": (
        "give what the assistant had said before as `initial_reason_steps`, or call the column otherwise, as in "
        "columns: {hint: prefix}"
    ),
    "score not a number": "write finite numbers, or call the column otherwise, as in columns: {note: score}",
    "label out of range": "write labels of steps as true, false or a number from 0 to 1",
    "too few answers": "give each row two answers or more of different worth",
    "tie": "take the rows out, or use a row of the table that learns from ties",
    "rejected scored higher": "exchange the two answers, or call the columns otherwise so that they are not read",
    "ranks that are no ranking": "write whole numbers from 1, the best; equal ones are a tie",
    "lengths differ": "give one number for each of `completions`",
    "step without tokens": "take the empty steps out",
}
"""Every kind of fault, with its way out."""


class FaultyRowError(DataError):
    """A row that cannot be learnt from, of one of KINDS. Its message is what is wrong with it."""

    def __init__(self, kind: str, detail: str) -> None:
        self.kind = kind
        super().__init__(detail)


@dataclass
class Faults:
    """The faulty rows of a source."""

    found: dict[str, list[str]] = field(default_factory=dict)
    """By kind, in the order in which the kinds came up: "row: what is wrong"."""

    def add(self, row_id: str, fault: FaultyRowError) -> None:
        self.found.setdefault(fault.kind, []).append(f"{row_id}: {fault}")

    def counts(self) -> dict[str, int]:
        return {kind: len(rows) for kind, rows in self.found.items()}

    def examples(self) -> tuple[str, ...]:
        """The first rows of each kind."""
        return tuple(row for rows in self.found.values() for row in rows[:EXAMPLES])

    def refuse(self, total: int, max_share: float, key: str, besides: str = "") -> None:
        """Stop where more than `max_share` of `total` rows are faulty. Raises DataError with all kinds and ways out.

        `besides` is what else is to be said of the source, as how many rows were too long.
        """
        count = sum(self.counts().values())
        if count <= max_share * total:
            return
        lines = [
            f"{len(rows)} {kind} ({'; '.join(rows[:EXAMPLES])}): {KINDS[kind]}" for kind, rows in self.found.items()
        ]
        raise DataError(
            "\n".join(
                [
                    f"{key}: {count} of {total} rows ({count / total:.1%}) cannot be learnt from, which is more than "
                    f"data.max_faulty_share: {max_share:g}; mend them, or raise it to leave them out{besides}",
                    *(f"  - {line}" for line in lines),
                ]
            )
        )
