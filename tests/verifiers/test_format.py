"""Form is graded for what it is: right forms score 1, near misses do not."""

from __future__ import annotations

import pytest

from posttrain_verifiers.format import Boxed, Length, Regex, Tags


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
    assert [grade("w " * n) for n in (0, 4, 5, 6, 8, 50)] == [1.0, 1.0, 0.75, 0.5, 0.0, 0.0]
    assert Length(10)("w " * 15) == 0.5
    with pytest.raises(ValueError, match="0 < target < limit"):
        Length(5, 5)


def test_a_pattern_is_found_anywhere_or_asked_of_the_whole() -> None:
    assert [Regex(r"\d+")(text) for text in ("a 1 b", "", "none")] == [1.0, 0.0, 0.0]
    assert [Regex(r"a.b", whole=True)(text) for text in ("a\nb", "a b c")] == [1.0, 0.0]
