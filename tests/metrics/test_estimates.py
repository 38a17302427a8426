"""pass@k and maj@k against the mean over every subset, written out."""

from __future__ import annotations

import itertools
import random
from collections import Counter

import pytest

from posttrain.metrics.estimates import majority_at_k, pass_at_k


def slow_pass(right: list[bool], k: int) -> float:
    subsets = list(itertools.combinations(right, k))
    return sum(any(subset) for subset in subsets) / len(subsets)


def slow_majority(answers: list[str | None], scores: list[float], k: int) -> float:
    """Count the votes of every subset; the winners share."""
    worth = {a: [s for b, s in zip(answers, scores, strict=True) if a == b] for a in answers}
    total, subsets = 0.0, list(itertools.combinations(answers, k))
    for subset in subsets:
        votes = Counter(a for a in subset if a is not None)
        winners = [a for a, count in votes.items() if count == max(votes.values())]
        total += sum(sum(worth[a]) / len(worth[a]) for a in winners) / max(len(winners), 1)
    return total / len(subsets)


@pytest.mark.parametrize("n", [1, 2, 5, 8])
def test_pass_at_k_is_the_share_of_subsets_with_a_right_response(n: int) -> None:
    for right in range(n + 1):
        for k in range(1, n + 1):
            slow = slow_pass([i < right for i in range(n)], k)
            assert pass_at_k(n, right, k) == pytest.approx(slow, abs=1e-12)


def test_pass_at_k_is_exact_where_binomials_are_beyond_floats() -> None:
    # One right response of 2000 is in half of the subsets of 1000.
    assert pass_at_k(2000, 1, 1000) == pytest.approx(0.5, abs=1e-12)


def test_pass_at_k_refuses_what_is_no_draw() -> None:
    for n, right, k in ((4, 5, 1), (4, 1, 5), (4, 1, 0), (4, -1, 1)):
        with pytest.raises(ValueError, match=f"pass@{k} of {n} responses"):
            pass_at_k(n, right, k)


def test_maj_at_k_is_the_vote_of_every_subset() -> None:
    draw = random.Random(0)
    for _ in range(120):
        n = draw.randint(1, 8)
        answers = [draw.choice(["a", "b", "c", "d", None]) for _ in range(n)]
        scores = [draw.choice([0.0, 0.5, 1.0]) for _ in range(n)]
        for k in range(1, n + 1):
            assert majority_at_k(answers, scores, k) == pytest.approx(slow_majority(answers, scores, k), abs=1e-12)


def test_answers_with_equally_many_votes_share_and_none_does_not_vote() -> None:
    assert majority_at_k(["a", "a", "b", "b"], [1.0, 1.0, 0.0, 0.0], 4) == pytest.approx(0.5)
    assert majority_at_k(["a", None, None], [1.0, 0.0, 0.0], 3) == 1.0
    assert majority_at_k([None, None], [0.0, 0.0], 2) == 0.0


def test_maj_at_k_of_many_answers_is_what_a_draw_of_subsets_gives() -> None:
    draw = random.Random(1)
    answers: list[str | None] = [draw.choice("abcdefgh") for _ in range(64)]
    scores = [float(a == "a") for a in answers]
    drawn = []
    for _ in range(4000):
        votes = Counter(draw.sample(answers, 16))
        winners = [a for a, count in votes.items() if count == max(votes.values())]
        drawn.append(float("a" in winners) / len(winners))
    mean = sum(drawn) / len(drawn)
    # Four standard errors of a mean of 4000 numbers in [0, 1].
    assert majority_at_k(answers, scores, 16) == pytest.approx(mean, abs=4 * 0.5 / 4000**0.5)
