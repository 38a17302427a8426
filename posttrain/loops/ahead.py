"""The next step's groups, drawn and graded under the weights from before, while this step's are learnt."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import replace
from fractions import Fraction
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import PydanticSerializationError

from posttrain.errors import TrainingError
from posttrain.metrics import Report
from posttrain.metrics.report import Entry
from posttrain.rollout.collect import Collected
from posttrain.types import Group

GROUPS = TypeAdapter(list[Group])
SECONDS = ("rollout/seconds", "grade/seconds")


class Ahead:
    """Implements `Keeper`: what was drawn ahead cannot be drawn again once the weights have moved, so that a checkpoint
    holds it.
    """

    def __init__(self) -> None:
        self._found: tuple[int, Collected] | None = None
        self._waited = Report()

    @contextlib.contextmanager
    def meanwhile(self, step: int, collect: Callable[[int], Collected]) -> Iterator[None]:
        """Collect `step`'s groups in a thread while the block runs. Raises what collecting raised."""
        with ThreadPoolExecutor(1, "ahead") as pool:
            future = pool.submit(collect, step)
            try:
                yield
            finally:
                learnt = time.perf_counter()
                wait([future])
            self._waited += Report.sum("ahead/waited_seconds", time.perf_counter() - learnt)
            collected = future.result()
        # Those of a step that was learnt meanwhile: in this one's they would count twice.
        moved = {name: f"ahead/{name.replace('/', '_')}" for name in SECONDS}
        entries = {moved.get(name, name): entry for name, entry in collected.report.entries.items()}
        self._found = step, replace(collected, report=Report(entries))

    def take(self, step: int) -> Collected | None:
        """What was collected for `step`, once; None where nothing was."""
        if self._found is None or self._found[0] != step:
            return None
        (_, collected), self._found = self._found, None
        return collected

    def take_report(self) -> Report:
        """How long a step that was learnt had to wait for what is drawn beside it, since this was last asked."""
        report, self._waited = self._waited, Report()
        return report

    def state(self) -> dict[str, Any]:
        if self._found is None:
            return {}
        step, collected = self._found
        try:
            groups, dropped = (GROUPS.dump_python(g, mode="json") for g in (collected.groups, collected.dropped))
        except PydanticSerializationError as error:
            raise TrainingError(
                f"rollout.max_lag: groups drawn ahead have columns that no checkpoint can hold ({error}); use 0"
            ) from None
        entries = {n: (e.kind, str(e.total), str(e.count)) for n, e in collected.report.entries.items()}
        return {"step": step, "groups": groups, "dropped": dropped, "report": entries}

    def restore(self, state: dict[str, Any]) -> None:
        self._found = None
        if not state:
            return
        report = Report({n: Entry(kind, Fraction(t), Fraction(c)) for n, (kind, t, c) in state["report"].items()})
        groups, dropped = (GROUPS.validate_python(state[name]) for name in ("groups", "dropped"))
        self._found = state["step"], Collected(groups, dropped, report)
