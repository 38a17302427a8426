"""A unit test is read, never run: what makes it one, what spoils it, and what only looks like an assertion."""

from __future__ import annotations

import json

import pytest

from posttrain.recipe import Grading, Reward
from posttrain.rewards import Grader
from posttrain.types import Prompt, Rollout
from posttrain_verifiers.unit_tests import REQUIRED, WEIGHTS, UnitTest
from tests.verifiers.shipped_rows import AUDITS, faults, seconds

GOOD = "def test_add_small_numbers():\n    # The usual case.\n    assert add(1, 2) == 3\n"


def body(*lines: str) -> str:
    return "def test_add_small_numbers():\n" + "".join(f"    {line}\n" for line in lines)


def failed(text: str, focal: str = "add") -> set[str]:
    """The checks that a test fails, the comment aside."""
    parts = UnitTest()(text, focal=focal).parts
    assert set(parts) == set(WEIGHTS)
    return {name for name, value in parts.items() if not value} - {"comment"}


def test_the_shipped_rows_are_all_judged_as_they_should_be() -> None:
    assert faults("unit_tests", {"gold", "empty", "truncated", "near_miss", "hostile"}) == []


def test_a_good_test_passes_every_check() -> None:
    verdict = UnitTest()(GOOD, focal="add")
    assert (verdict.score, verdict.reason) == (1.0, "")
    assert set(verdict.parts.values()) == {1.0}


@pytest.mark.parametrize(
    ("check", "text"),
    [
        ("assertion", body("add(1, 2)")),
        ("focal_call", body("assert sub(1, 2) == -1")),
        ("no_duplicate_assertion", body("assert add(1, 2) == 3", "assert add(1, 2)  ==  3")),
        ("no_duplicate_assertion", body("self.assertEqual(add(1, 2), 3)", "self.assertEqual(add(1, 2), 3)")),
        ("no_conditional", body("if x:", "    y = 1", "assert add(1, 2) == 3")),
        ("no_conditional", body("y = 1 if x else 2", "assert add(1, y) == 3")),
        ("no_conditional", body("for x in (1, 2):", "    assert add(x, 0) == x")),
        ("no_conditional", body("while x:", "    x = add(x, -1)", "assert x == 0")),
        ("no_conditional", body("match x:", "    case 1:", "        y = 1", "assert add(x, y) == 2")),
        ("no_exception_handling", body("try:", "    y = 1", "finally:", "    z = 2", "assert add(y, z) == 3")),
        (
            "no_exception_handling",
            body("try:", "    y = 1", "except* ValueError:", "    y = 2", "assert add(y, 1) == 2"),
        ),
        ("no_exception_handling", body("assert add(1, 2) == 3", "raise ValueError")),
        ("no_print", body("assert add(1, 2) == 3", "print('done')")),
        ("descriptive_name", GOOD.replace("test_add_small_numbers", "test_7")),
        ("descriptive_name", GOOD.replace("test_add_small_numbers", "test_add_1_a")),
        ("descriptive_name", GOOD.replace("test_add_small_numbers", "testAdd")),
    ],
)
def test_each_check_fails_by_itself(check: str, text: str) -> None:
    assert failed(text) == {check}


def test_a_smell_costs_its_weight_and_what_is_needed_costs_everything() -> None:
    smelly = body("assert add(1, 2) == 3", "print('done')")
    assert UnitTest()(smelly, focal="add").score == 7 / 8
    assert UnitTest({"no_print": 3.0})(smelly, focal="add").score == 7 / 10
    assert UnitTest({"no_print": 0.0})(smelly, focal="add").score == 1.0
    assert UnitTest({"comment": 1.0})(smelly, focal="add").score == 7 / 9
    empty = body("add(1, 2)")
    assert UnitTest()(empty, focal="add").score == 0.0
    assert UnitTest(required=())(empty, focal="add").score == 7 / 8
    assert UnitTest(required=[*REQUIRED, "no_print"])(smelly, focal="add").score == 0.0


def test_a_comment_is_one_outside_strings_or_a_docstring() -> None:
    for text in (GOOD, body('"""Sums two numbers."""', "assert add(1, 2) == 3")):
        assert UnitTest()(text, focal="add").parts["comment"] == 1.0
    for text in (
        body("assert add(1, 2) == 3"),
        body("assert add('# a', '') == '# a'"),
        body("assert add(1, 2) == 3 #"),
    ):
        assert UnitTest()(text, focal="add").parts["comment"] == 0.0, text


@pytest.mark.parametrize(
    "line",
    [
        "self.assertTrue(add(1, 2) == 3, 'sum')",
        "self.assertRaises(TypeError, add, 'a', 1)",
        "with self.assertRaises(TypeError): add('a', 1)",
        "with pytest.raises(TypeError): add('a', 1)",
        "log.assert_called_once()",
        "assert add(1, 2) == 3, 'message'",
        "assert not add(1, -1)",
        "assert 2 < add(1, 2) < 4",
        "assert add(1, 2) or add(2, 3)",
        "assert (yes := add(1, 2)) == 3",
        "assert all(add(x, 0) == x for x in values)",
        "assert_that(add(1, 2)).is_equal_to(3)",
    ],
)
def test_what_could_fail_is_an_assertion(line: str) -> None:
    assert "assertion" not in failed(body("x = add(1, 2)", line)), line


@pytest.mark.parametrize(
    "line",
    [
        "assert True",
        "assert 1",
        "assert not False",
        "assert 1 + 1 == 2",
        "assert x == x",
        "assert (x == 3, 'sum')",
        "assert [x == 3]",
        "assert {x}",
        "assert f'{x}'",
        "assert lambda: x",
        "assert x == 3 or True",
        "self.assertTrue(True, x)",
        "self.assertEqual(3, 3, x)",
        "self.assertEqual(x, x)",
        "self.assertIsNotNone('x')",
        "assertion = x == 3",
        "'assert x == 3'",
        "x.assertions",
        "self.fail('never')",
    ],
)
def test_what_cannot_fail_or_is_no_assertion_is_none(line: str) -> None:
    assert "assertion" in failed(body("x = add(1, 2)", line)), line


def test_what_is_never_reached_counts_for_nothing() -> None:
    check = "assert add(1, 2) == 3"
    for lines in (
        ["return", check],
        ["pytest.skip('later')", check],
        ["self.skipTest('later')", check],
        ["if 0:", f"    {check}"],
        ["while False:", f"    {check}"],
        ["def inner():", f"    {check}"],
        ["class Inner:", f"    {check}"],
        ["later = lambda: add(1, 2)"],
        ["if x:", "    return", f"    {check}"],
    ):
        assert failed(body(*lines)) >= {"assertion", "focal_call"}, lines
    for mark in (
        "@pytest.mark.skip",
        "@pytest.mark.skipif(True, reason='')",
        "@unittest.skip('')",
        "@pytest.mark.xfail",
    ):
        assert failed(f"{mark}\n{GOOD}") == {"assertion"}, mark


def test_the_focal_function_is_a_call_by_its_last_name_and_not_written_anew() -> None:
    assert failed("def test_cart_counts_tea():\n    assert Cart().total() == 0\n", "shop.Cart.total") == set()
    assert failed(body("assert total == 3"), "total") == {"focal_call"}
    assert failed(body("assert map(add, [1]) == 3")) == {"focal_call"}
    for written in (
        "def add(a, b): return a + b",
        "class add: pass",
        "add = sum",
        "calc.add = sum",
        "with x as add: pass",
    ):
        assert failed(f"{written}\n{GOOD}") == {"focal_call"}, written


def test_a_check_must_hold_for_every_test_and_classes_are_looked_into() -> None:
    inner = "    def test_adds_two_numbers(self):\n        self.assertEqual(add(1, 2), 3)\n"
    assert failed(f"class AddTest(TestCase):\n{inner}") == set()
    assert failed(f"class AddTest(TestCase):\n{inner}\n    def test_prints_more(self):\n        print(1)\n") == {
        "assertion",
        "focal_call",
        "no_print",
    }


def test_the_last_closed_block_is_the_test() -> None:
    fence = f"```python\n{GOOD}```"
    assert UnitTest()(f"Draft:\n```\nno\n```\nFinal:\n{fence}\nDone.", focal="add").score == 1.0
    assert UnitTest()(f"{fence}\n```python\ndef test_add_more", focal="add").score == 0.0
    verdict = UnitTest()(f"{fence}\n```\nno test\n```", focal="add")
    assert (verdict.score, verdict.status) == (0.0, "unparsable")


def test_a_row_without_a_focal_function_gives_no_score_and_unknown_settings_are_refused() -> None:
    for focal in ("", "add()", "my function", None):
        verdict = UnitTest()(GOOD, focal=focal)  # type: ignore[arg-type]
        assert (verdict.score, verdict.status) == (None, "unparsable")
    with pytest.raises(ValueError, match="no check is called colour"):
        UnitTest({"colour": 1.0})
    with pytest.raises(ValueError, match="no check is called colour"):
        UnitTest(required=["colour"])
    with pytest.raises(ValueError, match="0 or above"):
        UnitTest({"syntax": -1.0})


def test_hostile_code_is_read_in_a_moment_and_never_run() -> None:
    deep = 1_500
    texts = [
        body("assert " + "(" * deep + "add(1, 2)" + ")" * deep),
        body("assert add(1, 2) == " + "-" * 20_000 + "3"),
        body("assert add(1, 2) == 3" + " + 1" * 10_000),
        body("assert add(1, 2) == " + "[" * 90 + "]" * 90),
        "".join(" " * i + "if x:\n" for i in range(95)),
        "x" * 50_001,
        "\x00" * 1000,
        "```" * 10_000,
        "```\n" * 10_000,
        "#" * 40_000,
        "'" * 40_000,
        body(*(f"assert add({i}, 1) == {i + 1}" for i in range(1_000))) + "(",
        body("assert add.a" + ".a" * 15_000 + " == 3"),
    ]
    for text in texts:
        assert seconds(UnitTest(), text, focal="add") < 3, text[:60]
    assert UnitTest()("import os\nos._exit(3)\n" + GOOD, focal="add").score == 1.0


def test_it_grades_in_worker_processes() -> None:
    rows = [json.loads(line) for line in (AUDITS / "unit_tests.jsonl").read_text().split("\n") if line][:4]
    groups = [
        (Prompt(str(i), (1,), "", {"focal": r["focal"]}), [Rollout((1,), (True,), r["completion"], "stop")])
        for i, r in enumerate(rows)
    ]
    with Grader([Reward(verifier="posttrain_verifiers.unit_tests:UnitTest")], Grading(timeout=5)) as grader:
        assert [verdicts[0].score for verdicts in grader.grade(groups)] == [1.0] * 4
