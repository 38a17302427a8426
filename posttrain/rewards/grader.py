"""From groups of roll-outs to verdicts: who is asked what, with which columns, and how the answers become a score."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Self

from posttrain.errors import DataError, GradingError, RecipeError
from posttrain.recipe import Grading, Reward
from posttrain.rewards.cache import VerdictCache, identity_of
from posttrain.rewards.early import Early
from posttrain.rewards.jobs import Asked, Groups, Job, jobs_of, missing_column
from posttrain.rewards.pool import Pool, with_kept
from posttrain.rewards.verifier import signature_of
from posttrain.rewards.worker import Part
from posttrain.types import Prompt, Rollout, Status, Verdict

FAILED: tuple[Status, ...] = ("error", "timeout", "unavailable")
"""Verdicts without a score for reasons that are not the policy's."""
UNGRADED: tuple[Status, ...] = (*FAILED, "unparsable")
"""Verdicts that may have no score; where several graders give none, the first of these is said."""


class Grader:
    """Grades roll-outs with a recipe's rewards, `grading.workers` at a time. A context manager: the processes start
    when it is entered and are gone when it is left.

    `failures` counts the last call's verdicts by status: unparsable, timeout, error, unavailable. Of `asked` questions
    to verifiers in that call, `cached` were answered by kept verdicts.
    """

    def __init__(self, rewards: Sequence[Reward], grading: Grading) -> None:
        """Raises RecipeError where a verifier cannot be loaded or two graders have one name."""
        self.rewards = tuple(rewards)
        self.grading = grading
        self.signatures = tuple(signature_of(r, f"rewards[{i}]") for i, r in enumerate(self.rewards))
        self.failures: dict[str, int] = {}
        self.asked = self.cached = 0
        kept = [
            identity_of(r, s) if grading.cache else None for r, s in zip(self.rewards, self.signatures, strict=True)
        ]
        self._asked = [Asked(s, identity) for s, identity in zip(self.signatures, kept, strict=True)]
        self._cache: VerdictCache | None = None
        self._pool = Pool(self.rewards, grading.workers)
        for name, count in Counter(s.name for s in self.signatures).items():
            if count > 1:
                raise RecipeError([f"rewards: {count} graders are called {name!r}; give each a name of its own"])

    def __enter__(self) -> Self:
        """Start the workers and wait until each has its verifiers. Raises GradingError where one cannot have them."""
        self.begin()
        try:
            self.wait()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def begin(self) -> None:
        """Start the workers, and go on while they load their verifiers: `close` is the caller's to call."""
        self._pool.begin()
        if any(one.identity for one in self._asked):
            self._cache = VerdictCache()

    def wait(self) -> None:
        """Until each worker has its verifiers. Raises GradingError where one cannot have them."""
        self._pool.wait()

    def close(self) -> None:
        """End the workers, busy or not."""
        self._pool.close()
        if self._cache is not None:
            self._cache.close()

    def pids(self) -> tuple[int, ...]:
        """The process ids of the workers, each of which has just answered; not while `grade` runs."""
        return self._pool.pids()

    def grade(self, groups: Groups, told: Callable[[int, int], None] | None = None) -> list[tuple[Verdict, ...]]:
        """One verdict per roll-out, in the groups' own shape and order, whatever finishes first. After each question to
        a verifier `told` hears how many of how many are answered.

        Raises DataError where a prompt lacks a column that a verifier needs, before anything is graded; GradingError
        where more than `grading.max_failure_rate` of the verdicts ended in a timeout or an error.
        """
        return self._graded(groups, None, told)

    @contextmanager
    def early(self, prompts: Sequence[Prompt]) -> Iterator[Early | None]:
        """For groups of these prompts that come one by one: the same verdicts, most of them given while others are
        still drawn. None where `grading.early` is off. Raises as `grade` does.
        """
        self._require_workers()
        self._check_columns([(prompt, ()) for prompt in prompts])
        if not self.grading.early:
            yield None
            return
        ask = partial(self._pool.submit, self._answer)
        early = Early(prompts, self._asked, self._cache, ask, self._graded)
        try:
            yield early
        finally:
            early.cancel()

    def _graded(
        self, groups: Groups, early: Early | None, told: Callable[[int, int], None] | None = None
    ) -> list[tuple[Verdict, ...]]:
        self._require_workers()
        self._check_columns(groups)
        found = early.jobs if early else partial(jobs_of, self._asked)
        jobs = [job for g, group in enumerate(groups) for job in found(g, *group)]
        parts: list[list[list[Part]]] = [
            [[Part(None)] * len(self.rewards) for _ in rollouts] for _, rollouts in groups
        ]  # group, roll-out, reward
        for done, (job, answers) in enumerate(zip(jobs, self._parts(jobs, early), strict=True), start=1):
            if told:
                told(done, len(jobs))
            for member, part in zip(job.members, answers, strict=True):
                parts[job.group][member][job.reward] = _within(part, groups[job.group][1][member], job.label)
        verdicts = [tuple(self._verdict(row) for row in rows) for rows in parts]
        self._count([verdict for group in verdicts for verdict in group])
        return verdicts

    def _require_workers(self) -> None:
        if not self._pool.open:
            raise GradingError("the grader has no workers: use it inside `with Grader(...) as grader:`")

    def _check_columns(self, groups: Groups) -> None:
        for i, signature in enumerate(self.signatures):
            for prompt, _ in groups:
                column = missing_column(signature, prompt.columns)
                if column is not None:
                    present = ", ".join(map(str, prompt.columns)) or "none"
                    raise DataError(
                        f"rewards[{i}].verifier: {signature.name} needs the column {column!r}, which prompt "
                        f"{prompt.id!r} does not have; its columns: {present}. Name the right one in the data "
                        f"block: columns: {{{column}: ...}}"
                    )

    def _parts(self, jobs: Sequence[Job], early: Early | None) -> Iterator[list[Part]]:
        """Each job's parts, in order, counted by where they come from."""
        self.asked, self.cached = len(jobs), len(jobs)

        def answered(job: Job) -> list[Part]:
            # A thread of the pool waits here only for what was given to the pool before, which needs no other thread.
            return (early and early.answer(job)) or self._answer(job)

        def ask(unknown: Sequence[Job]) -> Iterator[list[Part]]:
            self.cached -= len(unknown)
            return self._pool.map(answered, unknown)

        return with_kept(jobs, self._cache, ask)

    def _answer(self, job: Job) -> list[Part]:
        return self._pool.ask(job, self.grading.timeout, self.grading.retries)

    def _verdict(self, row: Sequence[Part]) -> Verdict:
        """The weighted sum of a roll-out's parts; no score where a part that counts has none."""
        values: dict[str, float | None] = {}
        for signature, part in zip(self.signatures, row, strict=True):
            values[signature.name] = part.score
            values |= {f"{signature.name}.{name}": value for name, value in part.parts.items()}
        weights = [reward.weight for reward in self.rewards]
        reasons = [f"{s.name}: {p.reason}" for s, p in zip(self.signatures, row, strict=True) if p.reason]
        applies = [(w, p) for w, p in zip(weights, row, strict=True) if p.status != "skipped"]
        for status in UNGRADED:
            for weight, part in applies:
                if weight and part.status == status and part.score is None:
                    return Verdict(None, status, values, part.reason)
        if not applies or (any(weights) and not any(w for w, _ in applies)):
            return Verdict(None, "unparsable", values, "no grader applies to this row")
        score = math.fsum(w * p.score for w, p in applies if w and p.score is not None)
        if not math.isfinite(score):
            return Verdict(None, "error", values, f"the weighted sum of {values} is {score}")
        unread = any(weight and part.status == "unparsable" for weight, part in applies)
        counted = [(w, p) for w, p in applies if w]
        return Verdict(
            score,
            "unparsable" if unread else "ok",
            values,
            "; ".join(reasons),
            steps=tuple((at, w * reward) for w, p in counted for at, reward in p.steps),
            answer=next((p.answer for _, p in counted if p.answer is not None), None),
            offset=_offset(counted),
        )

    def _count(self, verdicts: Sequence[Verdict]) -> None:
        counts = Counter(verdict.status for verdict in verdicts)
        self.failures = {status: counts[status] for status in UNGRADED}
        failed = sum(counts[status] for status in FAILED)
        if verdicts and failed / len(verdicts) > self.grading.max_failure_rate:
            reasons = dict.fromkeys(v.reason for v in verdicts if v.status in FAILED)
            raise GradingError(
                f"{failed} of {len(verdicts)} verdicts failed for reasons that are not the policy's (grading."
                f"max_failure_rate is {self.grading.max_failure_rate:g}):"
                + "".join(f"\n  - {reason}" for reason in list(reasons)[:3])
            )


def _within(part: Part, rollout: Rollout, label: str) -> Part:
    """A part whose step rewards lie on tokens the policy said; an error of its grader otherwise."""
    wrong = next((at for at, _ in part.steps if not -rollout.length <= at < rollout.length), None)
    if wrong is None:
        return part
    return Part(None, "error", f"{label}: a step reward at token {wrong} of a response of {rollout.length} tokens")


def _offset(counted: Sequence[tuple[float, Part]]) -> float | None:
    """The weighted sum of the parts' offsets, where any has one; what has none says it by its score."""
    if all(part.offset is None for _, part in counted):
        return None
    return math.fsum(w * (p.score or 0.0 if p.offset is None else p.offset) for w, p in counted)
