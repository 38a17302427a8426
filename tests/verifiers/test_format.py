"""Form is graded for what it is: right forms score 1, near misses do not."""

from __future__ import annotations

import pytest

from posttrain.objectives.shaping import overlong
from posttrain_verifiers.format import Boxed, Length, Regex, Tags
from tests.verifiers.shipped_rows import faults, seconds


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        ("<think>a</think><answer>b</answer>", 1.0),
        ("\n<think>a\nb</think>\n\n<answer>b</answer>\n", 1.0),
        ("", 0.0),
        ("<think>a</think><answer>b", 0.0),
        ("<think>a</think><answer> </answer>", 0.0),
        ("<answer>b</answer><think>a</think>", 0.0),
        ("<think>a</think>so<answer>b</answer>", 0.0),
        ("<think>a</think><answer>b</answer> and more", 0.0),
        ("<think>a</think><think>a</think><answer>b</answer>", 0.0),
        ("<think>a<answer></think>b</answer>", 0.0),
    ],
)
def test_tags_are_asked_for_once_in_order_and_with_something_inside(completion: str, score: float) -> None:
    assert Tags()(completion).score == score


def test_tags_can_have_other_names_and_the_first_can_be_left_out() -> None:
    assert Tags("plan", "code")("<plan>a</plan><code>b</code>").score == 1.0
    assert Tags("plan", "code")("<think>a</think><answer>b</answer>").score == 0.0
    assert Tags(think="")("any words <answer>b</answer>").score == 1.0
    assert Tags(think="")("<answer>b</answer> any words").score == 0.0
    with pytest.raises(ValueError, match="cannot be empty"):
        Tags(answer="")


@pytest.mark.parametrize(
    ("completion", "score"),
    [
        (r"so \boxed{\frac{1}{2}} it is", 1.0),
        (r"\boxed{}", 0.0),
        (r"\boxed{ }", 0.0),
        (r"\boxed{\frac{1}{2}", 0.0),
        (r"\boxed{1} or \boxed{2}", 0.0),
        ("1", 0.0),
        ("", 0.0),
    ],
)
def test_one_closed_box_is_asked_for(completion: str, score: float) -> None:
    assert Boxed()(completion).score == score


def test_length_falls_in_a_straight_line_from_target_to_limit() -> None:
    grade = Length(target=4, limit=8)
    assert [grade("w " * n).score for n in (0, 4, 5, 6, 8, 50)] == [1.0, 1.0, 0.75, 0.5, 0.0, 0.0]
    assert Length(10)("w " * 15).score == 0.5
    assert grade("w " * 5).parts == {"words": 5.0}
    with pytest.raises(ValueError, match="0 < target < limit"):
        Length(5, 5)


def test_length_counts_characters_where_words_have_no_spaces_between_them() -> None:
    grade = Length(target=4, limit=8, unit="characters")
    assert [grade(text).score for text in ("", "去年冬天", "去年冬天大桥", "a b c d e")] == [1.0, 1.0, 0.5, 0.0]
    assert Length(4, 8)("去年冬天大桥关闭").score == 1.0
    with pytest.raises(ValueError, match="'tokens'"):
        Length(4, 8, unit="tokens")  # type: ignore[arg-type]


def test_length_less_1_is_dapos_overlong_punishment_in_words() -> None:
    grade = Length(target=80, limit=100)
    for words in (0, 79, 80, 85, 99, 100, 300):
        score = grade("w " * words).score or 0.0
        # One rounding of a quotient on each side.
        assert score - 1 == pytest.approx(overlong(words, 100, 0.2, 1.0), abs=1e-12)


def test_a_pattern_is_found_anywhere_or_asked_of_the_whole() -> None:
    assert [Regex(r"\d+")(text).score for text in ("a 1 b", "", "none")] == [1.0, 0.0, 0.0]
    assert [Regex(r"a.b", whole=True)(text).score for text in ("a\nb", "a b c")] == [1.0, 0.0]


def test_a_pattern_that_never_ends_is_given_up_without_a_score() -> None:
    grade = Regex(r"(a|aa)+b(?=c)", timeout=0.2)
    assert grade("aab" + "c").score == 1.0
    verdict = grade("a" * 60 + "!")
    assert (verdict.score, verdict.status) == (None, "timeout")
    with pytest.raises(ValueError, match="above 0"):
        Regex("a", timeout=0)


@pytest.mark.parametrize("name", ["format_tags", "format_boxed", "format_length", "format_regex"])
def test_the_shipped_rows_are_all_judged_as_they_should_be(name: str) -> None:
    assert faults(name, {"gold", "near_miss", "truncated", "hostile"}) == []


@pytest.mark.parametrize("grade", [Tags(), Tags(think=""), Boxed(), Length(10), Regex(r"####\s*-?[\d,.]+\s*$")])
def test_a_million_hostile_characters_are_read_in_a_moment(grade: object) -> None:
    for piece in ("<think>", "</answer>", "\\boxed{", "{", "}", "<", "#### 1", "\x00", "😂", " ", "a\n"):
        # Far above what it takes, far below what a quadratic pattern would.
        assert seconds(grade, piece * (1_000_000 // len(piece))) < 2, piece
