"""From groups of roll-outs to verdicts: who is asked what, with which columns, and how the answers become a score."""

from __future__ import annotations

import math
import pickle
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Self, TypeGuard

from posttrain.errors import DataError, GradingError, RecipeError
from posttrain.recipe import Grading, Reward
from posttrain.rewards.verifier import TRL_HOOKS, VerifierSignature, signature_of
from posttrain.rewards.worker import START_LIMIT, Part, Worker, call, ignore, probe
from posttrain.types import Prompt, Rollout, Verdict

Groups = Sequence[tuple[Prompt, Sequence[Rollout]]]


@dataclass(frozen=True, slots=True)
class _Job:
    """One call of one verifier: for one roll-out of a group, or for all of them."""

    reward: int
    group: int
    members: tuple[int, ...]
    payload: bytes
    label: str
    """Verifier and prompt, for messages."""


class Grader:
    """Grades roll-outs with a recipe's rewards, `grading.workers` at a time. A context manager: the processes start
    when it is entered and are gone when it is left.

    `failures` counts the last call's verdicts by status: unparsable, timeout, error.
    """

    def __init__(self, rewards: Sequence[Reward], grading: Grading) -> None:
        """Raises RecipeError where a verifier cannot be loaded or two graders have one name."""
        self.rewards = tuple(rewards)
        self.grading = grading
        self.signatures = tuple(signature_of(r, f"rewards[{i}]") for i, r in enumerate(self.rewards))
        self.failures: dict[str, int] = {}
        self._workers: list[Worker] = []
        self._idle: SimpleQueue[Worker] = SimpleQueue()
        self._threads: ThreadPoolExecutor | None = None
        for name, count in Counter(s.name for s in self.signatures).items():
            if count > 1:
                raise RecipeError([f"rewards: {count} graders are called {name!r}; give each a name of its own"])

    def __enter__(self) -> Self:
        """Start the workers and wait until each has its verifiers. Raises GradingError where one cannot have them."""
        self._threads = ThreadPoolExecutor(self.grading.workers, thread_name_prefix="grader")
        self._workers = [Worker(self.rewards) for _ in range(self.grading.workers)]
        try:
            self.pids()
        except BaseException:
            self.close()
            raise
        for worker in self._workers:
            self._idle.put(worker)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the workers, busy or not."""
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)
        for worker in self._workers:
            worker.close()
        self._workers, self._threads = [], None

    def pids(self) -> tuple[int, ...]:
        """The process ids of the workers, each of which has just answered; not while `grade` runs."""
        assert self._threads is not None, "a Grader is used inside `with`"
        try:
            answers = list(self._threads.map(lambda w: w.run(probe, limit=START_LIMIT), self._workers))
        except (TimeoutError, ChildProcessError) as error:
            raise GradingError(f"a grading worker did not start within {START_LIMIT:.0f} s: {error}") from None
        for _, problems in answers:
            if problems:
                raise GradingError(f"a grading worker could not load its verifiers: {problems[0]}")
        return tuple(pid for pid, _ in answers)

    def grade(self, groups: Groups) -> list[tuple[Verdict, ...]]:
        """One verdict per roll-out, in the groups' own shape and order, whatever finishes first.

        Raises DataError where a prompt lacks a column that a verifier needs, before anything is graded; GradingError
        where more than `grading.max_failure_rate` of the verdicts ended in a timeout or an error.
        """
        if self._threads is None:
            raise GradingError("the grader has no workers: use it inside `with Grader(...) as grader:`")
        self._check_columns(groups)
        jobs = [job for g, group in enumerate(groups) for job in self._jobs(g, *group)]
        parts: list[list[list[Part]]] = [
            [[Part(None)] * len(self.rewards) for _ in rollouts] for _, rollouts in groups
        ]  # group, roll-out, reward
        for job, answers in zip(jobs, self._threads.map(self._settle, jobs), strict=True):
            for member, part in zip(job.members, answers, strict=True):
                parts[job.group][member][job.reward] = _within(part, groups[job.group][1][member], job.label)
        verdicts = [tuple(self._verdict(row) for row in rows) for rows in parts]
        self._count([verdict for group in verdicts for verdict in group])
        return verdicts

    def _check_columns(self, groups: Groups) -> None:
        for i, signature in enumerate(self.signatures):
            for prompt, _ in groups:
                for column in signature.required:
                    if column not in prompt.columns:
                        present = ", ".join(map(str, prompt.columns)) or "none"
                        raise DataError(
                            f"rewards[{i}].verifier: {signature.name} needs the column {column!r}, which prompt "
                            f"{prompt.id!r} does not have; its columns: {present}. Name the right one in the data "
                            f"block: columns: {{{column}: ...}}"
                        )

    def _jobs(self, group: int, prompt: Prompt, rollouts: Sequence[Rollout]) -> list[_Job]:
        jobs = []
        for i, signature in enumerate(self.signatures):
            label = f"{signature.name} on prompt {prompt.id!r}"
            calls: list[tuple[tuple[Any, ...], dict[str, Any], tuple[int, ...]]]
            if signature.kind == "group":
                calls = [((), _group_arguments(signature, prompt, rollouts), tuple(range(len(rollouts))))]
            elif signature.kind == "pair":
                texts = tuple(rollout.text for rollout in rollouts)
                calls = [((texts,), _columns(signature, prompt), tuple(range(len(rollouts))))]
            else:
                columns = _columns(signature, prompt)
                calls = [((rollout.text,), columns, (k,)) for k, rollout in enumerate(rollouts)]
            for positional, named, members in calls:
                try:
                    payload = pickle.dumps((i, positional, named))
                except Exception as error:
                    raise DataError(f"{label}: its columns cannot be sent to a process: {error}") from None
                jobs += [_Job(i, group, members, payload, label)] if members else []
        return jobs

    def _settle(self, job: _Job) -> list[Part]:
        """A job's parts, one per member; failures after the retries are parts too, so no call is lost."""
        count = None if self.signatures[job.reward].kind == "item" else len(job.members)
        limit = self.grading.timeout * len(job.members)
        answer: list[Part] | str = ""
        for _ in range(1 + self.grading.retries):
            worker = self._idle.get()
            try:
                answer = worker.run(call, job.payload, count, limit, limit=limit)
            except TimeoutError:
                reason = f"{job.label}: no answer within {limit:g} s, its worker was killed"
                return [Part(None, "timeout", reason)] * len(job.members)
            except ChildProcessError as error:
                answer = f"ChildProcessError: {error}"
            finally:
                self._idle.put(worker)
            if not isinstance(answer, str):
                return answer
        return [Part(None, "error", f"{job.label}: {answer}")] * len(job.members)

    def _verdict(self, row: Sequence[Part]) -> Verdict:
        """The weighted sum of a roll-out's parts; no score where a part that counts has none."""
        values: dict[str, float | None] = {}
        for signature, part in zip(self.signatures, row, strict=True):
            values[signature.name] = part.score
            values |= {f"{signature.name}.{name}": value for name, value in part.parts.items()}
        weights = [reward.weight for reward in self.rewards]
        reasons = [f"{s.name}: {p.reason}" for s, p in zip(self.signatures, row, strict=True) if p.reason]
        applies = [(w, p) for w, p in zip(weights, row, strict=True) if p.status != "skipped"]
        for status in ("error", "timeout", "unparsable"):
            for weight, part in applies:
                if weight and part.status == status and part.score is None:
                    return Verdict(None, status, values, part.reason)
        if not applies or (any(weights) and not any(w for w, _ in applies)):
            return Verdict(None, "unparsable", values, "no grader applies to this row")
        score = math.fsum(w * p.score for w, p in applies if w and p.score is not None)
        if not math.isfinite(score):
            return Verdict(None, "error", values, f"the weighted sum of {values} is {score}")
        unread = any(weight and part.status == "unparsable" for weight, part in applies)
        steps = tuple((at, w * reward) for w, p in applies if w for at, reward in p.steps)
        return Verdict(score, "unparsable" if unread else "ok", values, "; ".join(reasons), steps)

    def _count(self, verdicts: Sequence[Verdict]) -> None:
        counts = Counter(verdict.status for verdict in verdicts)
        self.failures = {status: counts[status] for status in ("unparsable", "timeout", "error")}
        failed = counts["timeout"] + counts["error"]
        if verdicts and failed / len(verdicts) > self.grading.max_failure_rate:
            reasons = dict.fromkeys(v.reason for v in verdicts if v.status in ("timeout", "error"))
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


def _columns(signature: VerifierSignature, prompt: Prompt) -> dict[str, Any]:
    """The columns an item verifier takes, without one that has the name of its first parameter."""
    wanted = prompt.columns if signature.takes_all else (*signature.required, *signature.optional)
    taken = signature.arguments
    return {name: prompt.columns[name] for name in wanted if name in prompt.columns and name not in taken}


def _group_arguments(signature: VerifierSignature, prompt: Prompt, rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """What TRL would pass: parallel lists, and completions as messages where the prompt is a conversation."""
    count = len(rollouts)
    chat, asked = _conversation(prompt), prompt.columns.get("prompt")
    said = [tuple(t for t, own in zip(r.tokens, r.mask, strict=True) if own) for r in rollouts]
    own: dict[str, Any] = {
        "prompts": [chat or (asked if isinstance(asked, str) else prompt.text)] * count,
        "completions": [[{"role": "assistant", "content": r.text}] if chat else r.text for r in rollouts],
        "completion_ids": [list(ids) for ids in said],
        "prompt_ids": [
            prompt.tokens if r.tokens == prompt.tokens + ids else None for r, ids in zip(rollouts, said, strict=True)
        ],
        "prompt_texts": [prompt.text] * count,
        "trainer_state": None,
    } | {name: ignore for name in TRL_HOOKS if name != "trainer_state"}
    reserved = {*own, "prompt", "completion"} - {*signature.required}
    wanted = prompt.columns if signature.takes_all else (*signature.required, *signature.optional)
    columns = {n: [prompt.columns[n]] * count for n in wanted if n in prompt.columns and n not in reserved}
    return columns | {name: own[name] for name in signature.arguments}


def _conversation(prompt: Prompt) -> list[Any] | None:
    """The messages a row asks with, where it has them: without the answer that a row of messages may end in."""
    asked, whole = prompt.columns.get("prompt"), prompt.columns.get("messages")
    if _is_chat(asked):
        return list(asked)
    if _is_chat(whole):
        return list(whole[:-1] if whole[-1]["role"] == "assistant" else whole)
    return None


def _is_chat(value: Any) -> TypeGuard[Sequence[Any]]:
    return isinstance(value, Sequence) and not isinstance(value, str) and bool(value) and "role" in value[0]
