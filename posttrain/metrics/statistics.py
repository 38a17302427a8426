"""Estimates from evaluation samples, with intervals. Pure functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np


def wilson(successes: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """The score interval of a share of independent successes (Wilson, JASA 22, 1927); z = 1.96 covers 95 %.

    `successes` may be a sum of partial scores. Never leaves [0, 1] and has width at 0 and n successes; n = 0 says
    nothing: (0, 1).
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes out of {n}")
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half) if successes else 0.0, min(1.0, centre + half) if successes < n else 1.0


def clustered_interval(
    per_problem_scores: Sequence[Sequence[float]], seed: int = 0, resamples: int = 2000
) -> tuple[float, float, float]:
    """Mean over problems of each problem's mean score, with a 95 % percentile bootstrap over problems.

    Samples of one problem share its difficulty, so problems are drawn, never single samples (cluster-robust in the
    sense of 2411.00640). Problems weigh the same whatever their number of samples. With few problems, or when all
    score alike, the interval is too narrow: below some thirty problems read it with care.
    Returns (mean, low, high); raises ValueError for no problems or a problem without scores.
    """
    if not per_problem_scores or not all(len(scores) for scores in per_problem_scores):
        raise ValueError("an interval needs at least one problem, and a score for each")
    means = np.array([math.fsum(scores) / len(scores) for scores in per_problem_scores])
    draw = np.random.default_rng(seed)
    # One resample at a time: all at once would take resamples x problems integers of memory.
    replicates = np.array([means[draw.integers(0, len(means), len(means))].mean() for _ in range(resamples)])
    low, high = np.quantile(replicates, [0.025, 0.975])
    return float(means.mean()), float(low), float(high)


def resampled_means(values: Sequence[float], draw: np.random.Generator, resamples: int) -> np.ndarray:
    """`[resamples]` means of as many values drawn with replacement: the bootstrap distribution of their mean.

    A mean depends on how often each distinct value is drawn only, so counts are drawn rather than indices.
    """
    distinct, counts = np.unique(np.asarray(values, dtype=float), return_counts=True)
    n, means = int(counts.sum()), []
    # Some megabytes at a time, however many values are distinct.
    step = max(1, 1_000_000 // len(distinct))
    for start in range(0, resamples, step):
        drawn = draw.multinomial(n, counts / n, size=min(step, resamples - start))
        means.append(drawn @ distinct / n)
    return np.concatenate(means)


def binomial_test(wins: int, losses: int) -> float:
    """Two-sided exact p-value of so uneven a split where a win and a loss are equally likely; 1 for none of either.

    McNemar's exact test, given the problems that one of two systems solves and the other does not.
    """
    n, fewer = wins + losses, min(wins, losses)
    # Whole numbers: the powers of two of large n are no floats.
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n)


def sign_flip_test(differences: Sequence[float], seed: int = 0, flips: int = 20_000) -> float:
    """Two-sided p-value of a sum of differences where each was as likely to have the other sign: what holds where two
    systems are the same and only their labels differ.

    Exact over all signs of up to 14 differences that are not 0; else over `flips` random ones and those observed,
    which keeps the test's level (Phipson & Smyth 2010). The order and the sign of all differences do not matter.
    """
    sizes = np.sort(np.abs([d for d in differences if d]))
    if not len(sizes):
        return 1.0
    # Sums of fractions that are equal on paper differ in their last bits.
    reached = abs(math.fsum(differences)) * (1 - 1e-9) - 1e-12
    if len(sizes) <= 14:
        sums = np.zeros(1)
        for size in sizes:
            sums = np.concatenate([sums + size, sums - size])
        return float((np.abs(sums) >= reached).mean())
    draw, count = np.random.default_rng(seed), 0
    for start in range(0, flips, 1000):
        signs = draw.integers(0, 2, (min(1000, flips - start), len(sizes)), dtype=np.int8)
        count += int((np.abs(2 * (signs @ sizes) - sizes.sum()) >= reached).sum())
    return (count + 1) / (flips + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for how many there are (Holm 1979), in their order: below .05 where the family of tests calls
    one of equal systems different at most once in twenty times, whatever depends on what."""
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = largest
    return adjusted


def both_quantiles(level: float, power: float) -> float:
    """What a difference must be, in its standard errors, to be found with `power` by a two-sided test at `level`."""
    normal = NormalDist()
    return normal.inv_cdf(1 - level / 2) + normal.inv_cdf(power)
