"""What is measured of a reward model, against counting, enumeration and exact fractions."""

import itertools
import math
import statistics
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.errors import PosttrainError
from posttrain.metrics.reliability import (
    ScoredPair,
    accuracy_by_margin,
    accuracy_by_subset,
    best_of_n,
    calibration,
    consistency,
    length_correlation,
    pair_accuracy,
    peak,
)
from posttrain.metrics.statistics import wilson


def pair(gap, margin=None, subset="", lengths=(3, 3)):
    """The model scores the chosen response `gap` higher."""
    return ScoredPair(gap - 1.0, -1.0, *lengths, margin, subset)


gaps = st.sampled_from([-2.0, -0.5, 0.0, 0.25, 1.0, 30.0])


def slow_accuracy(pairs):
    return sum(1 if p.chosen > p.rejected else 0.5 if p.chosen == p.rejected else 0 for p in pairs) / len(pairs)


class TestAccuracy:
    def test_ties_count_half_and_the_interval_is_wilsons(self):
        pairs = [pair(g) for g in (1, 2, 3, -1, 0)]
        assert pair_accuracy(pairs) == (0.7, *wilson(3.5, 5))

    def test_swapping_every_pair_turns_it_round(self):
        pairs = [pair(g) for g in (1, 2, 0, -1, -3, 0.5)]
        swapped = [ScoredPair(p.rejected, p.chosen, 3, 3) for p in pairs]
        assert pair_accuracy(swapped)[0] == pytest.approx(1 - pair_accuracy(pairs)[0])

    @pytest.mark.parametrize("measure", [pair_accuracy, accuracy_by_margin, accuracy_by_subset, calibration])
    def test_no_pairs_are_refused(self, measure):
        with pytest.raises(PosttrainError, match="no pairs"):
            measure([])
        with pytest.raises(PosttrainError, match="no pairs"):
            length_correlation([])

    @pytest.mark.parametrize("numbers", [(math.nan, 0.0, 1, 1), (0.0, math.inf, 1, 1), (0.0, 0.0, 1, 1, math.nan)])
    def test_numbers_that_are_not_finite_are_refused(self, numbers):
        with pytest.raises(PosttrainError, match="finite"):
            ScoredPair(*numbers)

    def test_subsets_are_counted_apart_and_add_up(self):
        pairs = [pair(1, subset="b"), pair(-1, subset="a"), pair(2, subset="b"), pair(-2, subset="b"), pair(0)]
        rows = accuracy_by_subset(pairs)
        assert [(r["subset"], r["count"], r["accuracy"]) for r in rows] == [
            ("", 1, 0.5),
            ("a", 1, 0.0),
            ("b", 3, 2 / 3),
        ]
        assert (rows[2]["accuracy_low"], rows[2]["accuracy_high"]) == wilson(2, 3)
        assert sum(r["count"] * r["accuracy"] for r in rows) / 5 == pytest.approx(pair_accuracy(pairs)[0])


class TestMargins:
    def test_equal_buckets_by_the_datas_margin(self):
        pairs = [pair(1 if i >= 6 else -1, margin=float(i)) for i in (7, 2, 9, 0, 4, 1, 3, 8, 5, 6)]
        rows = accuracy_by_margin(pairs, buckets=5)
        assert [(r["low"], r["high"]) for r in rows] == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
        assert [r["accuracy"] for r in rows] == [0, 0, 0, 1, 1]
        assert {(r["by"], r["count"]) for r in rows} == {("margin", 2)}
        assert (rows[3]["accuracy_low"], rows[3]["accuracy_high"]) == wilson(2, 2)

    def test_a_value_at_a_quantile_belongs_to_the_bucket_below_it(self):
        rows = accuracy_by_margin([pair(1, margin=m) for m in (0.0, 0.0, 0.0, 1.0)], buckets=2)
        assert [(r["low"], r["high"], r["count"]) for r in rows] == [(0, 0, 3), (1, 1, 1)]

    def test_without_a_margin_for_every_pair_the_models_own_difference_counts(self):
        rows = accuracy_by_margin([pair(-3, margin=9.0), pair(1), pair(-0.5, margin=8.0), pair(2)], buckets=2)
        assert [(r["by"], r["low"], r["high"], r["accuracy"]) for r in rows] == [
            ("difference", 0.5, 1.0, 0.5),
            ("difference", 2.0, 3.0, 0.5),
        ]

    @given(st.lists(st.tuples(gaps, st.sampled_from([0.0, 1.0, 2.0, 7.0])), min_size=1, max_size=30), st.integers(1, 6))
    def test_buckets_split_the_pairs_and_equal_margins_stay_together(self, rows, buckets):
        pairs = [pair(gap, margin=margin) for gap, margin in rows]
        found = accuracy_by_margin(pairs, buckets)
        assert 1 <= len(found) <= buckets
        assert sum(r["count"] for r in found) == len(pairs)
        assert all(a["high"] < b["low"] for a, b in itertools.pairwise(found))
        for row in found:
            members = [p for p in pairs if row["low"] <= p.margin <= row["high"]]
            assert row["count"] == len(members)
            assert row["accuracy"] == pytest.approx(slow_accuracy(members))


class TestCalibration:
    @given(st.lists(gaps | st.floats(-5, 5), min_size=1, max_size=40), st.sampled_from([1, 4, 10]))
    def test_bins_and_error_against_counting(self, differences, bins):
        pairs = [pair(g) for g in differences]
        error, rows = calibration(pairs, bins)
        bucket = {}
        for p in pairs:
            said = 1 / (1 + math.exp(-abs(p.chosen - p.rejected)))
            place = next(b for b in range(bins) if said < 0.5 + (b + 1) * 0.5 / bins or b == bins - 1)
            bucket.setdefault(place, []).append((said, slow_accuracy([p])))
        expected, total = [], 0.0
        for place in sorted(bucket):
            said, right = (statistics.fmean(column) for column in zip(*bucket[place], strict=True))
            expected.append((said, right, len(bucket[place])))
            total += len(bucket[place]) * abs(said - right) / len(pairs)
        for row, (said, right, count) in zip(rows, expected, strict=True):
            assert (row["predicted"], row["right"]) == pytest.approx((said, right))
            assert row["count"] == count
            assert (row["right_low"], row["right_high"]) == pytest.approx(wilson(right * count, count))
        assert error == pytest.approx(total, abs=1e-12)

    def test_a_model_that_says_how_often_it_is_right_has_a_small_error_and_one_that_boasts_a_large_one(self):
        draw = np.random.default_rng(0)
        said = draw.uniform(-3, 3, 20_000)
        right = draw.random(20_000) < 1 / (1 + np.exp(-np.abs(said)))
        honest = [pair(float(abs(s) if r else -abs(s))) for s, r in zip(said, right, strict=True)]
        boasting = [pair(4 * (p.chosen - p.rejected)) for p in honest]
        # Ten bins of 2000 pairs, each off by about .4 / sqrt(2000) = .01.
        assert calibration(honest)[0] < 0.02
        assert calibration(boasting)[0] > 0.15
        # Unless what it says is four times the log-odds.
        assert calibration(boasting, slope=0.25) == calibration(honest)
        assert pair_accuracy(honest) == pair_accuracy(boasting)

    def test_a_model_that_says_nothing_is_calibrated(self):
        error, rows = calibration([pair(0.0)] * 3)
        assert error == 0.0
        assert [(r["predicted"], r["right"], r["count"]) for r in rows] == [(0.5, 0.5, 3)]


class TestLength:
    def test_correlations_against_the_standard_library(self):
        draw = np.random.default_rng(1)
        rows = [(*draw.normal(size=2).round(1).tolist(), *draw.integers(1, 6, 2).tolist()) for _ in range(25)]
        found = length_correlation([ScoredPair(*row) for row in rows])
        scores = [x for row in rows for x in row[:2]]
        lengths = [x for row in rows for x in row[2:]]
        assert len(set(scores)) < 50  # there are ties
        assert found["pearson"] == pytest.approx(statistics.correlation(scores, lengths))
        places = [
            [statistics.fmean(at for at, other in enumerate(sorted(column)) if other == x) for x in column]
            for column in (scores, lengths)
        ]
        assert found["spearman"] == pytest.approx(statistics.correlation(*places))

    def test_who_prefers_the_longer_one(self):
        pairs = [
            pair(1, lengths=(9, 2)),  # both
            pair(-1, lengths=(9, 2)),  # the data
            pair(-1, lengths=(2, 9)),  # the model
            pair(0, lengths=(2, 9)),  # neither; the model's tie is half
            pair(1, lengths=(4, 4)),  # says nothing
        ]
        found = length_correlation(pairs)
        assert (found["unequal"], found["longer_by_model"], found["longer_by_data"]) == (4, 0.625, 0.5)

    def test_what_is_the_same_for_all_correlates_with_nothing(self):
        nothing = {"pearson": None, "spearman": None, "unequal": 0, "longer_by_model": None, "longer_by_data": None}
        assert length_correlation([pair(1), pair(2)]) == nothing


class TestBestOfN:
    @given(st.lists(st.tuples(st.integers(0, 4), st.integers(-9, 9)), min_size=1, max_size=6), st.integers(1, 6))
    def test_one_prompt_against_all_subsets_and_all_orders_of_equals(self, rows, n):
        proxy, gold = [float(p) for p, _ in rows], [float(g) for _, g in rows]
        if n > len(rows):
            with pytest.raises(PosttrainError, match=f"n = {n}, but a prompt has {len(rows)} responses"):
                best_of_n([proxy], [gold], [n])
            return
        said, worth = [], []
        for subset in itertools.combinations(range(len(rows)), n):
            top = max(proxy[i] for i in subset)
            said.append(top)
            worth.append(statistics.fmean(gold[i] for i in subset if proxy[i] == top))
        (row,) = best_of_n([proxy], [gold], [n], resamples=2)
        assert row["proxy"] == pytest.approx(statistics.fmean(said), abs=1e-9)
        assert row["gold"] == pytest.approx(statistics.fmean(worth), abs=1e-9)
        assert row["kl"] == pytest.approx(math.log(n) - (n - 1) / n)

    def test_all_responses_are_the_best_of_one_and_the_best_is_the_best_of_all(self):
        rows = best_of_n([[0.3, 0.1, 0.2], [5, 4, 9, 0]], [[1, 2, 3], [1, 0, 7, 0]], [3, 1], resamples=50)
        assert [r["n"] for r in rows] == [1, 3]
        assert rows[0]["gold"] == pytest.approx((2 + 2) / 2)
        assert rows[0]["kl"] == 0.0
        # Of the second prompt's four subsets of three, three hold the 9 and one is left with the 5.
        assert rows[1]["gold"] == pytest.approx((1 + (3 * 7 + 1) / 4) / 2)

    def test_binomials_beyond_floats_do_not_matter(self):
        (row,) = best_of_n([range(4000)], [range(4000)], [2000], resamples=2)
        # The largest of n of 0 ... N - 1 is (N + 1) n / (n + 1) - 1 in the mean.
        assert row["gold"] == pytest.approx(4001 * 2000 / 2001 - 1)

    def test_the_interval_covers_the_mean_of_prompts_about_95_times_in_a_hundred(self):
        draw, covered = np.random.default_rng(3), 0
        for run in range(200):
            gold = draw.normal(size=(40, 4))
            (row,) = best_of_n(gold.tolist(), gold.tolist(), [2], seed=run, resamples=300)
            covered += row["gold_low"] <= 1 / math.sqrt(math.pi) <= row["gold_high"]
        assert 0.88 <= covered / 200 <= 0.99

    def test_a_proxy_that_likes_the_worst_response_most_has_its_peak_before_the_end(self):
        # The gold score rises with the proxy's, but for the very best.
        gold = [[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, -20.0]] * 3
        rows = best_of_n([list(range(8))] * 3, gold, range(1, 9), resamples=10)
        by_hand = [sum(math.comb(i, n - 1) * gold[0][i] for i in range(8)) / math.comb(8, n) for n in range(1, 9)]
        assert peak(rows) == 1 + by_hand.index(max(by_hand))
        assert peak([{"n": 4, "gold": 1.0}, {"n": 2, "gold": 1.0}, {"n": 1, "gold": 0.5}]) == 2

    @pytest.mark.parametrize(
        ("proxy", "gold", "says"),
        [
            ([], [], "0 prompts"),
            ([[1.0]], [[1.0], [2.0]], "1 prompts and gold scores of 2"),
            ([[1.0, 2.0]], [[1.0]], "prompt 0: 2 proxy scores and 1"),
            ([[1.0], [math.nan]], [[1.0], [1.0]], "prompt 1: a score is not finite"),
        ],
    )
    def test_scores_that_do_not_fit_are_refused(self, proxy, gold, says):
        with pytest.raises(PosttrainError, match=says):
            best_of_n(proxy, gold, [1])


class TestConsistency:
    def test_both_ways_round_of_both_questions(self):
        blocks = [
            [[2.0, 1.0], [0.0, 3.0]],  # right in everything
            [[2.0, 3.0], [1.0, 2.5]],  # I1 prefers R2; R2 is liked better under I1
            [[1.0, 1.0], [1.0, 1.0]],  # tells nothing apart
            [[2.0, 0.0], [3.0, 1.0]],  # I2 prefers R1, which is liked better under I2
        ]
        found = consistency(blocks)
        assert found["blocks"] == 4
        assert found["response"] == pytest.approx((2 + 1 + 0 + 1) / 8)
        assert found["instruction"] == pytest.approx((2 + 1 + 0 + 1) / 8)
        assert (found["response_low"], found["response_high"]) == wilson(2, 4)

    def test_the_two_questions_are_told_apart(self):
        # Every instruction prefers its own response, but the second scores everything higher.
        found = consistency([[[1.0, 0.0], [11.0, 12.0]]])
        assert (found["response"], found["instruction"]) == (1.0, 0.5)
        assert consistency([[[1.0, 10.0], [0.0, 11.0]]])["instruction"] == 1.0
        assert consistency([[[1.0, 10.0], [0.0, 11.0]]])["response"] == 0.5

    @pytest.mark.parametrize("blocks", [[], [[[1.0, 2.0]]], [[[1.0], [2.0]]], [[[1.0, math.nan], [0.0, 1.0]]]])
    def test_what_is_no_block_is_refused(self, blocks):
        with pytest.raises(PosttrainError, match="consistency"):
            consistency(blocks)


def test_measuring_imports_neither_torch_nor_matplotlib():
    program = (
        "import sys, posttrain.metrics.reliability, posttrain.metrics.card;"
        "print(sorted({'torch', 'matplotlib', 'pandas'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"
