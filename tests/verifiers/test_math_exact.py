"""Exact arithmetic on written answers, against rational numbers, floating point and other spellings."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain_verifiers.math import Math
from posttrain_verifiers.mathematics.answers import Number, Unread
from posttrain_verifiers.mathematics.exact import Comparison, Tolerance
from posttrain_verifiers.mathematics.expressions import read_expression
from posttrain_verifiers.mathematics.reading import read
from posttrain_verifiers.mathematics.values import Value, real, same

numbers = st.fractions(min_value=-50, max_value=50, max_denominator=40)
whole = st.integers(1, 60)


def equal(one: str, other: str) -> bool | None:
    verdict = Comparison().equal(read(one), read(other))
    assert Comparison().equal(read(other), read(one)) is verdict
    return verdict


@given(numbers, numbers)
def test_fractions_are_equal_exactly_where_their_values_are(a: Fraction, b: Fraction) -> None:
    sign = "-" if a < 0 else ""
    spelt = rf"{sign}\frac{{{2 * abs(a.numerator)}}}{{{2 * a.denominator}}}"
    assert equal(spelt, f"{a.numerator}/{a.denominator}") is True
    assert equal(spelt, f"{b.numerator}/{b.denominator}") is (a == b)
    assert read(spelt).text == read(str(a)).text


@given(st.integers(-(10**6), 10**6), st.integers(0, 6))
def test_a_decimal_is_its_fraction_and_no_other(digits: int, places: int) -> None:
    value = Fraction(digits, 10**places)
    text = f"{digits / 10**places:.{places}f}"
    assert Fraction(text) == value
    assert equal(text, f"{value.numerator}/{value.denominator}") is True
    assert equal(text, f"{value.numerator * 10**9 + 1}/{value.denominator * 10**9}") is False


@given(whole, whole, whole, whole)
def test_sums_of_roots_are_equal_exactly_where_their_squares_say_so(a: int, b: int, c: int, d: int) -> None:
    # (sqrt a + sqrt b)^2 = a + b + 2 sqrt(ab): two such sums are equal where both parts are.
    one, other = rf"\sqrt{{{a}}}+\sqrt{{{b}}}", rf"\sqrt{c} + \sqrt{{{d}}}" if c < 10 else rf"\sqrt{{{c}}}+\sqrt{{{d}}}"
    assert equal(one, other) is (math.isclose(math.sqrt(a) + math.sqrt(b), math.sqrt(c) + math.sqrt(d), rel_tol=1e-13))
    assert equal(rf"({one})^2", rf"{a + b} + 2\sqrt{{{a * b}}}") is True


@given(whole, whole, whole)
def test_a_denominator_with_a_root_is_made_rational(a: int, b: int, c: int) -> None:
    if a * a == b:
        return
    below = a * a - b
    assert equal(rf"\frac{{{c}}}{{{a}+\sqrt{{{b}}}}}", rf"\frac{{{c}({a}-\sqrt{{{b}}})}}{{{below}}}") is True
    assert equal(rf"\frac{{{c}}}{{{a}+\sqrt{{{b}}}}}", rf"\frac{{{c}({a}-\sqrt{{{b}}})}}{{{below}}}+0.001") is False


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=5), st.lists(st.integers(-9, 9), min_size=1, max_size=5))
def test_polynomials_are_equal_exactly_where_their_coefficients_are(p: list[int], q: list[int]) -> None:
    def text(coefficients: list[int]) -> str:
        return "+".join(f"({c})x^{i}" for i, c in enumerate(coefficients))

    def trimmed(coefficients: list[int]) -> list[int]:
        while coefficients and coefficients[-1] == 0:
            coefficients = coefficients[:-1]
        return coefficients

    product = [0] * (len(p) + len(q) - 1)
    for i, a in enumerate(p):
        for j, b in enumerate(q):
            product[i + j] += a * b
    assert equal(f"({text(p)})({text(q)})", text(product)) is True
    assert equal(text(p), text(q)) is (trimmed(p) == trimmed(q))
    if any(q):
        assert equal(rf"\frac{{({text(p)})({text(q)})}}{{{text(q)}}}", text(p)) is True


EXPRESSIONS = {
    r"1/2+1/3": 5 / 6,
    r"2^{-3}": 0.125,
    "-2^2": -4,
    "2^3^2": 512,
    "6/2(3)": 9,
    r"\sqrt[3]{27}": 3,
    r"8^{2/3}": 4,
    r"\frac{\pi}{4}\cdot e": math.pi * math.e / 4,
    r"\binom{10}{3}": 120,
    "5!!": 15,
    r"\lfloor -2.5 \rfloor + \lceil 2.1 \rceil": 0,
    "|-3| + 2": 5,
    r"\sqrt{2}\sqrt[4]{8}": 2**0.5 * 8**0.25,
    "1 1/2 + 2": 3.5,
    r"3\frac{1}{4}": 3.25,
    "1.5e3": 1500,
    r"\frac{1}{\sqrt[3]{2}}": 2 ** (-1 / 3),
}


@pytest.mark.parametrize("text", EXPRESSIONS)
def test_an_expression_has_its_value(text: str) -> None:
    value = real(read_expression(text))
    assert value is not None
    assert math.isclose(value, EXPRESSIONS[text], rel_tol=1e-14, abs_tol=1e-14)  # a few roundings of a double


IDENTITIES = [
    (r"\sin 2x", r"2\sin x\cos x"),
    (r"\tan x", r"\frac{\sin x}{\cos x}"),
    (r"\sin^2 x + \cos^2 x - 1", "0"),
    (r"\sqrt{3+2\sqrt2}", r"1+\sqrt2"),
    (r"\arctan x + \arctan \frac{1}{x}", r"\frac{\pi}{2}"),
    (r"\sqrt{x^2+2x+1}", "x+1"),
    (r"\frac{(n+1)!}{n!}", "n+1"),
    (r"\ln(xy)", r"\ln x + \ln y"),
    (r"\sqrt[3]{x-9}", r"-\sqrt[3]{9-x}"),
    (r"\cos(n\pi)", "(-1)^n"),
    (r"\sin(10^{30}\pi + x)", r"\sin x"),
    (r"|x|", r"\sqrt{x^2}"),
]


@pytest.mark.parametrize(("one", "other"), IDENTITIES)
def test_sampling_never_refutes_what_is_equal(one: str, other: str) -> None:
    assert same(read_expression(one), read_expression(other)) is not False


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (r"\sin x", r"\cos x"),
        ("n!", "n"),
        (r"e^{\pi}", r"\pi^e"),
        (r"\ln(x+y)", r"\ln x + \ln y"),
        (r"\sqrt{x^2+1}", "x+1"),
        (r"\tan 1", "1.5574"),
        (r"2^{\sqrt2}", r"2\sqrt2"),
    ],
)
def test_sampling_refutes_what_differs(one: str, other: str) -> None:
    assert same(read_expression(one), read_expression(other)) is False


def test_the_order_of_variables_and_factors_leaves_no_trace() -> None:
    value: Value = read_expression("a b c + 2 c a")
    assert value.text == read_expression("c(2a + b a)").text


def test_numbers_may_differ_by_half_a_unit_of_the_stated_place_and_no_more() -> None:
    rounded = Math(decimals=2)
    for text, gold, score in [
        ("0.33", "1/3", 1.0),
        ("0.335", "0.33", 1.0),
        ("0.3351", "0.33", 0.0),
        ("3.14", r"\pi", 1.0),
        ("3.15", r"\pi", 0.0),
        ("(0.33, 3.14)", r"(1/3, \pi)", 1.0),
        ("1.41, -1.41", r"-\sqrt2, \sqrt2", 1.0),
        ("1.41, 1.41", r"-\sqrt2, \sqrt2", 0.0),
        ("33.33%", "1/3", 1.0),
    ]:
        assert rounded(f"\\boxed{{{text}}}", answer=gold).score == score, (text, gold)
        assert rounded(f"\\boxed{{{gold}}}", answer=text).score == score, (text, gold)


def test_numbers_may_differ_by_a_share_of_the_larger() -> None:
    near = Comparison(Tolerance(relative=0.01))
    assert near.equal(read("99"), read("100")) is True
    assert near.equal(read("98.9"), read("100")) is False
    assert near.equal(read("314"), read(r"100\pi")) is True
    assert near.equal(read("0.001"), read("0")) is False


@settings(max_examples=50)
@given(st.integers(2, 36), st.integers(0, 10**6))
def test_a_number_in_another_base_is_one_only_in_that_base(base: int, number: int) -> None:
    digits = ""
    rest = number
    while rest or not digits:
        digits, rest = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"[rest % base] + digits, rest // base
    if base <= 10:
        assert equal(f"{digits}_{base}", f"{digits}_{{{base}}}") is True
        assert equal(f"{digits}_{base}", str(number)) is (base == 10)
    if base < 10:
        assert equal(f"{digits}_{base}", f"{digits}_{base + 1}") is (base == 9 and False)


def test_what_has_no_value_equals_nothing_but_itself() -> None:
    for text in ("1/0", r"\frac{0}{0}", "0^0", "41 = 42", "(-1)!", r"1, 2, \ldots, n", "10^{10^{10}}"):
        assert isinstance(read(text), Unread)
        assert equal(text, text) is True
        assert equal(text, "42") is False
        assert equal(text, "1, 2") is False


def test_a_unit_is_converted_where_both_sides_say_one() -> None:
    assert isinstance(read("5 km"), Number)
    for one, other, verdict in [
        ("5 km", "5000 m", True),
        ("5 km", "5", True),
        ("5 km", "5 kg", False),
        ("5 km", "5 miles", False),
        ("1 mile", "1609.344 meters", True),
        ("5 feet 3 inches", "63 inches", True),
        ("60 km/h", "1 km/min", True),
        ("5 apples", "5 pears", True),
    ]:
        assert equal(one, other) is verdict, (one, other)
