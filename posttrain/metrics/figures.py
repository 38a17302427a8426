"""What an evaluation says, from its items alone: the same when it is drawn and when it is scored again."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from posttrain.errors import GradingError
from posttrain.metrics.estimates import majority_at_k, pass_at_k
from posttrain.metrics.reliability import best_of_n
from posttrain.metrics.results import Item, Sampled
from posttrain.metrics.statistics import clustered_interval, wilson

Figures = dict[str, float]
LARGEST = 1e300
"""Numbers of subsets beyond this are beyond floats."""


def figures(items: Sequence[Item], seed: int = 0, best_of: str | None = None) -> Figures:
    """Figures by name, each followed by NAME_low and NAME_high, which cover 95 %.

    Of the samples: accuracy (avg@k), pass_at_K and maj_at_K for K = 2, 4, 8, ..., the means of several graders' own
    scores, best_of_K under the grader `best_of`; of the greedy responses: greedy. Of both: length_mean, and the shares
    of responses that were truncated (truncated_fraction) or have no answer to be found (no_answer), with greedy_ before
    the latter's. One right or wrong answer to each problem is a proportion, with Wilson's interval; elsewhere problems
    are drawn again (bootstrap), never single samples, with the random numbers of `seed`.

    A response that could not be graded is left out of its problem, and counted in `ungraded`; a problem with fewer
    than K graded ones is left out of what K responses are worth. Raises GradingError where nothing could be graded.
    """
    sampled = [item.sampled for item in items]
    greedy = [(item.greedy,) for item in items if item.greedy is not None]
    found: Figures = {"problems": float(len(items))}
    if any(sampled):
        found["samples_per_problem"] = float(max(map(len, sampled)))
        found |= _scores("accuracy", sampled, seed) | _repeated(sampled, seed) | _about(sampled, "", seed)
        found |= _parts(sampled, seed)
    if greedy:
        found |= _scores("greedy", greedy, seed) | _about(greedy, "greedy_" if any(sampled) else "", seed)
        found |= {} if any(sampled) else _parts(greedy, seed)
    found["ungraded"] = float(sum(s.score is None for of in [*sampled, *greedy] for s in of))
    return found | (_best_of(sampled, best_of, seed) if best_of is not None else {})


def _scores(name: str, responses: Sequence[Sequence[Sampled]], seed: int) -> Figures:
    scores = [[s.score for s in of if s.score is not None] for of in responses]
    if not any(scores):
        which = "no greedy answer to" if name == "greedy" else "none of"
        raise GradingError(f"{which} {len(responses)} held-out problems could be graded: {_why(responses)}")
    return _mean(name, [of for of in scores if of], seed)


def _repeated(sampled: Sequence[Sequence[Sampled]], seed: int) -> Figures:
    """What K of a problem's samples are worth together, for K = 2, 4, 8, ..."""
    graded = [[s for s in of if s.score is not None] for of in sampled]
    binary = {s.score for of in graded for s in of} <= {0.0, 1.0}
    answered = any(s.answer is not None for of in graded for s in of)

    def passed(of: Sequence[Sampled], k: int) -> float:
        return pass_at_k(len(of), sum(s.score == 1.0 for s in of), k)

    def voted(of: Sequence[Sampled], k: int) -> float:
        return majority_at_k([s.answer for s in of], [s.score or 0.0 for s in of], k)

    kinds: list[tuple[str, Callable[[Sequence[Sampled], int], float]]] = [("pass", passed)] if binary else []
    kinds += [("maj", voted)] if answered else []
    found: Figures = {}
    for k in _powers(max(map(len, graded))):
        whole = [of for of in graded if len(of) >= k]
        if max(math.comb(len(of), k) for of in whole) > LARGEST:
            break
        for name, worth in kinds:
            # An estimate is no proportion, whatever values it took.
            found |= _bootstrap(f"{name}_at_{k}", [[worth(of, k)] for of in whole], seed)
    return found


def _about(responses: Sequence[Sequence[Sampled]], prefix: str, seed: int) -> Figures:
    rows: dict[str, list[list[float]]] = {
        "length_mean": [[float(s.length) for s in of] for of in responses],
        "truncated_fraction": [[float(s.truncated) for s in of] for of in responses],
        "no_answer": [[float(s.unanswered) for s in of] for of in responses],
    }
    found: Figures = {}
    for name, row in rows.items():
        kept = [of for of in row if of]
        # A length of 0 or 1 tokens is no proportion.
        found |= (_bootstrap if name == "length_mean" else _mean)(f"{prefix}{name}", kept, seed)
    return found


def _parts(responses: Sequence[Sequence[Sampled]], seed: int) -> Figures:
    """The mean of each grader's own scores, and of their parts, where there are several."""
    several = [[s.parts if len(s.parts) > 1 else {} for s in of] for of in responses]
    found: Figures = {}
    for name in sorted({part for of in several for parts in of for part in parts}):
        values = [[v for parts in of if (v := parts.get(name)) is not None] for of in several]
        if any(values):
            found |= _mean(name, [of for of in values if of], seed)
    return found


def _best_of(sampled: Sequence[Sequence[Sampled]], name: str, seed: int) -> Figures:
    """What the response is worth to the other graders that the grader `name` scores highest of n, for n = 1, 2, 4, ...

    A problem with a response that a grader could not score is left out. Raises GradingError where none is left, or
    where there is no such grader.
    """
    parts = [[s.parts for s in of] for of in sampled]
    others = sorted({part for row in parts for found in row for part in found if part != name and "." not in part})
    if not any(name in found for row in parts for found in row):
        raise GradingError(f"evaluation.best_of: no grader is called {name!r}; there are {', '.join(others)}")
    found: Figures = {}
    for other in others or [name]:
        whole = [row for row in parts if row and all(f.get(p) is not None for f in row for p in (name, other))]
        if not whole:
            raise GradingError(f"evaluation.best_of: no problem has all its responses scored by {name} and {other}")
        proxy, gold = ([[float(f[p] or 0.0) for f in row] for row in whole] for p in (name, other))
        ns = [1, *_powers(min(64, *map(len, whole)))]
        for row in best_of_n(proxy, gold, ns, seed=seed):
            prefix = f"best_of_{row['n']}"
            found |= {f"{prefix}/{name}": row["proxy"], f"{prefix}/kl": row["kl"]}
            if others:
                found |= {f"{prefix}/{other}{end}": row[f"gold{end}"] for end in ("", "_low", "_high")}
    return found


def _mean(name: str, rows: Sequence[Sequence[float]], seed: int) -> Figures:
    """The mean over problems. Right or wrong once for each is a proportion, for which Wilson's interval is better near
    0 and 1.
    """
    values = [value for row in rows for value in row]
    if len(values) > len(rows) or not set(values) <= {0.0, 1.0}:
        return _bootstrap(name, rows, seed)
    low, high = wilson(sum(values), len(values))
    return {name: sum(values) / len(values), f"{name}_low": low, f"{name}_high": high}


def _bootstrap(name: str, rows: Sequence[Sequence[float]], seed: int) -> Figures:
    values = {value for row in rows for value in row}
    # Of equal values every draw has the same mean.
    mean, low, high = clustered_interval(rows, seed=seed) if len(values) > 1 else (*values, *values, *values)
    return {name: mean, f"{name}_low": low, f"{name}_high": high}


def _powers(most: int) -> list[int]:
    """2, 4, 8, ... up to `most`."""
    return [2**i for i in range(1, max(most, 1).bit_length()) if 2**i <= most]


def _why(responses: Sequence[Sequence[Sampled]]) -> str:
    return next((s.reason for of in responses for s in of if s.reason), "no reason given")
