"""Which calls of tests are asked for before the tests run, and that verdicts are those of calls made one by one."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import pytest

from posttrain_verifiers.code import Code
from posttrain_verifiers.programs.ahead import Ahead
from posttrain_verifiers.programs.calls import assert_tests

FREE = {"abs", "sorted", "len", "set", "str", "math"}


def ahead(*tests: str) -> Ahead:
    return Ahead.of([node for text in tests for node in ast.parse(text).body], {"f": "f", "candidate": "f"}, FREE)


def asked(*tests: str) -> list[str]:
    """The calls, as text, with a bar before each round."""
    found = ahead(*tests)
    shown = [
        f"{c.name}({', '.join([*map(repr, c.args), *(f'{k}={v!r}' for k, v in c.keywords.items())])})"
        for c in found.calls
    ]
    return ["| " * (number in found.rounds) + text for number, text in enumerate(shown)]


@pytest.fixture(scope="module")
def fraction() -> Iterator[Code]:
    made = Code("fraction", timeout=60.0)
    yield made
    made.close()


def test_calls_with_constants_are_asked_for_together() -> None:
    tests = [
        "assert f(1, -2, x=[3, (4,)]) == 100",
        "assert abs(candidate('a' * 3) - 0.5) < 1e-6",
        "assert sorted(f()) == f({5: {6}})",
    ]
    assert asked(*tests) == ["| f(1, -2, x=[3, (4,)])", "f('aaa')", "f()", "f({5: {6}})"]
    assert len(ahead(*tests).statements) == 3
    assert [ast.unparse(node) for node in ahead(*tests).statements][:2] == [
        "assert __answer__(0) == 100",
        "assert abs(__answer__(1) - 0.5) < 1e-06",
    ]


@pytest.mark.parametrize(
    "last",
    [
        "assert f(x) == 2",
        "assert f(f(1)) == 2",
        "assert f(2) == 1 or f(3) == 1",
        "assert 1 < f(2) < f(3)",
        "assert [f(i) for i in range(3)] == []",
        "assert list(map(f, [1])) == []",
        "assert (lambda: f(1))() == 2",
        "assert f(1).value == 2",
        "assert helper(1) == 2",
        "assert f(*[1]) == 2",
        "assert f(**{'x': 1}) == 2",
        "assert f(2 ** 9) == 2",
        "for i in range(3):\n    assert f(1) == 2",
        "try:\n    f(1)\nexcept ValueError:\n    pass",
        "x.y = f(1)",
        "if f(1): pass",
        "assert f(1) if f(2) else f(3)",
    ],
)
def test_a_call_that_something_decides_over_ends_them(last: str) -> None:
    found = ahead("assert f(8) == 9", last, "assert f(7) == 9")
    assert [call.args for call in found.calls] == [(8,)]
    assert len(found.statements) == 1
    assert not found.rounds[0].last


def test_an_argument_that_is_due_before_waits_for_the_answers() -> None:
    tests = ["assert f('a') == 'b'", "assert f('b') == 'c'", "assert f('x') == 'y'", "assert f(b=['y', 'c']) == 1"]
    assert asked(*tests) == ["| f('a')", "| f('b')", "f('x')", "f(b=['y', 'c'])"]
    assert asked(*tests, "assert f('y') == 2") == ["| f('a')", "| f('b')", "f('x')", "f(b=['y', 'c'])", "| f('y')"]
    assert asked("assert f(1) == True", "assert f(True) == None", "assert f(None) == 0") == [
        "| f(1)",
        "f(True)",
        "f(None)",
    ]


def test_tests_that_call_the_program_before_are_not_asked_for_ahead() -> None:
    assert len(assert_tests(("assert f(1) == 2",)).ahead.calls) == 1
    assert len(assert_tests(("assert f(1) == 2",), "root = f(0)").ahead.calls) == 0
    assert len(assert_tests(("assert f(1) == limit",)).ahead.calls) == 0


def test_a_message_is_not_evaluated(fraction: Code) -> None:
    source = "calls = []\ndef f(x):\n    calls.append(x)\n    return len(calls)"
    tests = ["assert f(1) == 1, str(f(9))", "assert f(2) == 3, str(f(9))", "assert f(3) == 3, f()"]
    verdict = fraction(source, test_list=tests)
    assert verdict.reason.startswith("passed 2 of 3; test 2 of 3, ")
    assert "f(2) gave 2, due 3" in verdict.reason


def test_a_statement_that_fails_early_does_not_shift_the_answers_of_the_next(fraction: Code) -> None:
    source = "def f(x):\n    if x == 1: raise ValueError('one')\n    return x"
    tests = [
        "assert f(0) == 0",
        "assert f(1) == f(50)",
        "assert f(2) == 2",
        "assert f(1) == f(3)",
        "assert [f(i) for i in (4, 5)] == [4, 5]",
    ]
    verdict = fraction(source, test_list=tests)
    assert verdict.score == 3 / 5
    assert "test 2 of 5, 'assert f(1) == f(50)': ValueError: one" in verdict.reason


def test_state_is_that_of_calls_made_one_by_one(fraction: Code) -> None:
    source = "seen = []\ndef f(x):\n    seen.append(x)\n    return sum(seen)\n"
    tests = ["assert f(1) == 1", "assert f(2) == 3", "assert [f(i) for i in (3, 4)] == [6, 10]", "assert f(5) == 15"]
    assert fraction(source, test_list=tests).score == 1.0


def test_a_program_that_reads_the_arguments_to_come_gains_nothing(fraction: Code) -> None:
    source = """
import sys
def f(x):
    frame, found = sys._getframe(), []
    while frame:
        found += [v for v in frame.f_locals.values() if isinstance(v, (bytes, tuple, list, str))]
        frame = frame.f_back
    there = [v for v in found if v != x]
    words = [w for w in ('bcd', 'cde') if any(w.encode() in v if isinstance(v, bytes) else w in v for v in there)]
    return words[0] if words else ''
"""
    tests = ["assert f('abc') == 'bcd'", "assert f('bcd') == 'cde'", "assert f('cde') == 'def'"]
    assert fraction(source.replace("'bcd', 'cde'", "'b' 'cd', 'c' 'de'"), test_list=tests).score == 0.0


def test_methods_and_functions_over_json_are_asked_for_as_well(fraction: Code) -> None:
    rows = {"tests": [{"input": f"{i}", "output": f"{i * i}"} for i in range(5)], "fn_name": "square"}
    assert fraction("def square(x): return x * x", **rows).score == 1.0
    assert fraction("def square(x): return x + x", **rows).score == 2 / 5
    assert fraction("class Solution:\n    def square(self, x): return x * x", **rows).score == 1.0
    assert fraction("def square(x):\n    if x == 3: raise ValueError\n    return x * x", **rows).score == 4 / 5
