"""Recipes over seeds: figures against brute force, and a sequential test that errs as often as it says."""

import math
import re
from itertools import combinations, product

import numpy as np
import pytest

from posttrain.errors import PosttrainError
from posttrain.metrics.seeds import (
    Plan,
    decide,
    difference,
    improvement,
    interquartile,
    interquartile_mean,
    seeds_needed,
)
from posttrain.metrics.statistics import both_quantiles


def decided(a, b, plan):
    return decide([([list(a)], [list(b)])], plan)[0]


@pytest.mark.parametrize("n", range(1, 10))
def test_the_interquartile_mean_is_that_of_the_middle_half_of_each_value_four_times(n):
    values = np.random.default_rng(n).random(n)
    middle = np.sort(np.repeat(values, 4))[n : 3 * n]
    assert float(interquartile_mean(values)) == pytest.approx(middle.mean(), rel=1e-12)


def test_the_interquartile_mean_does_not_see_a_failed_seed_and_works_along_the_last_axis():
    assert float(interquartile_mean([0.5, 0.5, 0.5, -100.0])) == 0.5
    assert interquartile_mean([[1.0, 2.0, 3.0, 4.0], [5.0, 5.0, 5.0, 5.0]]).tolist() == [2.5, 5.0]


def test_improvement_counts_pairs_of_runs_within_a_benchmark_and_half_of_ties():
    a, b = [[0.1, 0.5, 0.5], [0.9, 0.9]], [[0.5, 0.6], [0.1, 0.9]]
    pairs = [[(y > x) + (y == x) / 2 for x, y in product(*row)] for row in zip(a, b, strict=True)]
    by_hand = sum(sum(row) / len(row) for row in pairs) / 2
    found = improvement(a, b)
    assert found.value == pytest.approx(by_hand, rel=1e-12)
    assert improvement(b, a).value == pytest.approx(1 - by_hand, rel=1e-12)
    assert 0 <= found.low <= found.value <= found.high <= 1


def test_the_bootstrap_is_over_runs_within_a_benchmark():
    # Each benchmark's runs are the same: whatever is drawn within one, nothing changes.
    level = [[0.2] * 4, [0.8] * 4]
    found = interquartile(level)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.5, 0.5))
    assert difference(level, level).high == pytest.approx(0.0)
    assert improvement(level, [[0.3] * 4, [0.7] * 4]).low == 0.5


@pytest.mark.parametrize("n", [10, 20])
def test_intervals_over_ten_seeds_or_more_cover_about_as_they_say(n):
    rng = np.random.default_rng(n)
    runs, covered = 250, np.zeros(3)
    for run in range(runs):
        a, b = [rng.normal(0, 1, n)], [rng.normal(0.5, 1, n)]
        found = (interquartile(a, run, 300), difference(a, b, run, 300), improvement(a, b, run, 300))
        # P(N(.5, 2) > 0) = .638.
        covered += [f.low <= truth <= f.high for f, truth in zip(found, (0.0, 0.5, 0.638), strict=True)]
    # Percentiles over so few are a little too narrow.
    assert (covered / runs >= 0.88).all()
    assert (covered / runs <= 0.99).all()


def test_a_look_decides_by_the_share_of_all_ways_to_deal_out_the_seeds():
    rng = np.random.default_rng(3)
    for level in (0.02, 0.1, 0.3, 0.6):
        for shift in (0.0, 1.0, 3.0):
            a, b = rng.normal(0, 1, 4), rng.normal(shift, 1, 4)
            pooled = [*a, *b]
            sums = [abs(2 * sum(pooled[i] for i in chosen) - sum(pooled)) for chosen in combinations(range(8), 4)]
            p = np.mean([s >= sums[0] - 1e-9 for s in sums])
            found = decided(a, b, Plan(per_look=4, looks=1, level=level))
            assert (found.verdict in ("first", "second")) == (p <= level)
            if p <= level:
                assert found.verdict == ("second" if b.mean() > a.mean() else "first")
            else:
                assert found.verdict == "no difference found"


@pytest.mark.parametrize("plan", [Plan(3, 3), Plan(4, 2, 0.1), Plan(2, 4, 0.2)])
def test_equal_recipes_are_told_apart_at_most_as_often_as_the_level_over_all_looks(plan):
    rng = np.random.default_rng(plan.per_look)
    runs, n = 250, plan.per_look * plan.looks
    wrong = sum(decided(*rng.normal(0, 1, (2, n)), plan).verdict in ("first", "second") for _ in range(runs))
    # The level is exact: four standard errors above it.
    assert 0 < wrong / runs <= plan.level + 4 * math.sqrt(plan.level * (1 - plan.level) / runs)


def test_a_clear_difference_is_decided_at_the_first_look_whichever_comes_first():
    low, high = [0.1, 0.11, 0.12, 0.13, 0.14], [0.2, 0.21, 0.22, 0.23, 0.24]
    assert decided(low, high, Plan()) == decided(low + low, high + high, Plan())
    found, back = decided(low, high, Plan()), decided(high, low, Plan())
    assert (found.verdict, found.looks, found.add) == ("second", 1, 0)
    assert (back.verdict, back.looks, back.add) == ("first", 1, 0)


@pytest.mark.parametrize(("n", "add"), [(1, 4), (4, 1), (5, 5), (7, 3), (10, 5)])
def test_an_undecided_test_says_how_many_seeds_the_next_look_waits_for(n, add):
    same = [0.5] * n
    found = decided(same, [*same, 0.5], Plan(per_look=5, looks=4))
    assert (found.verdict, found.looks, found.add) == ("undecided", n // 5, add)


def test_three_seeds_of_each_cannot_decide_but_six_may():
    a, b = [0.10, 0.11, 0.12, 0.13, 0.14, 0.15], [0.9, 0.91, 0.92, 0.93, 0.94, 0.95]
    assert decided(a[:3], b[:3], Plan(3, 4)).verdict == "undecided"
    found = decided(a, b, Plan(3, 4))
    assert (found.verdict, found.looks) == ("second", 2)


def test_equal_scores_are_never_told_apart():
    found = decided([0.5] * 20, [0.5] * 20, Plan())
    assert (found.verdict, found.looks, found.add) == ("no difference found", 4, 0)


def test_a_later_look_is_held_against_the_arrangements_that_earlier_ones_left():
    """Two looks of two seeds, written out: 6 arrangements a block, a share of level / 2 spent at each look."""
    rng = np.random.default_rng(11)
    level, verdicts = 0.7, set()
    for _ in range(60):
        a, b = rng.normal(0, 1, 4).round(3), rng.normal(0.5, 1, 4).round(3)
        blocks = []
        for block in range(2):
            pooled = [*b[2 * block : 2 * block + 2], *a[2 * block : 2 * block + 2]]
            blocks.append([2 * (pooled[i] + pooled[j]) - sum(pooled) for i, j in combinations(range(4), 2)])
        paths = [(abs(x), abs(x + y)) for x in blocks[0] for y in blocks[1]]
        alive, spent, expected = list(range(36)), 0, None
        for look in range(2):
            allowed = level * (look + 1) / 2 * 36 - spent
            crossed = [i for i in alive if sum(paths[j][look] >= paths[i][look] - 1e-9 for j in alive) <= allowed]
            if 0 in crossed:
                expected = look + 1
                break
            spent += len(crossed)
            alive = [i for i in alive if i not in crossed]
        found = decided(a, b, Plan(2, 2, level))
        assert (found.looks if found.verdict in ("first", "second") else None) == expected
        verdicts.add(expected)
    assert verdicts == {None, 1, 2}


def test_several_pairs_are_tested_step_by_step():
    level = [[0.5, 0.51, 0.52, 0.53, 0.54, 0.55]]
    clear = [[0.9, 0.91, 0.92, 0.93, 0.94, 0.95]]
    plan = Plan(per_look=6, looks=1, level=0.004)
    # Two of C(12, 6) = 924 arrangements are as extreme: p = .0022, over .004 / 2 and below .004.
    assert decide([(level, clear)], plan)[0].verdict == "second"
    both = decide([(level, clear), (level, level)], plan)
    assert [found.verdict for found in both] == ["no difference found"] * 2
    wider = Plan(per_look=6, looks=1, level=0.005)
    # One seed below another recipe's best: p = .0043. A clear pair beside it leaves it .005, which it needs.
    near = [[0.545, 0.91, 0.92, 0.93, 0.94, 0.95]]
    assert decide([(level, near)], Plan(6, 1, 0.005))[0].verdict == "second"
    assert [f.verdict for f in decide([(level, near), (level, near)], wider)] == ["no difference found"] * 2
    assert [f.verdict for f in decide([(level, clear), (level, near)], wider)] == ["second"] * 2


def test_a_run_is_one_thing_on_all_benchmarks():
    # Runs that are better on one benchmark by what they are worse on the other are equal.
    a, b = [[0.1] * 5, [0.9] * 5], [[0.9] * 5, [0.1] * 5]
    assert decide([(a, b)], Plan())[0].verdict == "undecided"
    assert seeds_needed(a, b, 0.05) is None


def test_seeds_needed_have_the_power_they_promise():
    a, b = [[0.0, 1.0, 2.0]], [[1.0, 2.0, 3.0]]
    needed = seeds_needed(a, b, 0.05)
    assert needed == math.ceil(both_quantiles(0.05, 0.8) ** 2 * 2 + 1.959964**2 / 4) == 17
    rng = np.random.default_rng(9)
    x, y = rng.normal(0, 1, (4000, needed)), rng.normal(1, 1, (4000, needed))
    t = (y.mean(axis=1) - x.mean(axis=1)) / np.sqrt((x.var(axis=1, ddof=1) + y.var(axis=1, ddof=1)) / needed)
    # Student's quantile at 32 degrees of freedom; four standard errors of a share of 4000, and one seed's rounding.
    assert 0.78 <= np.mean(np.abs(t) > 2.0369) <= 0.84
    assert seeds_needed([[0.5]], [[0.7]], 0.05) is None


def test_seeds_needed_follow_the_plans_power_and_smallest_difference():
    a, b = [[0.0, 1.0, 2.0]], [[1.0, 2.0, 3.0]]
    for power, smallest, z in ((0.9, None, 1.281552), (0.8, 0.5, 0.841621), (0.95, 2.0, 1.644854)):
        gap = smallest or 1.0
        by_hand = math.ceil((1.959964 + z) ** 2 * 2 / gap**2 + 1.959964**2 / 4)
        assert seeds_needed(a, b, 0.05, Plan(power=power, smallest=smallest)) == by_hand
    # Equal recipes say nothing of an observed difference, and all of one that is asked for.
    assert seeds_needed(a, a, 0.05, Plan(smallest=0.5)) == seeds_needed(a, b, 0.05, Plan(smallest=0.5)) == 64


def test_a_plan_is_read_from_what_is_written():
    assert Plan.of("") == Plan.of(" , ") == Plan()
    assert Plan.of("power=.9,smallest = 0.02") == Plan(power=0.9, smallest=0.02)
    assert Plan.of("per_look=6, looks=2, level=1e-2") == Plan(6, 2, 0.01)
    for text, said in (
        ("pover=.9", "'pover' in 'pover=.9' is none of per_look, looks, level, power, smallest"),
        ("looks=2.5", "'looks=2.5' in 'looks=2.5' gives no whole number; write looks=NUMBER"),
        ("level", "'level' in 'level' gives no number"),
        ("power=2", "power 2.0: "),
    ):
        with pytest.raises(PosttrainError, match=re.escape(said)):
            Plan.of(text)


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ({"power": 1.0}, "power 1.0: "),
        ({"power": 0.02}, "which chance alone finds"),
        ({"smallest": 0.0}, "a difference above 0"),
        ({"smallest": -0.1}, "smallest -0.1: "),
        ({"smallest": float("nan")}, "smallest nan: "),
    ],
)
def test_a_power_or_a_difference_without_sense_is_refused(plan, said):
    with pytest.raises(PosttrainError, match=said):
        Plan(**plan)


@pytest.mark.parametrize("plan", [{"per_look": 0}, {"looks": 0}, {"level": 0.0}, {"level": 1.0}])
def test_a_plan_without_sense_is_refused(plan):
    with pytest.raises(PosttrainError, match="a sequential test with"):
        Plan(**plan)
