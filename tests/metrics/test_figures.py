"""The figures of an evaluation against what is known of the responses they come from."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from posttrain.errors import GradingError
from posttrain.metrics.figures import figures
from posttrain.metrics.results import Item, Sampled
from posttrain.metrics.statistics import wilson


def sampled(
    score: float | None, answer: str | None = None, *, greedy: bool = False, status: str = "ok", length: int = 3
) -> Sampled:
    parts: dict[str, float | None] = {"Math": score}
    return Sampled("text", score, status, "", parts, answer, length, length > 9, greedy, (), None)


def item(name: str, samples: Sequence[Sampled]) -> Item:
    return Item(name, "asked", {}, tuple(samples))


def bank(rates: Sequence[float], samples: int, seed: int) -> list[Item]:
    """Problems that are solved with a probability of their own."""
    draw = np.random.default_rng(seed)
    rows = [draw.random(samples) < rate for rate in rates]
    return [item(f"p/{i}", [sampled(float(right)) for right in row]) for i, row in enumerate(rows)]


def test_one_right_or_wrong_sample_to_each_problem_is_a_proportion() -> None:
    found = figures([item(str(i), [sampled(float(i < 3))]) for i in range(10)])
    assert found["accuracy"] == pytest.approx(0.3)
    assert (found["accuracy_low"], found["accuracy_high"]) == wilson(3, 10)
    assert not any(name.startswith(("pass_at", "maj_at")) for name in found)


def test_pass_at_k_of_a_bernoulli_bank_is_unbiased() -> None:
    """Over many draws of 8 samples the mean estimate is 1 - (1 - p)^k in the mean over problems."""
    rates = [0.05, 0.2, 0.5, 0.9]
    draws = [figures(bank(rates, 8, seed)) for seed in range(60)]
    for k in (2, 4, 8):
        true = sum(1 - (1 - rate) ** k for rate in rates) / len(rates)
        estimates = [found[f"pass_at_{k}"] for found in draws]
        error = np.std(estimates) / len(estimates) ** 0.5
        # Four standard errors: once in some ten thousand seeds.
        assert sum(estimates) / len(estimates) == pytest.approx(true, abs=4 * error)


@pytest.mark.parametrize("name", ["accuracy", "pass_at_4"])
def test_intervals_over_problems_cover_what_is_true_of_all_problems(name: str) -> None:
    """Problems are drawn from a population whose mean is known; about 95 % of the intervals must hold it."""
    draw = np.random.default_rng(0)
    population = draw.beta(0.7, 1.0, 20_000)
    true = population.mean() if name == "accuracy" else (1 - (1 - population) ** 4).mean()
    held, widths = 0, []
    for seed in range(60):
        found = figures(bank(draw.choice(population, 60), 8, seed), seed)
        widths.append(found[f"{name}_high"] - found[f"{name}_low"])
        held += found[f"{name}_low"] <= true <= found[f"{name}_high"]
    # Binomial(60, .95) lies below 51 in seven of ten thousand sets of draws.
    assert held >= 51
    # By the normal formula, were problems' rates known exactly; eight samples make it wider, and never twice as wide.
    known = population if name == "accuracy" else 1 - (1 - population) ** 4
    narrowest = 2 * 1.96 * known.std() / 60**0.5
    assert 0.9 * narrowest <= np.mean(widths) <= 1.5 * narrowest


def test_wilsons_interval_covers_the_rate_of_greedy_answers() -> None:
    draw, held = np.random.default_rng(1), 0
    for _ in range(150):
        right = draw.random(40) < 0.1
        found = figures([item(str(i), [sampled(float(r), greedy=True)]) for i, r in enumerate(right)])
        held += found["greedy_low"] <= 0.1 <= found["greedy_high"]
    # Its coverage at n = 40, p = .1 is 94.3 % by the binomial; four standard errors of 150 draws are 7 %.
    assert held / 150 >= 0.876


def test_a_majority_is_of_those_that_answered() -> None:
    problems = [
        item("a", [sampled(1.0, "4"), sampled(1.0, "4"), sampled(0.0, "5"), sampled(0.0, None, status="unparsable")]),
        item("b", [sampled(0.0, None, status="unparsable")] * 4),
    ]
    found = figures(problems)
    assert found["maj_at_4"] == pytest.approx(0.5)
    # Of the six pairs of a: one of 4 and 4, two with 4 alone, one with 5 alone, two of 4 against 5.
    assert found["maj_at_2"] == pytest.approx((1 + 2 + 0 + 2 / 2) / 6 / 2)
    assert found["no_answer"] == pytest.approx(5 / 8)


def test_what_nobody_could_judge_is_not_called_unanswered() -> None:
    problem = [sampled(1.0, "4"), sampled(0.0, None, status="unparsable"), sampled(None, None, status="unparsable")]
    assert figures([item("a", problem)])["no_answer"] == pytest.approx(1 / 3)


def test_without_answers_there_is_no_majority_and_without_right_or_wrong_no_pass() -> None:
    found = figures([item(str(i), [sampled(0.5), sampled(1.0)]) for i in range(3)])
    assert "maj_at_2" not in found
    assert "pass_at_2" not in found
    assert found["accuracy"] == 0.75


def test_what_could_not_be_graded_is_left_out_of_its_problem_and_counted() -> None:
    problems = [item("a", [sampled(None, status="timeout"), sampled(1.0)]), item("b", [sampled(0.0), sampled(0.0)])]
    found = figures(problems)
    assert found["accuracy"] == pytest.approx((1 + 0) / 2)
    assert found["pass_at_2"] == 0.0  # Of b alone: a has one graded sample.
    assert found["ungraded"] == 1


def test_greedy_and_sampled_responses_are_told_apart() -> None:
    long = sampled(1.0, greedy=True, length=12)
    found = figures([item("a", [sampled(0.0), sampled(1.0), long]), item("b", [sampled(0.0), sampled(0.0), long])])
    assert (found["accuracy"], found["greedy"]) == (0.25, 1.0)
    assert (found["length_mean"], found["greedy_length_mean"]) == (3.0, 12.0)
    assert (found["truncated_fraction"], found["greedy_truncated_fraction"]) == (0.0, 1.0)
    alone = figures([item("a", [long])])
    assert alone["greedy"] == 1.0
    assert alone["length_mean"] == 12.0
    assert "accuracy" not in alone


def test_every_figure_of_responses_has_an_interval_around_it() -> None:
    found = figures(bank([0.2, 0.5, 0.8], 4, 0))
    for name in found:
        if name in ("problems", "samples_per_problem", "ungraded") or name.endswith(("_low", "_high")):
            continue
        assert found[f"{name}_low"] <= found[name] <= found[f"{name}_high"], name


def test_the_best_of_n_is_what_one_grader_prefers_worth_to_the_other() -> None:
    def judged(proxy: float, gold: float) -> Sampled:
        return Sampled("", gold, "ok", "", {"reward": proxy, "right": gold}, None, 1, False, False, (), None)

    problems = [item(str(i), [judged(0.1, 1.0), judged(0.9, 0.0)]) for i in range(4)]
    found = figures(problems, best_of="reward")
    assert (found["best_of_1/right"], found["best_of_2/right"]) == (0.5, 0.0)
    assert found["best_of_2/reward"] == pytest.approx(0.9)
    with pytest.raises(GradingError, match="no grader is called 'rewrad'; there are reward, right"):
        figures(problems, best_of="rewrad")


def test_nothing_graded_is_an_error_that_says_why() -> None:
    lost = Sampled("", None, "error", "the grader is down", {}, None, 1, False, True, (), None)
    with pytest.raises(GradingError, match=r"no greedy answer to 1 held-out problems.*the grader is down"):
        figures([item("a", [lost])])
