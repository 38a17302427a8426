"""What repeats itself scores less, whatever it is written in; what does not scores 1."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from posttrain_verifiers.repetition import Repetition, tokens
from tests.verifiers.shipped_rows import faults, seconds

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def test_the_shipped_rows_are_all_judged_as_they_should_be() -> None:
    assert faults("repetition", {"gold", "loop", "near_miss", "hostile"}) == []


def test_the_share_of_new_ngrams_is_counted_as_the_definition_says() -> None:
    text = "a b c a b c a b d"
    words = text.split()
    for n in (1, 2, 3):
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        share = len(Counter(grams)) / len(grams)
        verdict = Repetition(n=n, allowed=0.0)(text)
        assert verdict.score == verdict.parts["distinct"] == share
    # a b c stands twice, and 2 * 3 of 9 tokens.
    assert Repetition(n=3)(text).parts["loop"] == 6 / 9


def test_what_is_allowed_costs_nothing_and_the_rest_falls_to_0_in_a_straight_line() -> None:
    half = "a b c d a b c d a"  # 4 of 8 pairs are new
    assert Repetition(2, 0.0)(half).score == 0.5
    assert Repetition(2, 0.5)(half).score == 1.0
    assert Repetition(2, 0.2)(half).score == pytest.approx(0.5 / 0.8, rel=1e-12)  # one rounding
    assert Repetition(1, 0.0)("x " * 100).score == 0.01


def test_case_is_nothing_new_and_a_short_text_repeats_nothing() -> None:
    assert Repetition(1, 0.0)("No no NO").score == pytest.approx(1 / 3, rel=1e-12)  # one rounding
    assert [Repetition(4)(text).score for text in ("", "yes", "yes yes yes", "yes yes yes yes")] == [1.0] * 4


def test_scripts_without_spaces_and_words_without_end_are_read_by_characters() -> None:
    assert tokens("Ab, cd! 好的 3") == ["ab", ",", "cd", "!", "好", "的", "3"]
    assert tokens("a" * 41) == ["a"] * 41
    assert tokens("a" * 40) == ["a" * 40]
    for loop in ("ha" * 500, "好的" * 300, "😂" * 300, "abcdefghijklmnop" * 100, "?!" * 300):
        assert 0.0 < (Repetition()(loop).score or 0.0) < 0.1, loop[:10]


def test_a_loop_at_the_end_of_a_huge_text_is_seen() -> None:
    fine = " ".join(f"w{i}" for i in range(150_000))
    assert Repetition()(fine).score == 1.0
    assert Repetition()(fine + " again" * 150_000).parts["loop"] == 1.0


def test_hostile_texts_are_read_in_a_moment() -> None:
    for piece in ("a", " ", "好", "a ", "!", "\x00", "\u0301", "ab\n"):
        # Half a million characters in linear time.
        assert seconds(Repetition(), piece * (500_000 // len(piece))) < 5, piece


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Repetition(0)
    for share in (-0.1, 1.0):
        with pytest.raises(ValueError, match="share"):
            Repetition(allowed=share)


def test_worked_solutions_are_hardly_ever_marked_down() -> None:
    file = DATA / "gsm8k_test.jsonl"
    if not file.is_file():
        pytest.skip(f"{file.name} is not beside this checkout")
    answers = [json.loads(line)["answer"] for line in file.read_text(encoding="utf-8").splitlines()]
    low = [answer for answer in answers if (Repetition()(answer).score or 0.0) < 0.8]
    # They are terse sums: "5*2=<<5*2=10>>10" repeats by its form.
    assert len(low) <= 0.02 * len(answers)
