"""Prompts to graded Groups: draw, grade, keep what the algorithm can learn from, and draw again where it asks to."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Protocol, cast

from posttrain.algorithms.row import Algorithm
from posttrain.algorithms.selection import asks_for, informative, note_spread, rounds
from posttrain.algorithms.state import RowState
from posttrain.data.stream import PromptStream
from posttrain.errors import TrainingError
from posttrain.metrics import Report
from posttrain.rollout import Request, Sampler, Streaming, request_seed
from posttrain.types import Author, Group, Prompt, Rollout, Sampling, Verdict

Groups = Sequence[tuple[Prompt, Sequence[Rollout]]]
Told = Callable[[int, int], None] | None
"""Hears how many of how many questions are answered."""


class Grades(Protocol):
    """What is asked of a grader: one verdict per response, in the groups' own shape."""

    def grade(self, groups: Groups, told: Told = None) -> list[tuple[Verdict, ...]]: ...


class Early(Protocol):
    """A step's groups, of which each is graded as soon as it is there."""

    def add(self, group: int, rollouts: Sequence[Rollout]) -> None:
        """All responses to the prompt of this number; raises nothing."""

    def verdicts(self, groups: Groups) -> list[tuple[Verdict, ...]]:
        """What `Grades.grade` says of all groups, in their order."""


class Ungraded:
    """A grader for what is never compared by its worth: every response scores 0."""

    def grade(self, groups: Groups, told: Told = None) -> list[tuple[Verdict, ...]]:
        return [tuple(Verdict(0.0) for _ in rollouts) for _, rollouts in groups]


@dataclass(frozen=True)
class Draw:
    """How many responses to how many prompts, and how they are drawn."""

    prompts: int
    group_size: int
    sampling: Sampling
    seed: int
    opponents: int = 0
    """How many of a group's responses are asked of an opponent: its last ones."""


@dataclass(frozen=True)
class Chosen:
    """The row that says which groups are worth learning from, with what it remembers of earlier steps."""

    algorithm: Algorithm
    state: RowState


@dataclass
class Collected:
    """A step's roll-outs: `groups` are learnt from, `dropped` were drawn and graded but teach nothing."""

    groups: list[Group] = field(default_factory=list)
    dropped: list[Group] = field(default_factory=list)
    report: Report = field(default_factory=Report)


def collect(sampler: Sampler, stream: PromptStream, grader: Grades, chosen: Chosen, draw: Draw, step: int) -> Collected:
    """One step's groups. Under a selection with rounds, what cannot be learnt from is replaced by fresh draws until
    there is enough or the rounds are used up.

    Raises TrainingError, with the pass rates seen, when no group at all can be learnt from.
    """
    out, algorithm = Collected(), chosen.algorithm
    seen: Counter[str] = Counter()
    for number in range(1, rounds(algorithm) + 1):
        prompts = stream.take(draw.prompts - len(out.groups))
        greedy: list[Verdict | None] = [None] * len(prompts)
        if algorithm.needs.greedy:
            prompts, greedy = _worth_sampling(sampler, grader, algorithm, draw, prompts, out)
        out.report += Report.mean("rollout/rounds", 1.0, 1 if number == 1 else 0)
        if not prompts:
            continue
        groups, report = draw_groups(sampler, prompts, grader, draw, ("train", step), seen)
        out.report += report
        for group, verdict in zip(groups, greedy, strict=True):
            keep = algorithm.selection.kind == "all" or informative(algorithm, group, chosen.state)
            (out.groups if keep else out.dropped).append(replace(group, greedy=verdict))
        if len(out.groups) == draw.prompts:
            break
    note_spread(algorithm, [*out.groups, *out.dropped], chosen.state)
    if not out.groups:
        raise TrainingError(_starved(algorithm, out, step))
    out.report += Report.mean("rollout/dropped_groups", len(out.dropped), 1)
    return out


def _starved(algorithm: Algorithm, out: Collected, step: int) -> str:
    """Why a step has nothing to learn from, and what helps."""
    tries = rounds(algorithm)
    if not out.dropped:
        return (
            f"step {step}: every prompt of {tries} rounds had a greedy answer that was right already, so there is "
            "nothing to learn. Use harder prompts, or algorithm.selection: all"
        )
    return (
        f"step {step}: none of {len(out.dropped)} groups in {tries} rounds had responses of different scores, so "
        f"there is nothing to learn; mean scores seen: {_histogram(out.dropped)}. Use easier or harder prompts, a "
        "larger rollout.group_size, or algorithm.selection: all"
    )


def _worth_sampling(
    sampler: Sampler, grader: Grades, algorithm: Algorithm, draw: Draw, prompts: Sequence[Prompt], out: Collected
) -> tuple[list[Prompt], list[Verdict | None]]:
    """The prompts that the row wants sampled, with the verdict on a greedy response to each."""
    single = Draw(len(prompts), 1, replace(draw.sampling, temperature=0.0), draw.seed)
    groups, report = draw_groups(sampler, prompts, grader, single, ("baseline", 0))
    verdicts = [group.verdicts[0] for group in groups]
    wanted = [asks_for(algorithm, verdict) for verdict in verdicts]
    scores = [v.score for v in verdicts if v.score is not None]
    spent = {"rollout/seconds", "rollout/tokens_per_second", "rollout/tokens", "grade/seconds"}
    out.report += Report({name: entry for name, entry in report.entries.items() if name in spent})
    out.report += Report.mean("rollout/greedy_score", sum(scores), len(scores))
    out.report += Report.mean("rollout/greedy_ungraded", len(verdicts) - len(scores), len(verdicts))
    out.report += Report.mean("rollout/greedy_skipped", len(wanted) - sum(wanted), len(wanted))
    kept = [(p, v) for p, v, wants in zip(prompts, verdicts, wanted, strict=True) if wants]
    return [p for p, _ in kept], [v for _, v in kept]


def draw_groups(
    sampler: Sampler,
    prompts: Sequence[Prompt],
    grader: Grades,
    draw: Draw,
    purpose: tuple[str, int],
    seen: Counter[str] | None = None,
) -> tuple[list[Group], Report]:
    """Draw `group_size` responses to each prompt and grade them. `purpose` (a word, a step) goes into the seeds, and so
    does how often a prompt was `seen` before under it, or its responses would be the same ones again.
    """
    word, step = purpose
    seen = Counter() if seen is None else seen
    requests = []
    for prompt in prompts:
        first = seen[prompt.id] * draw.group_size
        seen[prompt.id] += 1
        requests += [
            Request(prompt, request_seed(draw.seed, word, step, prompt.id, first + k), word, _author(draw, k))
            for k in range(draw.group_size)
        ]
    started = time.perf_counter()
    size = draw.group_size
    with _early(sampler, grader, prompts) as early:
        if early is None:
            rollouts = sampler.generate(requests, draw.sampling)
        else:
            rollouts = cast(Streaming, sampler).stream(requests, draw.sampling, _Gathering(early, size))
        drawn = time.perf_counter()
        per_prompt = [tuple(rollouts[i * size : (i + 1) * size]) for i in range(len(prompts))]
        whole = list(zip(prompts, per_prompt, strict=True))
        verdicts = grader.grade(whole) if early is None else early.verdicts(whole)
    graded = time.perf_counter()
    groups = [Group(*parts) for parts in zip(prompts, per_prompt, verdicts, strict=True)]
    report = describe(groups)
    report += Report.sum("rollout/seconds", drawn - started) + Report.sum("grade/seconds", graded - drawn)
    report += Report.mean("rollout/tokens_per_second", sum(r.length for r in rollouts), drawn - started)
    return groups, report


@contextmanager
def _early(sampler: Sampler, grader: Grades, prompts: Sequence[Prompt]) -> Iterator[Early | None]:
    """Where both sides can, what grades groups while others are drawn."""
    begin = getattr(grader, "early", None)
    if begin is None or not hasattr(sampler, "stream"):
        yield None
        return
    with begin(prompts) as early:
        yield early


class _Gathering:
    """Hears single responses, and hands groups of `size` on once they are whole."""

    def __init__(self, early: Early, size: int) -> None:
        self.early, self.size = early, size
        self._found: dict[int, dict[int, Rollout]] = {}

    def __call__(self, index: int, rollout: Rollout) -> None:
        group, member = divmod(index, self.size)
        found = self._found.setdefault(group, {})
        found[member] = rollout
        if len(found) == self.size:
            del self._found[group]
            self.early.add(group, [found[k] for k in range(self.size)])


def _author(draw: Draw, k: int) -> Author:
    return "opponent" if k >= draw.group_size - draw.opponents else "policy"


def describe(groups: Sequence[Group]) -> Report:
    """What groups look like: reward and its parts, verdicts by status, length, truncation."""
    report = Report()
    for group in groups:
        scores = [v.score for v in group.verdicts if v.score is not None]
        report += Report.mean("reward/mean", sum(scores), len(scores))
        report += Report.mean("reward/mixed_groups", float(len(set(scores)) > 1), 1)
        for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True):
            report += _one(rollout) + Report.sum(f"verdict/{verdict.status}", 1)
            for name, part in verdict.parts.items():
                if part is not None and len(verdict.parts) > 1:
                    report += Report.mean(f"reward/{name}", part, 1)
    return report


def _one(rollout: Rollout) -> Report:
    return (
        Report.mean("rollout/length_mean", rollout.length, 1)
        + Report.maximum("rollout/length_max", rollout.length)
        + Report.mean("rollout/truncated_fraction", float(rollout.truncated), 1)
        + Report.sum("rollout/tokens", rollout.length)
    )


def _histogram(groups: Sequence[Group]) -> str:
    """Mean scores of groups, rounded to tenths, with how many groups had each."""
    means: Counter[str] = Counter()
    for group in groups:
        scores = [v.score for v in group.verdicts if v.score is not None]
        means[f"{sum(scores) / len(scores):.1f}" if scores else "ungraded"] += 1
    return ", ".join(f"{mean}: {count}" for mean, count in sorted(means.items()))
