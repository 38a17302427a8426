"""Two recipes, each trained with several seeds: how they differ, whether that is sure, and how many seeds would tell.

Scores stand as `[benchmarks][seeds]`: entry j of each benchmark is the j-th run, in the order in which runs were made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import combinations
from typing import Any, Literal

import numpy as np

from posttrain.errors import PosttrainError
from posttrain.metrics.statistics import both_quantiles

Scores = Sequence[Sequence[float]]
Verdict = Literal["first", "second", "undecided", "no difference found"]
ARRANGEMENTS = 20_000
"""Ways to share out the seeds between two recipes: all of them up to so many, else random ones."""


@dataclass(frozen=True, slots=True)
class Plan:
    """When a sequential test looks at the seeds: a promise made before the first look, or its level does not hold."""

    per_look: int = 5
    """New seeds of each recipe between looks. Three of each can never tell two recipes apart at 5 %."""
    looks: int = 4
    level: float = 0.05
    """How often equal systems may be told apart, over all looks and pairs."""
    power: float = 0.8
    """How often the number of seeds or problems that is advised would find the difference."""
    smallest: float | None = None
    """The difference that is worth finding; None for the one that was observed."""

    @classmethod
    def of(cls, text: str) -> Plan:
        """What is written as in "power=.9, smallest=.02", the rest by default. Raises PosttrainError for others."""
        known = {field.name: int if field.name in ("per_look", "looks") else float for field in fields(cls)}
        given: dict[str, Any] = {}
        for part in filter(None, map(str.strip, text.split(","))):
            name, _, value = (piece.strip() for piece in part.partition("="))
            try:
                given[name] = known[name](value)
            except KeyError:
                raise PosttrainError(f"plan: {name!r} in {text!r} is none of {', '.join(known)}") from None
            except ValueError:
                raise PosttrainError(
                    f"plan: {part!r} in {text!r} gives no {'whole ' * (known[name] is int)}number; write {name}=NUMBER"
                ) from None
        return cls(**given)

    def __post_init__(self) -> None:
        if self.per_look < 1 or self.looks < 1 or not 0 < self.level < 1:
            raise PosttrainError(
                f"a sequential test with {self.per_look} seeds a look, {self.looks} looks and level {self.level}: "
                "seeds and looks are at least 1, the level is between 0 and 1"
            )
        if not self.level / 2 < self.power < 1:
            raise PosttrainError(
                f"power {self.power}: the share of true differences that is found lies below 1, and above level / 2 = "
                f"{self.level / 2:g}, which chance alone finds; .8 is usual"
            )
        if self.smallest is not None and not 0 < self.smallest < float("inf"):
            raise PosttrainError(
                f"smallest {self.smallest}: a difference above 0 in the metric's own units, as in .02 of an accuracy"
            )


@dataclass(frozen=True, slots=True)
class Decision:
    """What a sequential test says after the seeds there are."""

    verdict: Verdict
    """Which recipe is better; `undecided` while looks are left, `no difference found` after the last."""
    looks: int
    """Looks taken; the last one is that of the decision."""
    add: int
    """Seeds of each recipe that the next look waits for; 0 when there is none."""


@dataclass(frozen=True, slots=True)
class Estimate:
    value: float
    low: float
    high: float
    """Ends of the 95 % interval."""


def interquartile_mean(values: Sequence[float] | np.ndarray) -> np.ndarray:
    """Mean of the middle half along the last axis (2108.13264): a quarter of the weight is cut off at either end, parts
    of a value where their number is no multiple of four."""
    ranked = np.sort(np.asarray(values, dtype=float), axis=-1)
    n = ranked.shape[-1]
    ends = np.clip(np.arange(n + 1), n / 4, 3 * n / 4)
    return np.asarray(ranked @ np.diff(ends) / (n / 2))


def interquartile(scores: Scores, seed: int = 0, resamples: int = 5000) -> Estimate:
    """Interquartile mean over all runs of all benchmarks, with the percentile interval of a bootstrap that draws runs
    within each benchmark (stratified, 2108.13264). Below some five runs a benchmark it is too narrow."""
    drawn = _resampled(scores, np.random.default_rng(seed), resamples)
    flat = np.concatenate([np.asarray(row, dtype=float) for row in scores])
    return _estimate(float(interquartile_mean(flat)), interquartile_mean(np.concatenate(drawn, axis=-1)))


def difference(first: Scores, second: Scores, seed: int = 0, resamples: int = 5000) -> Estimate:
    """The second recipe's interquartile mean less the first one's, with the stratified bootstrap's interval."""
    (a, b), draws = _both(first, second, seed, resamples)
    means = [interquartile_mean(np.concatenate(drawn, axis=-1)) for drawn in draws]
    return _estimate(
        float(interquartile_mean(np.concatenate(b)) - interquartile_mean(np.concatenate(a))), means[1] - means[0]
    )


def improvement(first: Scores, second: Scores, seed: int = 0, resamples: int = 5000) -> Estimate:
    """Probability that a run of the second recipe scores more than one of the first on the same benchmark, ties
    counting 1/2, averaged over benchmarks (2108.13264), with the stratified bootstrap's interval."""
    (a, b), draws = _both(first, second, seed, resamples)

    def share(x: Sequence[np.ndarray], y: Sequence[np.ndarray]) -> np.ndarray:
        signs = [np.sign(v[..., :, None] - u[..., None, :]).mean(axis=(-1, -2)) for u, v in zip(x, y, strict=True)]
        return np.asarray((np.mean(signs, axis=0) + 1) / 2)

    return _estimate(float(share(a, b)), share(*draws))


def seeds_needed(first: Scores, second: Scores, level: float, plan: Plan = Plan()) -> int | None:
    """How many seeds of each recipe would find the plan's smallest difference, or the observed one, with its power at
    `level`, by their means over benchmarks: (z_{1 - level / 2} + z_{power})^2 (s1^2 + s2^2) / difference^2 +
    z_{1 - level / 2}^2 / 4, whose last term is for the t-test's (Guenther 1981). None where no difference is asked for
    or observed, or one seed was."""
    a, b = (np.mean(np.asarray(scores, dtype=float), axis=0) for scores in (first, second))
    gap = plan.smallest or float(b.mean() - a.mean())
    if min(len(a), len(b)) < 2 or not gap:
        return None
    spread = float(a.var(ddof=1) + b.var(ddof=1))
    by_normal = both_quantiles(level, plan.power) ** 2 * spread / gap**2
    return max(2, math.ceil(by_normal + both_quantiles(level, 0.5) ** 2 / 4))


def decide(pairs: Sequence[tuple[Scores, Scores]], plan: Plan, seed: int = 0) -> list[Decision]:
    """A group-sequential permutation test of each pair of recipes, in the manner of AdaStop (2306.10882).

    After each `per_look` seeds the summed difference of the two is held against its values under all ways to share out
    the seeds of each look between them. Of these, a look may reject a share of level / looks, besides what earlier
    looks left unused, and those that an earlier look rejected are spent: equal recipes are told apart with probability
    at most `level` over all looks. Several pairs are tested step by step at level / (pairs not yet decided), as
    Holm's are. Seeds beyond the last full look, or that the other recipe lacks, wait.
    """
    open_pairs = list(range(len(pairs)))
    found: dict[int, Decision] = {}
    while open_pairs:
        now = {i: _sequential(*pairs[i], plan, plan.level / len(open_pairs), seed) for i in open_pairs}
        found |= now
        left = [i for i in open_pairs if now[i].verdict not in ("first", "second")]
        if len(left) == len(open_pairs):
            break
        open_pairs = left
    return [found[i] for i in range(len(pairs))]


def _sequential(first: Scores, second: Scores, plan: Plan, level: float, seed: int) -> Decision:
    a, b = (np.mean(np.asarray(scores, dtype=float), axis=0) for scores in (first, second))
    n = min(len(a), len(b))
    looks = min(n // plan.per_look, plan.looks)
    sums = _permuted_sums(a, b, plan.per_look, looks, np.random.default_rng(seed))
    alive, spent = np.ones(len(sums), dtype=bool), 0
    for look in range(looks):
        reached = np.abs(sums[:, look])
        allowed = level * (look + 1) / plan.looks * len(sums) - spent
        ranked = np.sort(reached[alive])[::-1]
        # The lowest value that no more than the allowed ones reach, however many share it.
        counts = np.searchsorted(-ranked, -ranked, side="right")
        within = ranked[counts <= allowed]
        crossed = alive & (reached >= within[-1]) if len(within) else np.zeros_like(alive)
        if crossed[0]:
            return Decision("second" if sums[0, look] > 0 else "first", look + 1, 0)
        spent += int(crossed.sum())
        alive &= ~crossed
    if looks == plan.looks:
        return Decision("no difference found", looks, 0)
    return Decision("undecided", looks, plan.per_look * (looks + 1) - n)


def _permuted_sums(a: np.ndarray, b: np.ndarray, per_look: int, looks: int, draw: np.random.Generator) -> np.ndarray:
    """`[arrangements, looks]`: the difference summed up to each look, the observed arrangement first; rounded, so that
    sums that are equal on paper are equal."""
    ways = math.comb(2 * per_look, per_look)
    sums = np.zeros((1, 0))
    whole = ways**looks <= ARRANGEMENTS
    for look in range(looks):
        part = slice(look * per_look, (look + 1) * per_look)
        pooled = np.concatenate([b[part], a[part]])
        if whole:
            chosen = np.array([pooled[list(c)].sum() for c in combinations(range(2 * per_look), per_look)])
            block = np.tile(2 * chosen - pooled.sum(), len(sums))
            sums = np.repeat(sums, ways, axis=0)
        else:
            order = np.argsort(draw.random((ARRANGEMENTS, 2 * per_look)), axis=1)
            order[0] = np.arange(2 * per_look)
            block = 2 * pooled[order[:, :per_look]].sum(axis=1) - pooled.sum()
            sums = np.repeat(sums, len(block) // len(sums), axis=0)
        so_far = sums[:, -1] if look else 0.0
        sums = np.column_stack([sums, block + so_far])
    scale = np.abs(np.concatenate([a, b])).max(initial=0.0) or 1.0
    return np.round(sums / scale, 9)


def _both(
    first: Scores, second: Scores, seed: int, resamples: int
) -> tuple[tuple[list[np.ndarray], list[np.ndarray]], tuple[list[np.ndarray], list[np.ndarray]]]:
    """Both recipes' scores as arrays, and resampled."""
    a, b = ([np.asarray(row, dtype=float) for row in scores] for scores in (first, second))
    draw = np.random.default_rng(seed)
    return (a, b), (_resampled(a, draw, resamples), _resampled(b, draw, resamples))


def _resampled(scores: Scores | Sequence[np.ndarray], draw: np.random.Generator, resamples: int) -> list[np.ndarray]:
    """`[resamples, seeds]` for each benchmark: its runs drawn with replacement."""
    rows = [np.asarray(row, dtype=float) for row in scores]
    return [row[draw.integers(0, len(row), (resamples, len(row)))] for row in rows]


def _estimate(value: float, replicates: np.ndarray) -> Estimate:
    low, high = np.quantile(replicates, [0.025, 0.975])
    return Estimate(value, float(min(low, value)), float(max(high, value)))
