"""Values of functions, exact where they have such values, else known by their text."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction

from posttrain_verifiers.mathematics.sampling import FARTHEST, applied
from posttrain_verifiers.mathematics.terms import NonsenseError, TooLargeError
from posttrain_verifiers.mathematics.values import Value, atom, generator, power, prime_powers, rational

LARGEST_FACTORIAL = 2500

_REAL: dict[str, Callable[[float], float]] = {
    **{name: getattr(math, name) for name in ("sin", "cos", "tan", "sinh", "cosh", "tanh")},
    **{f"arc{name}": getattr(math, f"a{name}") for name in ("sin", "cos", "tan")},
    "cot": lambda x: 1 / math.tan(x),
    "sec": lambda x: 1 / math.cos(x),
    "csc": lambda x: 1 / math.sin(x),
    "ln": math.log,
}
"""`log` is not among them: its base is not said."""


def scientific(token: str) -> Fraction:
    if abs(int(re.split("[eE]", token)[1])) > 1000:
        raise TooLargeError("a number of more than 1000 digits")
    return Fraction(token)


def root(value: Value, degree: int) -> Value:
    number = value.rational
    if number is not None and number < 0 and degree % 2:
        return -power(-value, rational(Fraction(1, degree)))
    return power(value, rational(Fraction(1, degree)))


def _integer(value: Value) -> int | None:
    number = value.rational
    return int(number) if number is not None and number.denominator == 1 else None


def factorial(value: Value, marks: int) -> Value:
    number = _integer(value)
    if marks > 2:
        raise TooLargeError("factorials of factorials")
    if number is None:
        gamma = applied(lambda x: math.gamma(x + 1), value.sample) if marks == 1 else math.nan
        return atom(f"({value.text}){'!' * marks}", gamma)
    if number < 0:
        raise NonsenseError("the factorial of a negative number")
    if number > LARGEST_FACTORIAL:
        raise TooLargeError(f"the factorial of more than {LARGEST_FACTORIAL}")
    if marks == 1:
        return rational(math.factorial(number))
    product = 1
    for n in range(number, 0, -2):
        product *= n
    return rational(product)


def binomial(n: Value, k: Value) -> Value:
    top, below = _integer(n), _integer(k)
    if top is None or below is None or top < 0 or below < 0:
        return atom(f"binom({n.text},{k.text})")
    if top > 5000:
        raise TooLargeError("a large binomial coefficient")
    return rational(math.comb(top, below))


def absolute(value: Value) -> Value:
    number = value.rational
    if number is not None:
        return rational(abs(number))
    return atom(f"abs({value.text})", applied(abs, value.sample))


def floor(value: Value, sign: int) -> Value:
    number = value.rational
    if number is None:
        return atom(f"{'floor' if sign > 0 else 'ceil'}({value.text})")
    return rational(sign * (sign * number.numerator // number.denominator))


def function(name: str, argument: Value, base: Value | None) -> Value:
    number = argument.rational
    if name == "exp":
        return power(generator("e"), argument)
    if base is not None:
        return function("ln", argument, None) / function("ln", base, None)
    if name == "ln" and number is not None and number > 0:
        # The logarithms of primes are independent over the rationals.
        primes, complete = prime_powers(number)
        total = rational(0)
        for prime, count in primes.items():
            total += rational(count) * (generator if complete else atom)(f"ln({prime})")
        return total
    if name == "ln" and argument.text == "e":
        return rational(1)
    known = _REAL.get(name)
    sample = applied(known, argument.sample, 0.0 if name == "ln" else -FARTHEST) if known is not None else math.nan
    return atom(f"{name}({argument.text})", sample)
