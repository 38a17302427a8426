"""A verifier against rows whose verdict is known: how often it accepts what is wrong, and refuses what is right."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from posttrain.errors import DataError, PosttrainError, RecipeError
from posttrain.recipe import Grading, Reward
from posttrain.rewards.audit_report import AuditReport, AuditRow, Judged
from posttrain.rewards.cache import VerdictCache, identity_of
from posttrain.rewards.jobs import Asked, Job, jobs_of, missing_column
from posttrain.rewards.pool import Pool, with_kept
from posttrain.rewards.shipped import AuditSet, shipped_audit
from posttrain.rewards.verifier import VerifierSignature, signature_of
from posttrain.rewards.worker import START_LIMIT, Part
from posttrain.types import Prompt, Rollout

AT_START = 20.0
"""Seconds that a run spends on audits before it starts."""
SHOWN = 5
"""Faulty rows that an error names."""

T = TypeVar("T")
Watch = Callable[[Iterable[T], int], Iterable[T]]
"""Passes things on as they come, of which there will be so many: a place for a progress bar."""


@dataclass(frozen=True)
class Auditor:
    """How an audit runs. A verdict that is kept is read back, and a new one kept, only where there is a `cache`."""

    grading: Grading
    cache: VerdictCache | None = None
    deadline: float = math.inf
    """On `time.monotonic()`: rows that have no verdict by then are left out of the report."""
    watch: Watch[Judged | None] = lambda things, _: things
    unwanted: Callable[[], bool] = lambda: False
    """Once it is true, no row is asked any more, as after the deadline."""

    def audit(self, found: AuditSet) -> AuditReport:
        """Ask the verifier for its verdict on every row of a set, in the processes that training grades in.

        Raises RecipeError for a verifier that cannot be loaded or compares pairs, DataError for faulty rows, before
        anything runs; GradingError where no worker starts.
        """
        started = time.monotonic()
        reward = Reward(verifier=found.verifier, settings=dict(found.settings))
        signature = signature_of(reward, "audit")
        if signature.kind == "pair":
            raise RecipeError([f"audit: {found.verifier} compares two responses: no row is right or wrong alone"])
        rows = read_rows(found.rows, signature)
        asked = Asked(signature, identity_of(reward, signature) if self.cache else None)
        jobs = [_job(asked, row, found.rows.name) for row in rows]
        judged = list(self.watch(self._judged(reward, rows, jobs), len(rows)))
        done = tuple(one for one in judged if one is not None)
        return AuditReport(found, done, len(rows), time.monotonic() - started)

    def _judged(self, reward: Reward, rows: Sequence[AuditRow], jobs: Sequence[Job]) -> Iterator[Judged | None]:
        """Each row with its verdict, in order; None for one that the deadline left out."""
        for row, parts in zip(rows, with_kept(jobs, self.cache, partial(self._asked, reward)), strict=True):
            yield Judged(row, parts[0]) if parts else None

    def _asked(self, reward: Reward, jobs: Sequence[Job]) -> Iterator[list[Part]]:
        with Pool([reward], self.grading.workers, self._start_limit()) as pool:
            yield from pool.map(lambda job: self._ask(pool, job), jobs)

    def _start_limit(self) -> float:
        return max(1.0, min(START_LIMIT, self.deadline - time.monotonic()))

    def _ask(self, pool: Pool, job: Job) -> list[Part]:
        left = self.deadline - time.monotonic()
        if left <= 0 or self.unwanted():
            return []
        parts = pool.ask(job, min(self.grading.timeout, left), self.grading.retries)
        # A verdict that only the deadline cut short says nothing of the verifier.
        return [] if parts[0].status == "timeout" and left < self.grading.timeout else parts


def audit_lines(
    rewards: Sequence[Reward],
    grading: Grading,
    seconds: float = AT_START,
    unwanted: Callable[[], bool] = lambda: False,
) -> Iterator[str]:
    """One line for each reward: how often its verifier errs on the set that ships for it. All in `seconds`, and read
    from kept verdicts where there are some; what cannot be audited is said and stops nothing.
    """
    cache = VerdictCache() if grading.cache else None
    auditor = Auditor(grading, cache, time.monotonic() + seconds, unwanted=unwanted)
    try:
        for i, reward in enumerate(rewards):
            try:
                yield f"rewards[{i}] {reward.name or reward.verifier}: {_line(auditor, reward)}"
            except PosttrainError as error:
                yield f"rewards[{i}] {reward.name or reward.verifier}: not audited: {error}"
    finally:
        if cache:
            cache.close()


@contextmanager
def auditing(rewards: Sequence[Reward], grading: Grading) -> Iterator[Callable[[], list[str]]]:
    """`audit_lines` beside what else the block does: call what it gives for the lines. Left before, it asks no more."""
    unwanted = threading.Event()
    with ThreadPoolExecutor(1, "audit") as beside:
        lines = beside.submit(lambda: list(audit_lines(rewards, grading, unwanted=unwanted.is_set)))
        try:
            yield lines.result
        finally:
            unwanted.set()


def _line(auditor: Auditor, reward: Reward) -> str:
    found = shipped_audit(reward)
    if found is None:
        return "no audit set"
    other = "" if found.settings == reward.settings else f"; with settings {dict(found.settings)}, not the recipe's"
    return auditor.audit(found).line() + other


def read_rows(file: Path, signature: VerifierSignature) -> tuple[AuditRow, ...]:
    """The rows of an audit file. Raises DataError naming line and key of the first faulty ones."""
    try:
        # JSON may hold what str.splitlines takes for an end of line.
        lines = file.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read: {error}") from None
    rows: list[AuditRow] = []
    faults: list[str] = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                rows.append(_row(number, line, signature))
            except ValueError as error:
                faults.append(f"{file}:{number}: {error}")
    if faults:
        more = [f"and {len(faults) - SHOWN} more faulty rows"] if len(faults) > SHOWN else []
        raise DataError("\n".join([*faults[:SHOWN], *more]))
    if not rows:
        raise DataError(f'{file}: no rows; one is written {{"completion": "...", "expect": true}}')
    return tuple(rows)


def _row(number: int, line: str, signature: VerifierSignature) -> AuditRow:
    """A row, or a ValueError that says what is wrong with it."""
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(row, dict):
        raise ValueError(f"a row is an object with completion and expect, not {line[:40]!r}")
    present = ", ".join(row) or "none"
    for key, kind, due in (("completion", str, "a text"), ("expect", bool, "true or false")):
        if key not in row:
            raise ValueError(f"{key}: missing; its keys: {present}")
        if not isinstance(row[key], kind):
            raise ValueError(f"{key}: {row[key]!r:.60} is not {due}")
    needed = {*signature.required, *signature.optional}
    columns = {name: value for name, value in row.items() if name not in {"completion", "expect", "kind"} - needed}
    missing = missing_column(signature, columns)
    if missing is not None:
        raise ValueError(f"{missing}: missing, and {signature.name} needs this column; its keys: {present}")
    return AuditRow(number, row["completion"], row["expect"], str(row.get("kind", "")), columns)


def _job(asked: Asked, row: AuditRow, file: str) -> Job:
    prompt = Prompt(f"{file}:{row.line}", (), str(row.columns.get("prompt", "")), row.columns)
    # A verifier of groups is shown a group of one; it has no token ids of ours.
    (job,) = jobs_of([asked], 0, prompt, [Rollout((), (), row.completion, "given")])
    return job
