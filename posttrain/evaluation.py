"""A benchmark is prompts and a grader: the same grader that rewards training. Every figure carries its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from posttrain.errors import GradingError
from posttrain.metrics.statistics import clustered_interval, wilson
from posttrain.rewards import Grader
from posttrain.rollout import Sampler
from posttrain.rollout.collect import Draw, describe, draw_groups
from posttrain.types import Group, Prompt, Sampling


@dataclass(frozen=True)
class Benchmark:
    """Held-out problems and how they are measured."""

    prompts: Sequence[Prompt]
    grader: Grader
    samples: int
    """Completions per problem for avg@k."""
    temperature: float
    max_tokens: int
    greedy: bool
    seed: int


@dataclass(frozen=True)
class Result:
    """`metrics` for the log, and every group behind them: sampled ones first, then greedy ones."""

    metrics: dict[str, float]
    groups: list[Group]


def evaluate(sampler: Sampler, benchmark: Benchmark) -> Result:
    """avg@k at the benchmark's temperature with a bootstrap interval over problems, and greedy accuracy with Wilson's.

    A response that could not be graded is left out of its problem's mean and counted, never scored 0. The seeds do
    not depend on the training step: two evaluations of the same weights are the same.
    """
    sampling = Sampling(temperature=benchmark.temperature, max_tokens=benchmark.max_tokens)
    groups = _drawn(sampler, benchmark, benchmark.samples, sampling)
    scores = [[v.score for v in g.verdicts if v.score is not None] for g in groups]
    if not any(scores):
        raise GradingError(f"none of {len(groups)} held-out problems could be graded: {_why(groups)}")
    mean, low, high = clustered_interval([s for s in scores if s], seed=benchmark.seed)
    described = describe(groups).values()
    metrics = {
        "eval/accuracy": mean,
        "eval/accuracy_low": low,
        "eval/accuracy_high": high,
        "eval/samples_per_problem": float(benchmark.samples),
        "eval/problems": float(len(benchmark.prompts)),
        "eval/length_mean": described["rollout/length_mean"],
        "eval/truncated_fraction": described["rollout/truncated_fraction"],
        "eval/ungraded": float(sum(v.score is None for g in groups for v in g.verdicts)),
    }
    if benchmark.greedy:
        greedy = _drawn(sampler, benchmark, 1, Sampling(temperature=0.0, max_tokens=benchmark.max_tokens))
        graded = [v.score for g in greedy for v in g.verdicts if v.score is not None]
        if not graded:
            raise GradingError(f"no greedy answer could be graded: {_why(greedy)}")
        mean, low, high = clustered_interval([[s] for s in graded], seed=benchmark.seed)
        if set(graded) <= {0.0, 1.0}:
            # Right or wrong once per problem is a proportion, for which Wilson's interval is better near 0 and 1.
            low, high = wilson(sum(graded), len(graded))
        metrics |= {"eval/greedy": mean, "eval/greedy_low": low, "eval/greedy_high": high}
        groups = groups + greedy
    return Result(metrics, groups)


def _drawn(sampler: Sampler, benchmark: Benchmark, samples: int, sampling: Sampling) -> list[Group]:
    draw = Draw(len(benchmark.prompts), samples, sampling, benchmark.seed)
    word = "evaluate" if sampling.temperature else "greedy"
    groups, _ = draw_groups(sampler, benchmark.prompts, benchmark.grader, draw, (word, 0))
    return groups


def _why(groups: Sequence[Group]) -> str:
    return next((v.reason for g in groups for v in g.verdicts if v.reason), "no reason given")


def summary(before: dict[str, float], after: dict[str, float]) -> dict[str, float | None]:
    """The figures of a run's summary, from the metrics of its first and last evaluation."""
    return {
        "accuracy_before": before.get("eval/accuracy"),
        "accuracy_after": after.get("eval/accuracy"),
        "greedy_before": before.get("eval/greedy"),
        "greedy_after": after.get("eval/greedy"),
    }
