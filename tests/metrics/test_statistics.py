"""Intervals that cover, and tests that err, as often as they say; exact ones against enumeration."""

import math
from itertools import product

import numpy as np
import pytest

from posttrain.metrics.statistics import (
    binomial_test,
    both_quantiles,
    clustered_interval,
    holm,
    resampled_means,
    sign_flip_test,
    wilson,
)


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


def test_the_binomial_test_is_the_share_of_all_outcomes_that_are_as_uneven():
    for n in range(11):
        outcomes = [sum(signs) for signs in product((0, 1), repeat=n)]
        for wins in range(n + 1):
            uneven = sum(abs(2 * found - n) >= abs(2 * wins - n) for found in outcomes)
            assert binomial_test(wins, n - wins) == pytest.approx(uneven / 2**n, rel=1e-12)
    assert binomial_test(0, 0) == 1.0
    assert 0 < binomial_test(1500, 2000) < 1e-10


def test_sign_flips_are_the_share_of_all_signs_that_sum_up_to_as_much():
    rng = np.random.default_rng(2)
    for n in (1, 2, 5, 10):
        differences = rng.integers(-4, 5, n) / 4
        sums = [
            abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in product((1, -1), repeat=n)
        ]
        share = np.mean([found >= abs(differences.sum()) for found in sums])
        assert sign_flip_test(differences.tolist()) == pytest.approx(share, rel=1e-12)


def test_sign_flips_of_single_verdicts_are_the_binomial_test_whether_enumerated_or_drawn():
    for wins, losses in ((3, 8), (1, 12), (25, 11), (60, 40)):
        drawn = sign_flip_test([1.0] * wins + [-1.0] * losses + [0.0] * 20)
        exact = binomial_test(wins, losses)
        # Four standard errors of a share among 20 000 flips; none where all signs are gone through.
        assert drawn == pytest.approx(exact, abs=1e-12 if wins + losses <= 14 else 4 * math.sqrt(exact / 20_000))


def test_sign_flips_know_neither_order_nor_direction_and_nothing_of_ties():
    differences = np.random.default_rng(3).normal(0.2, 1, 40).tolist()
    found = sign_flip_test(differences)
    assert found == sign_flip_test(differences[::-1]) == sign_flip_test([-d for d in differences])
    assert found == sign_flip_test([*differences, *[0.0] * 9])
    assert sign_flip_test([0.0] * 5) == 1.0
    assert sign_flip_test([1.0] * 40) == 1 / 20_001


def test_sign_flips_of_equal_systems_are_below_five_per_cent_as_often_as_they_say():
    rng = np.random.default_rng(4)
    found = [sign_flip_test((rng.binomial(4, 0.5, 12) - rng.binomial(4, 0.5, 12)).tolist()) for _ in range(400)]
    # Four standard errors above .05; ties make the test conservative.
    assert 0.01 < np.mean(np.array(found) <= 0.05) <= 0.05 + 4 * math.sqrt(0.05 * 0.95 / 400)


def test_holm_multiplies_by_how_many_are_left_and_never_falls():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def test_holm_calls_one_of_ten_equal_systems_different_at_most_once_in_twenty_times():
    rng = np.random.default_rng(5)
    families = rng.random((2000, 10))
    wrong = np.mean([min(holm(family.tolist())) <= 0.05 for family in families])
    # Of independent uniform values 1 - (1 - .05 / 10)^10 = .049; within three standard errors.
    assert wrong == pytest.approx(0.049, abs=3 * math.sqrt(0.049 * 0.951 / 2000))


def test_resampled_means_have_the_bootstraps_mean_and_variance():
    values = [0.0, 0.0, 0.5, 1.0, 1.0, 1.0, -1.0]
    found = resampled_means(values, np.random.default_rng(6), 40_000)
    # Four standard errors of a mean, and of a variance, of 40 000 nearly normal values.
    variance = np.var(values) / len(values)
    assert found.mean() == pytest.approx(np.mean(values), abs=4 * math.sqrt(variance / 40_000))
    assert found.var() == pytest.approx(variance, rel=4 * math.sqrt(2 / 40_000))
    assert set(np.round(found * 14) / 14) <= {k / 14 for k in range(-14, 15)}


def test_both_quantiles_are_those_of_the_field():
    assert both_quantiles(0.05, 0.8) == pytest.approx(1.959964 + 0.841621, abs=1e-5)
    assert both_quantiles(0.01, 0.5) == pytest.approx(2.575829, abs=1e-5)
