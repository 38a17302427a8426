"""What a reward model is worth, measured from the numbers that it said. Pure functions; no torch.

Intervals cover 95 %. Rows are plain dictionaries, so that they can be written as JSON. Functions of `pairs` raise
PosttrainError where there are none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from posttrain.errors import PosttrainError
from posttrain.metrics.statistics import clustered_interval, wilson

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class ScoredPair:
    """What a reward model said of two responses to one prompt, the first of which the data prefers.

    Raises PosttrainError for a number that is not finite: it would count as neither right nor wrong.
    """

    chosen: float
    rejected: float
    chosen_length: int
    """Tokens of the response alone."""
    rejected_length: int
    margin: float | None = None
    """By how much the data prefers the first, in the data's own unit; None where it does not say."""
    subset: str = ""

    def __post_init__(self) -> None:
        for name in ("chosen", "rejected", "margin"):
            value = getattr(self, name)
            if value is not None and not math.isfinite(value):
                raise PosttrainError(f"{name} is {value}: a pair is measured from finite numbers; leave it out")

    @property
    def gap(self) -> float:
        return self.chosen - self.rejected

    @property
    def right(self) -> float:
        """1 where the model prefers what the data prefers, 1/2 where it says the same of both."""
        return 1.0 if self.chosen > self.rejected else 0.5 if self.chosen == self.rejected else 0.0


def pair_accuracy(pairs: Sequence[ScoredPair]) -> tuple[float, float, float]:
    """The share of pairs that the model orders as the data does, ties counting 1/2, with Wilson's interval:
    (accuracy, low, high)."""
    return _share([pair.right for pair in _some(pairs)])


def accuracy_by_margin(pairs: Sequence[ScoredPair], buckets: int = 5) -> list[Row]:
    """Accuracy among pairs that are about equally clear, ascending: rows {by, low, high, count, accuracy,
    accuracy_low, accuracy_high}.

    `by` is "margin" where every pair has the data's, else "difference", of the model's own scores without sign. Buckets
    end with its quantiles, `low` and `high` are the smallest and the largest in a bucket. Equal values share a bucket,
    so there may be fewer than `buckets`.
    """
    by = "margin" if all(pair.margin is not None for pair in _some(pairs)) else "difference"
    clear = np.array([pair.margin if by == "margin" else abs(pair.gap) for pair in pairs], dtype=float)
    ends = np.quantile(clear, np.arange(1, buckets) / buckets)
    place, rows = np.searchsorted(ends, clear, side="left"), []
    for bucket in np.unique(place):
        members = np.flatnonzero(place == bucket)
        low, high = float(clear[members].min()), float(clear[members].max())
        rows.append({"by": by, "low": low, "high": high, **_accuracy([pairs[i] for i in members])})
    return rows


def accuracy_by_subset(pairs: Sequence[ScoredPair]) -> list[Row]:
    """Rows {subset, count, accuracy, accuracy_low, accuracy_high} of every subset, by name."""
    names = sorted({pair.subset for pair in _some(pairs)})
    return [{"subset": name, **_accuracy([pair for pair in pairs if pair.subset == name])} for name in names]


def calibration(pairs: Sequence[ScoredPair], bins: int = 10, slope: float = 1.0) -> tuple[float, list[Row]]:
    """Whether the model is as often right as it says: (expected calibration error, rows {predicted, right, right_low,
    right_high, count}).

    By Bradley and Terry's model it gives the response that it prefers a probability of sigmoid(slope x |difference of
    scores|), from 1/2 to 1: that range in equal bins, ascending, empty ones left out. `predicted` is the mean of these
    probabilities, `right` the share of pairs in which the data prefers the same one (Wilson's interval); the error is
    the mean over pairs of their bin's |predicted - right| (1706.04599). A tie says 1/2 and is half right.
    """
    # Gaps are not negative here: exp cannot overflow.
    said = np.array([1 / (1 + math.exp(-slope * abs(pair.gap))) for pair in _some(pairs)])
    place = np.minimum(((said - 0.5) * 2 * bins).astype(int), bins - 1)
    rows, error = [], 0.0
    for bin_ in np.unique(place):
        members = np.flatnonzero(place == bin_)
        predicted = math.fsum(said[members]) / len(members)
        right, low, high = _share([pairs[i].right for i in members])
        rows.append(
            {"predicted": predicted, "right": right, "right_low": low, "right_high": high, "count": len(members)}
        )
        error += len(members) / len(pairs) * abs(predicted - right)
    return error, rows


def length_correlation(pairs: Sequence[ScoredPair]) -> Row:
    """How much of a score is length: {pearson, spearman, unequal, longer_by_model, longer_by_data}.

    The correlations of score and length go over all responses; None where either is the same for all. Of the `unequal`
    pairs, whose lengths differ, the shares in which the model and the data prefer the longer one (the model's ties
    count 1/2); None where there are none.
    """
    scores = np.array([score for pair in _some(pairs) for score in (pair.chosen, pair.rejected)], dtype=float)
    lengths = np.array([n for pair in pairs for n in (pair.chosen_length, pair.rejected_length)], dtype=float)
    unequal = [pair for pair in pairs if pair.chosen_length != pair.rejected_length]
    data = [float(pair.chosen_length > pair.rejected_length) for pair in unequal]
    model = [pair.right if longer else 1 - pair.right for pair, longer in zip(unequal, data, strict=True)]
    return {
        "pearson": _correlation(scores, lengths),
        "spearman": _correlation(_ranks(scores), _ranks(lengths)),
        "unequal": len(unequal),
        "longer_by_model": math.fsum(model) / len(unequal) if unequal else None,
        "longer_by_data": math.fsum(data) / len(unequal) if unequal else None,
    }


def best_of_n(
    proxy: Sequence[Sequence[float]],
    gold: Sequence[Sequence[float]],
    ns: Iterable[int],
    seed: int = 0,
    resamples: int = 2000,
) -> list[Row]:
    """`[P][N]` scores twice to one row per n: what the response is worth that the proxy scores highest of n.

    Rows {n, kl, proxy, gold, gold_low, gold_high}, ascending. Both scores are means over prompts, and within one over
    all subsets of n of its responses, without bias and without drawing any (2210.10760); of equal proxy scores each is
    as likely to be taken. `kl` is log n - (n - 1) / n, in nats an upper bound of KL(best of n || policy) (2401.01879).
    The interval is a bootstrap over prompts. Raises PosttrainError for no prompts, for an n that is not within 1 and
    the fewest responses to a prompt, and for scores that are not finite or not as many here as there.
    """
    if not proxy or len(proxy) != len(gold):
        raise PosttrainError(f"best of n: proxy scores of {len(proxy)} prompts and gold scores of {len(gold)}")
    said, worth = [np.array(row, dtype=float) for row in proxy], [np.array(row, dtype=float) for row in gold]
    for prompt, (a, b) in enumerate(zip(said, worth, strict=True)):
        if len(a) != len(b):
            raise PosttrainError(f"best of n, prompt {prompt}: {len(a)} proxy scores and {len(b)} gold scores")
        if not (np.isfinite(a).all() and np.isfinite(b).all()):
            raise PosttrainError(f"best of n, prompt {prompt}: a score is not finite; leave the prompt out")
    fewest, rows = min(len(a) for a in said), []
    for n in sorted(set(ns)):
        if not 1 <= n <= fewest:
            raise PosttrainError(
                f"best of n: n = {n}, but a prompt has {fewest} responses; sample more or ask for less"
            )
        chances = [_chosen(a, n) for a in said]
        taken = [float(chance @ a) for chance, a in zip(chances, said, strict=True)]
        earned = [[float(chance @ b)] for chance, b in zip(chances, worth, strict=True)]
        mean, low, high = clustered_interval(earned, seed, resamples)
        kl = math.log(n) - (n - 1) / n
        rows.append(
            {"n": n, "kl": kl, "proxy": math.fsum(taken) / len(taken), "gold": mean, "gold_low": low, "gold_high": high}
        )
    return rows


def peak(rows: Sequence[Row]) -> int:
    """The n of `best_of_n` whose gold score is highest: beyond it the proxy is over-optimised. Of equal ones the
    smallest."""
    return int(max(sorted(rows, key=lambda row: row["n"]), key=lambda row: row["gold"])["n"])


def consistency(blocks: Sequence[Sequence[Sequence[float]]]) -> Row:
    """Contrast instructions (2309.16155): `[Q][2][2]` scores r(I_i, R_j) of two similar instructions and their own
    responses, to {blocks, response, response_low, response_high, instruction, instruction_low, instruction_high}.

    `response` is the share of 1[r(I1, R1) > r(I1, R2)] and 1[r(I2, R2) > r(I2, R1)], `instruction` that of
    1[r(I1, R1) > r(I2, R1)] and 1[r(I2, R2) > r(I1, R2)]; equal scores tell nothing apart and count 0. The two answers
    of a block are not independent, so Wilson's interval counts blocks. Raises PosttrainError for no blocks, another
    shape, and scores that are not finite.
    """
    if not len(blocks):
        raise PosttrainError("consistency cannot be measured on no blocks; give it pairs of similar instructions")
    for number, block in enumerate(blocks):
        if [len(row) for row in block] != [2, 2]:
            raise PosttrainError(f"consistency: block {number} is {block!r}, not [[I1R1, I1R2], [I2R1, I2R2]]")
    table = np.array(blocks, dtype=float)
    if not np.isfinite(table).all():
        raise PosttrainError("consistency: a score is not finite; leave its block out")
    own, other = table[:, [0, 1], [0, 1]], table[:, [0, 1], [1, 0]]
    row: Row = {"blocks": len(table)}
    # Against the other response under the same instruction, and under the other instruction with the same response.
    for name, against in (("response", other), ("instruction", other[:, ::-1])):
        shares = (own > against).mean(axis=1).tolist()
        row[name], row[f"{name}_low"], row[f"{name}_high"] = _share(shares)
    return row


def _some(pairs: Sequence[ScoredPair]) -> Sequence[ScoredPair]:
    if not pairs:
        raise PosttrainError("a reward model cannot be measured on no pairs; give it held-out ones")
    return pairs


def _share(right: Sequence[float]) -> tuple[float, float, float]:
    total = math.fsum(right)
    return total / len(right), *wilson(total, len(right))


def _accuracy(pairs: Sequence[ScoredPair]) -> Row:
    accuracy, low, high = pair_accuracy(pairs)
    return {"count": len(pairs), "accuracy": accuracy, "accuracy_low": low, "accuracy_high": high}


def _ranks(values: np.ndarray) -> np.ndarray:
    """`[N]` to `[N]`: places from 1, equal values at the mean of theirs."""
    _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place]


def _correlation(x: np.ndarray, y: np.ndarray) -> float | None:
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def _chosen(scores: np.ndarray, n: int) -> np.ndarray:
    """`[N]` to `[N]`: the probability of each response to score highest among n drawn without replacement.

    The one with i below it is the best of C(i, n - 1) of all C(N, n) subsets. Equal scores share their chances evenly,
    as if their order had been drawn.
    """
    subsets = math.comb(len(scores), n)
    # Exact integers, divided last: binomials of large N are beyond floats.
    by_rank = np.array([math.comb(i, n - 1) / subsets for i in range(len(scores))])
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    shares = [math.fsum(by_rank[end - count : end]) / count for end, count in zip(ends, counts, strict=True)]
    return np.array(shares)[place]
