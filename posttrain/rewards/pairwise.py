"""Graders that compare two responses, as graders of a group: each response is worth its win rate against the others."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from posttrain.types import Verdict

OTHER = "other"
"""Name of the second parameter by which such a grader is known."""


class WinRates:
    """Turns `preference(completion, other, **columns)`, the probability that `completion` is the better one, into one
    score per response: the mean over all others (SPO, 2401.04056). Both orders are asked. A preference with a method
    `win_rates(texts, **columns)` makes them itself, as one that asks a service all its questions at once does.
    """

    def __init__(self, preference: Callable[..., Any]) -> None:
        self.preference = preference

    def __call__(self, texts: Sequence[str], **columns: Any) -> list[float | Verdict | None]:
        """One win rate per text; None where there is nothing to be compared with. Raises ValueError for a probability
        outside [0, 1].
        """
        if len(texts) < 2:
            return [None] * len(texts)
        together = getattr(self.preference, "win_rates", None)
        if together is not None:
            return list(together(texts, **columns))
        return [
            sum(self._wins(text, other, columns) for j, other in enumerate(texts) if j != i) / (len(texts) - 1)
            for i, text in enumerate(texts)
        ]

    def _wins(self, text: str, other: str, columns: dict[str, Any]) -> float:
        value = self.preference(text, other, **columns)
        if inspect.iscoroutine(value):
            value = asyncio.run(value)
        if not 0 <= float(value) <= 1:
            raise ValueError(f"a preference is a probability between 0 and 1, not {value!r}")
        return float(value)
