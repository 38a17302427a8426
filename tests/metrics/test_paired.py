"""Paired differences: intervals that cover, tests that err as often as they say, and sizes that have the power they
promise."""

import math

import numpy as np
import pytest

from posttrain.metrics.paired import paired, paired_interval, problems_needed
from posttrain.metrics.statistics import binomial_test, resampled_means, sign_flip_test

QUICK = {"resamples": 500}


def named(values):
    return {f"p/{index}": float(value) for index, value in enumerate(values)}


def covers(interval, truth):
    return interval[0] - 1e-12 <= truth <= interval[1] + 1e-12


@pytest.mark.parametrize(("n", "won", "lost"), [(15, 0.05, 0.02), (30, 0.05, 0.02), (30, 0.15, 0.05), (150, 0.1, 0.1)])
def test_the_interval_of_single_verdicts_covers_where_percentiles_of_the_plain_bootstrap_may_not(n, won, lost):
    rng = np.random.default_rng(n)
    runs, covered, plain = 300, 0, 0
    for run in range(runs):
        differences = rng.choice([1.0, -1.0, 0.0], n, p=[won, lost, 1 - won - lost])
        covered += covers(paired_interval(differences.tolist(), run, **QUICK), won - lost)
        drawn = rng.choice(differences, (500, n)).mean(axis=1)
        plain += covers(np.quantile(drawn, [0.025, 0.975]), won - lost)
    # Three standard errors of 95 % in 300; above it is only cautious.
    assert covered / runs >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / runs)
    if (n, won) in ((15, 0.05), (30, 0.05)):
        assert plain / runs < 0.85


@pytest.mark.parametrize("n", [10, 30, 150])
def test_the_interval_of_means_of_samples_covers(n):
    rng = np.random.default_rng(n)
    runs, covered = 300, 0
    for run in range(runs):
        rates = rng.beta(0.5, 0.8, n)
        better = np.minimum(rates + 0.1, 1.0)
        differences = (rng.binomial(8, better) - rng.binomial(8, rates)) / 8
        covered += covers(paired_interval(differences.tolist(), run, **QUICK), TRUTH)
    assert covered / runs >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / runs)


RATES = np.random.default_rng(0).beta(0.5, 0.8, 400_000)
TRUTH = float((np.minimum(RATES + 0.1, 1.0) - RATES).mean())


def test_few_means_of_samples_are_widened_as_students_quantile_asks():
    values = [0.1, 0.25, -0.3, 0.4, 0.05]
    low, high = paired_interval(values, seed=5)
    plain = np.quantile(resampled_means(values, np.random.default_rng(5), 10_000), [0.025, 0.975]) - 0.1
    # Student's quantile at 4 degrees of freedom is 2.7764, the approximation within 1 %.
    assert [low - 0.1, high - 0.1] == pytest.approx(plain * 2.7764 / 1.95996 * math.sqrt(5 / 4), rel=0.01)


def test_on_many_problems_the_interval_is_the_normal_one():
    rng = np.random.default_rng(1)
    for differences in (rng.normal(0.1, 0.3, 600), rng.choice([1.0, 0.0, -1.0], 600, p=[0.2, 0.7, 0.1])):
        low, high = paired_interval(differences.tolist())
        error = 1.96 * differences.std() / math.sqrt(len(differences))
        # Quantiles of 10 000 resamples are known to about 2 % of the interval.
        assert low == pytest.approx(differences.mean() - error, abs=0.05 * error)
        assert high == pytest.approx(differences.mean() + error, abs=0.05 * error)


@pytest.mark.parametrize(
    "values",
    [
        [1.0, 0.0, 0.0, -1.0, 1.0],
        [0.3, -0.1, 0.25],
        [1.0, -1.0],
        [0.71357, 0.31731, 0.05193, -0.05193, -0.31731, -0.71357],
        [1.0],
    ],
)
def test_the_other_order_of_systems_negates_everything_to_the_last_bit(values):
    low, high = paired_interval(values, seed=3)
    assert paired_interval([-v for v in values], seed=3) == (-high, -low)
    assert paired_interval(values[::-1], seed=3) == (low, high)
    zeros = named([0.0] * len(values))
    there, back = paired(zeros, named(values), False), paired(named(values), zeros, False)
    assert (there.difference, there.won, there.lost, there.p) == (-back.difference, back.lost, back.won, back.p)
    assert (there.tied, there.spread) == (back.tied, back.spread)


def test_identical_systems_differ_by_nothing_and_the_interval_still_has_width():
    same = named([1, 0, 1, 1, 0, 0, 1, 0, 0, 0] * 3)
    found = paired(same, same, single=True)
    assert (found.difference, found.p, found.won, found.lost, len(found.tied)) == (0.0, 1.0, (), (), 30)
    assert found.low == -found.high < -0.02
    assert problems_needed(found, 0.05) is None


def test_one_problem_says_little_of_a_verdict_and_nothing_of_a_mean():
    verdict = paired(named([0]), named([1]), single=True)
    assert (verdict.problems, verdict.difference, verdict.p) == (1, 1.0, 1.0)
    assert verdict.low <= -0.3 < verdict.high == 1.0
    mean = paired(named([0.25]), named([0.5]), single=False)
    assert (mean.low, mean.high, mean.p, problems_needed(mean, 0.05)) == (None, None, 1.0, None)


def test_single_verdicts_take_mcnemar_and_all_others_flip_signs():
    a, b = [1, 1, 0, 0, 0, 0, 0, 1], [1, 0, 1, 1, 1, 1, 0, 1]
    exact = paired(named(a), named(b), single=True)
    assert (exact.test, exact.p) == ("McNemar, exact", binomial_test(4, 1))
    assert exact.won == ("p/2", "p/3", "p/4", "p/5")
    assert (exact.lost, exact.tied) == (("p/1",), ("p/0", "p/6", "p/7"))
    assert paired(named(a), named(b), single=False).test == "sign flips"
    halves = paired(named([0.5, 1.0]), named([1.0, 0.5]), single=True)
    assert (halves.test, halves.p) == ("sign flips", sign_flip_test([0.5, -0.5]))


def test_problems_that_one_of_the_systems_has_no_score_for_are_left_out():
    found = paired({"a": 1.0, "b": 0.0, "c": 1.0}, {"b": 1.0, "c": 1.0, "d": 0.0}, single=True)
    assert (found.problems, found.difference, found.won, found.tied) == (2, 0.5, ("b",), ("c",))
    with pytest.raises(ValueError, match="no problem"):
        paired({"a": 1.0}, {"b": 1.0}, single=True)


def test_sums_in_another_order_are_ties():
    found = paired({"a": 0.1 + 0.2}, {"a": 0.3}, single=False)
    assert (found.tied, found.difference, found.p) == (("a",), 0.0, 1.0)


def test_problems_needed_are_those_of_the_difference_that_is_asked_for():
    found = paired(named([0.0] * 4), named([1.0, 1.0, -1.0, 1.0]), True)
    assert (found.difference, found.spread) == (0.5, 1.0)
    assert problems_needed(found, 0.05) == math.ceil((1.959964 + 0.841621) ** 2 / 0.25) == 32
    assert problems_needed(found, 0.01, 0.9) == math.ceil((2.575829 + 1.281552) ** 2 / 0.25) == 60
    assert problems_needed(found, 0.05, 0.8, 0.1) == math.ceil((1.959964 + 0.841621) ** 2 / 0.01) == 785
    level = paired(named([0.0] * 4), named([1.0, -1.0, 1.0, -1.0]), True)
    assert problems_needed(level, 0.05) is None
    assert problems_needed(level, 0.05, smallest=0.5) == math.ceil((1.959964 + 0.841621) ** 2 * 4 / 3 / 0.25) == 42


def test_as_many_problems_as_are_asked_for_find_the_difference_four_times_in_five():
    rng = np.random.default_rng(8)
    won, lost = 0.18, 0.08
    pilot = rng.permutation([1.0] * 18 + [-1.0] * 8 + [0.0] * 74)
    needed = problems_needed(paired(named([0.0] * 100), named(pilot), True), 0.05)
    # (1.960 + 0.842)^2 (.26 - .1^2) 100 / 99 / .1^2
    assert needed == math.ceil(7.849 * 0.25 * 100 / 99 / 0.01)
    runs = rng.choice([1.0, -1.0, 0.0], (2000, needed), p=[won, lost, 1 - won - lost])
    p = [binomial_test(int((run > 0).sum()), int((run < 0).sum())) for run in runs]
    # The exact test is a little cautious: its actual level is below .05.
    assert 0.74 <= np.mean(np.array(p) < 0.05) <= 0.84
