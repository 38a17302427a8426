"""Right answers score 1 in every spelling; wrong, missing, hedged and hostile ones do not."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

from posttrain_verifiers.math import Math, compare, extract
from posttrain_verifiers.mathematics.exact import Comparison
from posttrain_verifiers.mathematics.reading import read
from tests.verifiers.shipped_rows import AUDITS, faults

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

EQUAL = [
    ("1,234", "1234"),
    ("1{,}234", "1234"),
    (r"11,\! 111", "11111"),
    ("$18.", "18"),
    (r"\$18.00", "18"),
    ("50%", r"50\%"),
    ("50%", "50"),
    ("50%", "0.5"),
    ("+7", "7"),
    ("−7", "-7"),
    ("007", "7"),
    (".5", "1/2"),
    ("0.50", r"\frac12"),
    (r"\dfrac{3}{6}", "1/2"),
    (r"-\frac{1}{2}", "-0.5"),
    (r"\frac{-1}{2}", "-1/2"),
    ("1.5e3", "1500"),
    (r"90^\circ", "90"),
    ("90°", r"90^{\circ}"),
    (r"\sqrt{8}", r"2\sqrt{2}"),
    (r"(x+1)^2", "x^2+2x+1"),
    (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \pi/2)"),
    (r"\{1, 2\}", "2, 1"),
    ("x = 3", "3"),
    (r"5 \text{ cm}", "5"),
    (r"\text{Evelyn}", "Evelyn"),
    ("(E)", r"\text{E}"),
    ("40_9", "40_{9}"),
    (r"+\infty", r"\infty"),
    ("2+3i", "3i+2"),
    ("10^{100}", "10^{100}"),
    (r"1 - \frac{1}{\mathrm{e}}", "1-1/e"),
]
DIFFERENT = [
    ("1,2", "12"),
    ("1,234", "1.234"),
    ("4", "42"),
    ("42", "-42"),
    ("1/3", "0.3333"),
    ("1/0", "0"),
    ("2^{-99}", "2^{-98}"),
    (r"\frac{1}{2004!}", r"\frac{1}{2006!}"),
    (r"1 - 1/\mathrm{e}", r"1 + 1/\mathrm{e}"),
    (r"1, 2, \ldots, n", r"1, 3, 5, \ldots, 2n-1"),
    ("(0,1)", "[0,1]"),
    ("(1,2)", "(2,1)"),
    ("p - q", "q - p"),
    ("on", "no"),
    (r"\text{Evelyn}", r"\text{Ann}"),
    ("star", "rats"),
    ("1, 42", "42"),
    ("42 or 43", "42"),
    (r"41 \text{ or } 42", "42"),
    ("1; 42", "42"),
    ("everything", "42"),
    (r"-\infty", r"\infty"),
    ("2+3i", "2-3i"),
    (r"\pi", "3.14"),
]


@pytest.mark.parametrize(("one", "other"), EQUAL)
def test_two_spellings_of_an_answer_are_equal_in_both_orders(one: str, other: str) -> None:
    assert compare(one, other) is True
    assert compare(other, one) is True


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_two_answers_are_different_in_both_orders(one: str, other: str) -> None:
    assert not compare(one, other)
    assert not compare(other, one)


@pytest.mark.parametrize(
    ("completion", "lenient", "strict"),
    [
        (r"first \boxed{1}, no, \boxed{\frac{1}{2}}.", r"\frac{1}{2}", r"\frac{1}{2}"),
        (r"The answer is 3. \boxed{4} #### 5", "4", "4"),
        ("work\n#### 1,000\nmore", "1,000", "1,000"),
        (r"\boxed{18 dollars}", "18 dollars", "18 dollars"),
        ("The answer is 42.", "42", None),
        ("The answer is 3. Wait, the answer is 42 apples.", "42 apples", None),
        ("**Answer:** 42", "42", None),
        ("Answer: **42**", "42", None),
        ("the final answer is: $x^2$.", "x^2", None),
        ("The answer is 18 dollars or 20 dollars", "18 dollars or 20 dollars", None),
        ("She pays 3 + 4 = 7 dollars for it.", "7", None),
        ("There are 10-12, so 5-3=2", "2", None),
        ("It drops to -5 degrees", "-5", None),
        ("It can be 1, 2 or 42", None, None),
        ("2 + 2 = 4\nAnswer:\n42", "42", None),
        ("3 * 14 = 42, so the answer is", None, None),
        ("We get $x+1$ at last", "x+1", None),
        ("42", "42", "42"),
        (" 1/2 \n", "1/2", "1/2"),
        ("x^2 + 1", "x^2 + 1", "x^2 + 1"),
        (r"The answer is 42, so \boxed{42", None, None),
        (r"\boxed{}", None, None),
        ("", None, None),
        ("I do not know.", None, None),
        ("It is 42.", "42", None),
        ("no", "no", "no"),
        ("Evelyn", "Evelyn", "Evelyn"),
        ("(B)", "(B)", "(B)"),
        ("<think>41</think>42", "42", "42"),
        ("<think>The answer is 42", None, None),
        ("a</think>b</think> #### 7", "7", "7"),
        (r"\boxed{1} or \boxed{2}", "1 or 2", "1 or 2"),
        (r"\boxed{1}, then \boxed{2}", "2", "2"),
        (r"\boxed 7", "7", "7"),
        ("The answer is $5$ cm.", "5 cm", None),
        ("The answer is 42, because 6 * 7 = 42.", "42", None),
        ("9" * 500, None, None),
    ],
)
def test_the_final_answer_is_found_where_it_is_written(
    completion: str, lenient: str | None, strict: str | None
) -> None:
    assert extract(completion, "lenient") == lenient
    assert extract(completion, "strict") == strict


def test_a_verdict_says_what_was_compared_and_no_answer_is_a_zero() -> None:
    right, wrong, none = (Math()(text, answer="42") for text in (r"\boxed{42}", r"\boxed{41}", "no idea"))
    assert (right.score, right.status, right.reason) == (1.0, "ok", "extracted '42', compared with '42'")
    assert (wrong.score, wrong.status) == (0.0, "ok")
    assert (none.score, none.status) == (0.0, "unparsable")


def test_a_known_answer_that_cannot_be_read_gives_no_score() -> None:
    for gold in ("", None, "  ", "work ####", r"\boxed{1", "9" * 500):
        verdict = Math()("42", answer=gold)
        assert (verdict.score, verdict.status) == (None, "unparsable")


def test_the_known_answer_may_be_a_number_or_a_worked_solution() -> None:
    for gold in (42, 42.0, "6 * 7 = 42\n#### 42", r"6 \cdot 7 = \boxed{42}"):
        assert Math()("It is 42.", answer=gold).score == 1.0
        assert Math()("It is 43.", answer=gold).score == 0.0


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="'loose'"):
        Math("loose")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["math", "math_strict", "math_rounded"])
def test_every_row_of_the_audit_set_has_its_verdict(name: str) -> None:
    assert faults(name, {"empty", "truncated"}) == []


def test_the_audit_set_is_a_balanced_corpus_of_pairs_in_both_orders() -> None:
    rows = [json.loads(line) for line in (AUDITS / "math.jsonl").read_text(encoding="utf-8").splitlines()]
    boxed = re.compile(r"So the result is \\boxed\{(.*)\}\.", re.DOTALL)
    pairs = {(m.group(1), r["answer"]): r["expect"] for r in rows if (m := boxed.fullmatch(r["completion"]))}
    assert len(pairs) >= 2 * 300
    # "x" against "x" is its own other order.
    assert [pair for pair, expect in pairs.items() if pairs.get(pair[::-1]) is not expect] == []
    assert 0.4 < sum(pairs.values()) / len(pairs) < 0.6


@pytest.mark.clock
def test_a_long_hostile_text_is_read_in_a_moment() -> None:
    start = time.monotonic()
    for piece in ("\\(", "\\(1", "$", "1,", "answer is ", "\\boxed{", "{", "- ", "$1", "1/", " "):
        Math()(piece * 20_000, answer="42")
    assert time.monotonic() - start < 5.0


def rows(name: str) -> list[dict[str, str]]:
    if not (DATA / name).is_file():
        pytest.skip(f"{name} is not beside this checkout")
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(("mode", "file", "count"), [("lenient", "train", 7473), ("strict", "test", 1319)])
def test_every_gsm8k_solution_equals_itself_and_its_neighbour_only_where_the_numbers_do(
    mode: str, file: str, count: int
) -> None:
    answers = [row["answer"] for row in rows(f"gsm8k_{file}.jsonl")]
    numbers = [float(answer.rpartition("####")[2].replace(",", "")) for answer in answers]
    grade = Math(mode)  # type: ignore[arg-type]
    assert len(answers) == count
    assert [grade(answer, answer=answer).score for answer in answers] == [1.0] * count
    for i in range(len(answers)):
        assert grade(answers[i], answer=answers[i - 1]).score == float(numbers[i] == numbers[i - 1])


def test_every_math500_answer_equals_itself_in_a_box_in_a_sentence_and_bare() -> None:
    for row in rows("math500.jsonl"):
        answer = row["answer"]
        for completion in (row["solution"], f"The answer is ${answer}$.", f"So \\boxed{{{answer}}}"):
            assert Math()(completion, answer=answer).score == 1.0, (completion[-60:], answer)
        assert Math("strict")(answer, answer=row["solution"]).score == 1.0, answer


WRITTEN_TWICE = {
    frozenset(pair)
    for pair in [
        ("1,-2", "-2,1"),
        ("10,\\!080", "10080"),
        ("120", r"120^\circ"),
        ("15", r"15\mbox{ cm}^2"),
        (r"2 \sqrt{5}", r"2\sqrt{5}"),
        ("30", r"30^\circ"),
        ("36", r"36^\circ"),
        ("36", r"\$36"),
        ("5", "x=5"),
        ("90", r"90^\circ"),
        (r"\frac14", r"\frac{1}{4}"),
    ]
}
"""All pairs of MATH-500's answers that say the same. A unit on one side only says nothing against the other."""


def test_two_answers_of_math500_are_equal_only_where_they_say_the_same() -> None:
    answers = [(text, read(text)) for text in sorted({row["answer"] for row in rows("math500.jsonl")})]
    equal, undecided = set(), 0
    for i, (text, one) in enumerate(answers):
        for other_text, other in answers[i + 1 :]:
            verdict = Comparison().equal(one, other)
            undecided += verdict is None
            if verdict:
                equal.add(frozenset((text, other_text)))
    assert equal == WRITTEN_TWICE
    assert undecided == 0


def test_the_answer_of_a_verdict_is_one_text_for_all_spellings() -> None:
    spellings = {
        "1/2": ["0.5", r"\frac12", ".50", "2/4", "x = 1/2"],
        "3/2*sqrt(2)": [r"\frac{3\sqrt2}{2}", r"\frac{3}{\sqrt{2}}", r"1.5\sqrt{2}"],
        "{-2, 1}": ["1, -2", r"\{-2, 1\}", "-2 and 1"],
        "x^2+2*x+1": ["(x+1)^2", "1 + 2x + x^2"],
        "C": ["(C)", r"\text{C}", "C. the third"],
        "evelyn": [r"\text{Evelyn}", "Evelyn"],
        "(3, oo)": ["x > 3", r"(3, \infty)"],
    }
    for text, ways in spellings.items():
        found = [Math()(f"\\boxed{{{way}}}", answer="42").answer for way in ways]
        assert found == [text] * len(ways)
    assert Math()("no idea", answer="42").answer is None


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="decimals"):
        Math(decimals=-1)
    with pytest.raises(ValueError, match="relative_tolerance"):
        Math(relative_tolerance=1.0)
