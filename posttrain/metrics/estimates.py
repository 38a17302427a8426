"""What k responses to a problem would have been worth, from n that were drawn: exact, without drawing any subset."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def pass_at_k(n: int, right: int, k: int) -> float:
    """The probability that at least one of k responses is right, of n of which `right` are: 1 - C(n - c, k) / C(n, k)
    (2107.03374, eq. 1). Unbiased where the n are independent. Raises ValueError unless 1 <= k <= n and 0 <= c <= n.
    """
    if not (1 <= k <= n and 0 <= right <= n):
        raise ValueError(f"pass@{k} of {n} responses, {right} of which are right")
    # Exact integers, divided last: binomials of large n are beyond floats.
    return 1.0 - math.comb(n - right, k) / math.comb(n, k)


def majority_at_k(answers: Sequence[str | None], scores: Sequence[float], k: int) -> float:
    """What the answer that most of k responses give is worth, in the mean over all subsets of k of the n (2203.11171).

    Responses without an answer do not vote; answers with equally many votes share; a subset without an answer is worth
    0. An answer is worth the mean score of those that gave it. Raises ValueError unless 1 <= k <= n, and where there
    are not as many answers as scores.
    """
    n = len(answers)
    if not (1 <= k <= n == len(scores)):
        raise ValueError(f"maj@{k} of {n} answers and {len(scores)} scores")
    given: dict[str, list[float]] = {}
    for answer, score in zip(answers, scores, strict=True):
        if answer is not None:
            given.setdefault(answer, []).append(score)
    counts = [len(of) for of in given.values()]
    silent = n - sum(counts)
    # Answers given equally often are as likely to win.
    chance = {count: _wins(count, counts, silent, k) for count in set(counts)}
    return math.fsum(chance[len(of)] * math.fsum(of) / len(of) for of in given.values())


def _wins(own: int, counts: Sequence[int], silent: int, k: int) -> float:
    """The share of a victory that falls to one answer given `own` times, in the mean over all subsets of k.

    For t votes of its own: the subsets in which s other answers have t votes too and none has more, over s + 1. Their
    numbers are the coefficients of a product over the other answers, `[s, votes]`.
    """
    others = list(counts)
    others.remove(own)
    total = 0.0
    for t in range(1, min(own, k) + 1):
        rest, ties = k - t, (k - t) // t
        ways = np.zeros((ties + 1, rest + 1))
        ways[0] = [math.comb(silent, votes) for votes in range(rest + 1)]
        for count in others:
            longer = np.zeros_like(ways)
            for votes in range(min(t - 1, count, rest) + 1):
                longer[:, votes:] += math.comb(count, votes) * ways[:, : rest + 1 - votes]
            if t <= min(count, rest):
                longer[1:, t:] += math.comb(count, t) * ways[:-1, : rest + 1 - t]
            ways = longer
        total += math.comb(own, t) * float((ways[:, rest] / np.arange(1, ties + 2)).sum())
    return total / math.comb(sum(counts) + silent, k)
