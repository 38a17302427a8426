"""Prompts to graded Groups: draw, grade, keep what the algorithm can learn from, and draw again where it asks to."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from posttrain.algorithms.credit import informative
from posttrain.algorithms.table import Algorithm
from posttrain.data.stream import PromptStream
from posttrain.errors import TrainingError
from posttrain.metrics import Report
from posttrain.rewards import Grader
from posttrain.rollout import Request, Sampler, request_seed
from posttrain.types import Group, Prompt, Rollout, Sampling


@dataclass(frozen=True)
class Draw:
    """How many responses to how many prompts, and how they are drawn."""

    prompts: int
    group_size: int
    sampling: Sampling
    seed: int


@dataclass
class Collected:
    """A step's roll-outs: `groups` are learnt from, `dropped` were drawn and graded but teach nothing."""

    groups: list[Group] = field(default_factory=list)
    dropped: list[Group] = field(default_factory=list)
    report: Report = field(default_factory=Report)


def collect(
    sampler: Sampler, stream: PromptStream, grader: Grader, algorithm: Algorithm, draw: Draw, step: int
) -> Collected:
    """One step's groups. Under dynamic selection, groups whose responses all score the same are replaced by fresh
    ones until there are enough or the row's rounds are used up.

    Raises TrainingError, with the pass rates seen, when no group at all can be learnt from.
    """
    out = Collected()
    dynamic = algorithm.selection.kind == "dynamic"
    rounds = int(algorithm.selection["max_rounds"]) if dynamic else 1
    for number in range(1, rounds + 1):
        wanted = draw.prompts - len(out.groups)
        groups, report = draw_groups(sampler, stream.take(wanted), grader, draw, ("train", step))
        out.report += report + Report.mean("rollout/rounds", 1.0, 1 if number == 1 else 0)
        for group in groups:
            keep = not dynamic or informative(algorithm, group)
            (out.groups if keep else out.dropped).append(group)
        if len(out.groups) == draw.prompts:
            break
    if not out.groups:
        raise TrainingError(
            f"step {step}: none of {len(out.dropped)} groups in {rounds} rounds had responses of different scores, so "
            f"there is nothing to learn; mean scores seen: {_histogram(out.dropped)}. Use easier or harder prompts, a "
            "larger rollout.group_size, or algorithm.selection: all"
        )
    out.report += Report.mean("rollout/dropped_groups", len(out.dropped), 1)
    return out


def draw_groups(
    sampler: Sampler, prompts: Sequence[Prompt], grader: Grader, draw: Draw, purpose: tuple[str, int]
) -> tuple[list[Group], Report]:
    """Draw `group_size` responses to each prompt and grade them. `purpose` (a word, a step) goes into the seeds."""
    word, step = purpose
    requests = [
        Request(prompt, request_seed(draw.seed, word, step, prompt.id, k), word)
        for prompt in prompts
        for k in range(draw.group_size)
    ]
    started = time.perf_counter()
    rollouts = sampler.generate(requests, draw.sampling)
    drawn = time.perf_counter()
    size = draw.group_size
    per_prompt = [tuple(rollouts[i * size : (i + 1) * size]) for i in range(len(prompts))]
    verdicts = grader.grade(list(zip(prompts, per_prompt, strict=True)))
    graded = time.perf_counter()
    groups = [Group(*parts) for parts in zip(prompts, per_prompt, verdicts, strict=True)]
    report = describe(groups)
    report += Report.sum("rollout/seconds", drawn - started) + Report.sum("grade/seconds", graded - drawn)
    report += Report.mean("rollout/tokens_per_second", sum(r.length for r in rollouts), drawn - started)
    return groups, report


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
