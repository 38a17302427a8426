"""Quotients of sums: the values of expressions, compared without rounding."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction

from posttrain_verifiers.mathematics.sampling import NONE, Atoms, apart, applied, approximate, ratio
from posttrain_verifiers.mathematics.terms import (
    ONE,
    Exponent,
    Monomial,
    NonsenseError,
    Terms,
    TooLargeError,
    add,
    conjugate,
    divide,
    inverse_of_one,
    monomial,
    multiply,
    rational_power,
    scale,
    written,
)

POSITIVE = ("pi", "e")
CONSTANTS = ("pi", "e", "i", "oo")


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """`top / bottom`, where `bottom` is 1 or a sum of several terms."""

    top: Terms
    bottom: Terms
    atoms: Atoms = field(default_factory=dict)
    """What in it is known by its text only."""

    @property
    def sure(self) -> bool:
        """Whether another form means another value."""
        return not self.atoms

    @property
    def sample(self) -> tuple[complex, float]:
        return ratio(self.top, self.bottom, self.atoms)

    @property
    def rational(self) -> Fraction | None:
        if self.bottom is not ONE or len(self.top) > 1:
            return None
        return self.top.get((), None) if self.top else Fraction(0)

    @property
    def constant(self) -> bool:
        """Without variables."""
        return self.sure and all(
            n[0] == "#" or n in CONSTANTS for t in (self.top, self.bottom) for k in t for n, _ in k
        )

    @property
    def text(self) -> str:
        if self.bottom is ONE:
            return written(self.top)
        return f"({written(self.top)})/({written(self.bottom)})"

    def __add__(self, other: Value) -> Value:
        atoms = _together(self, other)
        if self.bottom is ONE and other.bottom is ONE:
            return Value(add(self.top, other.top), ONE, atoms)
        top = add(multiply(self.top, other.bottom), multiply(other.top, self.bottom))
        return quotient(top, multiply(self.bottom, other.bottom), atoms)

    def __neg__(self) -> Value:
        return Value(scale(self.top, Fraction(-1)), self.bottom, self.atoms)

    def __sub__(self, other: Value) -> Value:
        return self + -other

    def __mul__(self, other: Value) -> Value:
        top = multiply(self.top, other.top)
        if self.bottom is ONE and other.bottom is ONE:
            return Value(top, ONE, _together(self, other))
        return quotient(top, multiply(self.bottom, other.bottom), _together(self, other))

    def __truediv__(self, other: Value) -> Value:
        return self * inverse(other)


def rational(number: Fraction | int) -> Value:
    return Value({(): Fraction(number)} if number else {}, ONE)


def _together(a: Value, b: Value) -> Atoms:
    return {**a.atoms, **b.atoms} if a.atoms and b.atoms else a.atoms or b.atoms


def generator(name: str, exponent: Exponent = 1) -> Value:
    """A variable, a constant, or a prime under a root."""
    key, factor = monomial([(name, exponent)])
    return Value({key: factor}, ONE)


def atom(text: str, sample: float = math.nan, exponent: Exponent = 1) -> Value:
    """What is only known by its text, and by its value at the sample."""
    key, factor = monomial([(text, exponent)])
    return Value({key: factor}, ONE, {text: sample})


def inverse(value: Value) -> Value:
    """Raises NonsenseError for 1/0."""
    return quotient(value.bottom, value.top, value.atoms)


def quotient(top: Terms, bottom: Terms, atoms: Atoms = NONE) -> Value:
    """In lowest terms as far as roots, single terms and exact division go."""
    if not bottom:
        raise NonsenseError("division by zero")
    for _ in range(6):
        if len(bottom) == 1:
            return Value(multiply(top, inverse_of_one(bottom)), ONE, atoms)
        name = _square_root(bottom)
        if name is None:
            break
        other = conjugate(bottom, name)
        top, bottom = multiply(top, other), multiply(bottom, other)
        if not bottom:
            raise NonsenseError("division by zero")
    if not top:
        return Value({}, ONE, atoms)
    # A factor that all terms of the denominator have goes to the numerator.
    shared = {name: exponent for name, exponent in min(bottom) if name[0] != "#" and name != "i"}
    for key in bottom:
        powers = dict(key)
        shared = {n: min(e, powers.get(n, 0)) for n, e in shared.items()}
    content = {tuple(sorted((n, -e) for n, e in shared.items() if e)): 1 / bottom[min(bottom)]}
    top, bottom = multiply(top, content), multiply(bottom, content)
    whole = divide(top, bottom)
    if whole is not None:
        return Value(whole, ONE, atoms)
    if len(top) > 1 and (whole := divide(bottom, top)) is not None:
        return quotient(ONE, whole, atoms)
    return Value(top, bottom, atoms)


def _square_root(terms: Terms) -> str | None:
    """A generator that stands in the sum as a square root and nothing else."""
    seen: dict[str, set[Exponent]] = {}
    for key in terms:
        for name, exponent in key:
            if name == "i" or name[0] == "#":
                seen.setdefault(name, set()).add(exponent)
    return next((n for n, es in seen.items() if es == {1 if n == "i" else Fraction(1, 2)}), None)


def same(a: Value, b: Value) -> bool | None:
    """Whether two values are equal; None where forms differ and that does not tell."""
    if a.bottom is ONE and b.bottom is ONE:
        equal = a.top == b.top
    else:
        equal = multiply(a.top, b.bottom) == multiply(b.top, a.bottom)
    if equal:
        return True
    return False if (a.sure and b.sure) or apart(a.sample, b.sample) else None


def power(base: Value, exponent: Value) -> Value:
    """Raises TooLargeError where the result would be, NonsenseError for 0^0."""
    number = exponent.rational
    if number is None:
        return _symbolic_power(base, exponent)
    if number.denominator == 1:
        return integer_power(base, number.numerator)
    return root(base, number)


def integer_power(base: Value, exponent: int) -> Value:
    if base.bottom is ONE and len(base.top) <= 1:
        ((key, number),) = base.top.items() if base.top else (((), Fraction(0)),)
        raised, factor = monomial((name, e * exponent) for name, e in key)
        number = factor * rational_power(number, exponent)
        return Value({raised: number} if number else {}, ONE, base.atoms)
    if exponent < 0:
        return integer_power(inverse(base), -exponent)
    if exponent > 100:
        raise TooLargeError("a high power of a sum")
    result = rational(1)
    for bit in bin(exponent)[2:]:
        result = result * result
        if bit == "1":
            result = result * base
    return result


def root(base: Value, exponent: Fraction) -> Value:
    """A power with a fractional exponent, taken apart where that holds for all values."""
    unknown = atom(f"root({base.text},{exponent})", applied(lambda x: x ** float(exponent), base.sample, 0.0))
    if base.bottom is not ONE or len(base.top) > 1:
        return unknown
    if not base.top:
        if exponent < 0:
            raise NonsenseError("0 to a negative power")
        return base
    ((key, number),) = base.top.items()
    variables = [(name, e) for name, e in key if name[0] != "#" and name not in POSITIVE]
    if len(variables) > 1 or any(e != 1 or name == "i" for name, e in variables):
        return unknown
    result = Value(ONE, ONE, base.atoms)
    if number < 0:
        if exponent.denominator != 2 or variables:
            return unknown
        result = integer_power(generator("i"), exponent.numerator)
    primes, complete = prime_powers(abs(number))
    raised, factor = monomial((name, e * exponent) for name, e in key)
    result *= Value({raised: factor}, ONE)
    for prime, count in primes.items():
        power_of_prime = generator(f"#{prime}", count * exponent)
        # What was not taken apart may share a factor with another root.
        result *= power_of_prime if complete else Value(power_of_prime.top, ONE, {f"#{prime}": float(prime)})
    return result


def prime_powers(number: Fraction) -> tuple[dict[int, int], bool]:
    """The prime factors of a positive rational with their exponents, and whether all of them are known to be prime."""
    found: dict[int, int] = {}
    complete = True
    for part, sign in ((number.numerator, 1), (number.denominator, -1)):
        if part.bit_length() > 512:
            raise TooLargeError("the root of a large number")
        divisor = 2
        while divisor < 2000 and divisor * divisor <= part:
            while part % divisor == 0:
                part //= divisor
                found[divisor] = found.get(divisor, 0) + sign
            divisor += 1 if divisor == 2 else 2
        if part > 1:
            square = math.isqrt(part)
            base, count = (square, 2) if square * square == part else (part, 1)
            found[base] = found.get(base, 0) + count * sign
            complete = complete and base < 2000 * 2000
    return {prime: count for prime, count in found.items() if count}, complete


def _symbolic_power(base: Value, exponent: Value) -> Value:
    """b^(c1 m1 + c2 m2 + ...) as a product of (b^m)^c, b taken into primes; the rest is known by its text only."""
    height = exponent.sample[0]
    known = applied(lambda x: x**height.real, base.sample, 0.0) if height.imag == 0 else math.nan
    unknown = atom(f"({base.text})^({exponent.text})", known)
    if base.bottom is not ONE or exponent.bottom is not ONE or len(base.top) != 1:
        return unknown
    ((key, number),) = base.top.items()
    if number <= 0 or len(key) > 1 or any(e != 1 or name[0] == "#" or name == "i" for name, e in key):
        return unknown
    primes, complete = prime_powers(number)
    bases: list[tuple[str, int]] = [(str(prime), count) for prime, count in primes.items()]
    bases += [(name, 1) for name, _ in key]
    result = Value(ONE, ONE, _together(base, exponent))
    for m, c in exponent.top.items():
        if not m:
            result *= power(base, rational(c))
            continue
        sure = complete and not any(name[0] == "#" or name in CONSTANTS for name, _ in m)
        for name, count in bases:
            text = f"{name}^({_text(m)})"
            if sure:
                result *= generator(text, count * c)
            else:
                result *= atom(text, _raised(name, m, exponent.atoms), count * c)
    return result


def _raised(name: str, key: Monomial, atoms: Atoms) -> float:
    """The sampled value of name^key."""
    base = float(name) if name.isdigit() else approximate({((name, 1),): Fraction(1)}, atoms)[0].real
    return applied(lambda height: base**height, approximate({key: Fraction(1)}, atoms))


def _text(key: Monomial) -> str:
    return written({key: Fraction(1)})


def real(value: Value) -> float | None:
    """A real constant as a float; None for anything else, and where it overflows."""
    number = value.sample[0] if value.constant else complex(math.nan)
    return number.real if math.isfinite(number.real) and number.imag == 0 else None
