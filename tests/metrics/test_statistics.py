"""Intervals that cover as often as they say, and pass@k against enumeration."""

import math

import numpy as np
import pytest

from posttrain.metrics.statistics import clustered_interval, wilson


@pytest.mark.parametrize(("n", "p"), [(20, 0.1), (20, 0.5), (100, 0.03), (100, 0.5), (100, 0.9)])
def test_wilson_covers_a_known_rate_about_95_times_in_a_hundred(n, p):
    covered = 0.0
    for successes in range(n + 1):
        low, high = wilson(successes, n)
        if low <= p <= high:
            covered += math.comb(n, successes) * p**successes * (1 - p) ** (n - successes)
    assert 0.91 <= covered <= 0.99


def test_wilson_ends_are_the_rates_whose_own_error_just_reaches_the_estimate():
    for successes, n in [(1, 7), (13, 50), (99, 100)]:
        for end in wilson(successes, n):
            assert abs(successes / n - end) == pytest.approx(1.96 * math.sqrt(end * (1 - end) / n), rel=1e-9)


def test_wilson_has_width_at_the_borders_and_says_nothing_of_nothing():
    assert wilson(0, 10)[0] == 0.0 < wilson(0, 10)[1] < 0.35
    assert wilson(10, 10)[1] == 1.0 > wilson(10, 10)[0] > 0.65
    assert wilson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="3 successes out of 2"):
        wilson(3, 2)


def test_clustered_interval_covers_the_mean_of_a_bernoulli_bank_where_one_that_ignores_problems_does_not():
    rng = np.random.default_rng(7)
    runs, covered, naive = 300, 0, 0
    for run in range(runs):
        rates = rng.beta(0.5, 0.5, size=60)
        scores = (rng.random((60, 8)) < rates[:, None]).astype(float)
        mean, low, high = clustered_interval(scores.tolist(), seed=run, resamples=300)
        assert mean == pytest.approx(scores.mean(), abs=1e-12)
        covered += low <= 0.5 <= high
        low, high = wilson(scores.sum(), scores.size)
        naive += low <= 0.5 <= high
    assert 0.90 <= covered / runs <= 0.98
    assert naive / runs < 0.75


def test_clustered_interval_has_the_width_of_the_standard_error_between_problems():
    rng = np.random.default_rng(1)
    scores = rng.random((400, 4))
    error = scores.mean(axis=1).std() / math.sqrt(400)
    mean, low, high = clustered_interval(scores.tolist())
    assert (high - low) / 2 == pytest.approx(1.96 * error, rel=0.06)
    assert low < mean < high


def test_problems_weigh_the_same_whatever_their_number_of_samples():
    mean, low, high = clustered_interval([[1.0], [0.0, 0.0, 0.0]])
    assert (mean, low, high) == (0.5, 0.0, 1.0)


def test_the_same_seed_gives_the_same_interval():
    scores = [[0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [1.0, 0.0]]
    assert clustered_interval(scores, seed=3) == clustered_interval(scores, seed=3)


@pytest.mark.parametrize("scores", [[], [[1.0], []]])
def test_an_interval_of_nothing_is_refused(scores):
    with pytest.raises(ValueError, match="at least one problem"):
        clustered_interval(scores)
