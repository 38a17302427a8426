"""Estimates from evaluation samples, with intervals. Pure functions of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence

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
