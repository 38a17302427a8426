"""A benchmark is prompts and a grader: the same grader that rewards training. Every figure carries its interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from posttrain.errors import GradingError
from posttrain.metrics.reliability import best_of_n
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
    best_of: str | None = None
    """The grader whose favourite of n responses is measured by the others."""


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
    metrics |= {f"eval/{name.removeprefix('reward/')}": v for name, v in described.items() if _is_part(name)}
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
    if benchmark.best_of is not None:
        metrics |= _best_of(groups[: len(benchmark.prompts)], benchmark)
    return Result(metrics, groups)


def _best_of(groups: Sequence[Group], benchmark: Benchmark) -> dict[str, float]:
    """What the response is worth to the other graders that one of them scores highest of n, for n = 1, 2, 4, ...

    A problem with a response that a grader could not score is left out. Raises GradingError where none is left, or
    where there is no such grader.
    """
    name = benchmark.best_of
    assert name is not None
    parts = [[v.parts for v in group.verdicts] for group in groups]
    others = sorted({part for row in parts for found in row for part in found if part != name and "." not in part})
    if not any(name in found for row in parts for found in row):
        raise GradingError(f"evaluation.best_of: no grader is called {name!r}; there are {', '.join(others)}")
    metrics: dict[str, float] = {}
    ns = [n for n in (1, 2, 4, 8, 16, 32, 64) if n <= benchmark.samples]
    for other in others or [name]:
        whole = [row for row in parts if all(f.get(p) is not None for f in row for p in (name, other))]
        if not whole:
            raise GradingError(f"evaluation.best_of: no problem has all its responses scored by {name} and {other}")
        proxy, gold = ([[float(f[p] or 0.0) for f in row] for row in whole] for p in (name, other))
        for found in best_of_n(proxy, gold, ns, seed=benchmark.seed):
            prefix = f"eval/best_of_{found['n']}"
            metrics |= {f"{prefix}/{name}": found["proxy"], f"{prefix}/kl": found["kl"]}
            if others:
                metrics |= {f"{prefix}/{other}{end}": found[f"gold{end}"] for end in ("", "_low", "_high")}
    return metrics


def _drawn(sampler: Sampler, benchmark: Benchmark, samples: int, sampling: Sampling) -> list[Group]:
    draw = Draw(len(benchmark.prompts), samples, sampling, benchmark.seed)
    word = "evaluate" if sampling.temperature else "greedy"
    groups, _ = draw_groups(sampler, benchmark.prompts, benchmark.grader, draw, (word, 0))
    return groups


def _why(groups: Sequence[Group]) -> str:
    return next((v.reason for g in groups for v in g.verdicts if v.reason), "no reason given")


def _is_part(name: str) -> bool:
    """Whether a figure is the mean of one grader's own scores, where there are several."""
    return name.startswith("reward/") and name not in ("reward/mean", "reward/mixed_groups")


FIGURES = ("accuracy", "greedy", "preferred", "likelier", "nll", "margin")
"""What a summary says of the first and the last evaluation."""


def summary(before: dict[str, float], after: dict[str, float]) -> dict[str, float | None]:
    """The figures of a run's summary with their intervals, from the metrics of its first and last evaluation."""
    found: dict[str, float | None] = {}
    for when, line in (("before", before), ("after", after)):
        for name in FIGURES:
            for end in ("", "_low", "_high"):
                if f"eval/{name}{end}" in line or name in ("accuracy", "greedy"):
                    found[f"{name}_{when}{end}"] = line.get(f"eval/{name}{end}")
    return found
