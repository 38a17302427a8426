"""Report: sums and counts that add to the same bits in any order."""

import itertools
import math
import pickle
import random
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.errors import TrainingError
from posttrain.metrics import Report

numbers = st.floats(-1e12, 1e12, allow_nan=False)
one = st.one_of(
    st.builds(Report.mean, st.sampled_from(["a/mean", "b/mean"]), numbers, st.integers(0, 10**6)),
    st.builds(Report.sum, st.just("c/sum"), numbers),
    st.builds(Report.maximum, st.just("d/max"), numbers),
)
reports = st.lists(one, max_size=4).map(lambda parts: sum(parts, Report()))


@given(reports, reports, reports)
def test_addition_is_associative_and_commutative_to_the_last_bit(a, b, c):
    assert (a + b) + c == a + (b + c)
    assert a + b == b + a
    assert a + Report() == a == Report() + a


@given(st.lists(st.tuples(numbers, st.integers(1, 50)), min_size=1, max_size=30), st.randoms())
def test_a_mean_is_the_exact_quotient_however_the_parts_are_grouped(parts, shuffle):
    exact = float(sum(Fraction(total) for total, _ in parts) / sum(count for _, count in parts))
    shuffled = parts[:]
    shuffle.shuffle(shuffled)
    half = len(parts) // 2
    left = sum((Report.mean("m", *part) for part in shuffled[:half]), Report())
    right = sum((Report.mean("m", *part) for part in shuffled[half:]), Report())
    assert (left + right).values() == {"m": exact}


def test_a_mean_over_micro_batches_of_different_sizes_is_no_mean_of_means():
    rng = random.Random(0)
    tokens = [rng.gauss(0, 1) for _ in range(101)]
    cuts = [0, 1, 7, 60, 101]
    whole = sum((Report.mean("x", math.fsum(tokens[i:j]), j - i) for i, j in itertools.pairwise(cuts)), Report())
    assert whole.values()["x"] == pytest.approx(math.fsum(tokens) / 101, rel=1e-14)


def test_totals_that_floats_would_lose_are_kept():
    parts = [1e16, 1.0, -1e16]
    assert sum(parts) == 0.0
    assert sum((Report.sum("x", part) for part in parts), Report()).values() == {"x": 1.0}


def test_maxima_keep_the_largest_and_gauges_average():
    total = Report.maximum("m", -3) + Report.maximum("m", -2) + Report.value("lr", 1e-5) + Report.value("lr", 3e-5)
    assert total.values() == {"lr": 2e-5, "m": -2.0}
    assert Report.of({"a": 1, "b": 0.5}).values() == {"a": 1.0, "b": 0.5}
    assert Report.of({"a": 1}).under("eval").values() == {"eval/a": 1.0}


def test_a_mean_of_nothing_is_left_out_until_something_is_counted():
    empty = Report.mean("reward/mean", 0.0, 0)
    assert empty.values() == {}
    assert (empty + Report.mean("reward/mean", 3.0, 2)).values() == {"reward/mean": 1.5}


def test_one_name_for_two_kinds_is_refused():
    with pytest.raises(ValueError, match="x: a mean and a maximum do not add"):
        Report.mean("x", 1, 1) + Report.maximum("x", 1)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused_by_name(bad):
    with pytest.raises(TrainingError, match="learn/ratio_max"):
        Report.maximum("learn/ratio_max", bad)


def test_a_negative_count_is_refused():
    with pytest.raises(ValueError, match="a count of -1"):
        Report.mean("x", 1, -1)


def test_a_report_crosses_processes_unchanged():
    report = Report.mean("x", 0.1, 3) + Report.maximum("y", 0.2)
    assert pickle.loads(pickle.dumps(report)) == report
