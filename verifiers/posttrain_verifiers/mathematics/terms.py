"""Sums of rational multiples of products of generators, in one form for all spellings.

A generator is a variable, `pi`, `e`, `i`, a prime with a fractional exponent (`#2`), or what cannot be taken apart
(`sin(x)`). Roots of different primes, and pi, are independent over the rationals, so two sums of them are equal only
where they are the same.
"""

from __future__ import annotations

from collections.abc import Iterable
from fractions import Fraction

LARGEST = 32_000
"""Bits of a number: above 2000!, and still a matter of microseconds."""
MOST_TERMS = 4000
"""Products of terms in one multiplication."""

Exponent = Fraction | int
Monomial = tuple[tuple[str, Exponent], ...]
Terms = dict[Monomial, Fraction]
ONE: Terms = {(): Fraction(1)}


class UnreadableError(ValueError):
    """The exact layer cannot read this."""


class NonsenseError(ValueError):
    """What no answer can be equal to: a division by zero, an equation that does not hold, dots that leave it open."""


class TooLargeError(NonsenseError):
    """A number or a sum that would not fit the exact layer's bounds."""


def bounded(number: Fraction) -> Fraction:
    """The number itself. Raises TooLargeError above `LARGEST` bits."""
    if number.numerator.bit_length() > LARGEST or number.denominator.bit_length() > LARGEST:
        raise TooLargeError(f"more than {LARGEST} bits")
    return number


def rational_power(base: Fraction, exponent: int) -> Fraction:
    """Raises TooLargeError before it computes what would be, NonsenseError for 0 to a power that is not positive."""
    if base == 0 and exponent <= 0:
        raise NonsenseError("0 to such a power")
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(base) != 1 and base != 0 and bits * abs(exponent) > LARGEST + bits:
        raise TooLargeError(f"more than {LARGEST} bits")
    if base in (0, 1, -1):
        return base if exponent % 2 else abs(base)
    return bounded(base**exponent)


def monomial(powers: Iterable[tuple[str, Exponent]]) -> tuple[Monomial, Fraction]:
    """The product of powers of different generators, and the rational factor that comes out of it."""
    factor, kept = Fraction(1), []
    for name, exponent in powers:
        if name[0] == "#":
            whole = exponent.numerator // exponent.denominator
            if whole:
                factor *= rational_power(Fraction(int(name[1:])), whole)
                exponent -= whole
        elif name == "i":
            turn = int(exponent) % 4
            factor, exponent = (-factor if turn > 1 else factor), turn % 2
        if exponent:
            kept.append((name, exponent.numerator if exponent.denominator == 1 else exponent))
    return tuple(sorted(kept)), factor


def times(a: Monomial, b: Monomial) -> tuple[Monomial, Fraction]:
    powers: dict[str, Exponent] = dict(a)
    for name, exponent in b:
        powers[name] = powers.get(name, 0) + exponent
    return monomial(powers.items())


def add(a: Terms, b: Terms) -> Terms:
    total = dict(a)
    for key, number in b.items():
        number = bounded(number + total.pop(key, 0))
        if number:
            total[key] = number
    return total


def multiply(a: Terms, b: Terms) -> Terms:
    """Raises TooLargeError where the product is too much work."""
    if a == ONE:
        return b
    if b == ONE:
        return a
    work = len(a) * len(b)
    if work > MOST_TERMS or (work > 30 and work * (_bits(a) + _bits(b)) > 100 * MOST_TERMS):
        raise TooLargeError("a product of long sums")
    product: Terms = {}
    for left, p in a.items():
        for right, q in b.items():
            if left and right:
                key, factor = times(left, right)
                number = p * q * factor
            else:
                key, number = left or right, p * q
            number = bounded(number + product.pop(key, 0))
            if number:
                product[key] = number
    return product


def _bits(terms: Terms) -> int:
    return max((n.numerator.bit_length() + n.denominator.bit_length() for n in terms.values()), default=0)


def scale(terms: Terms, number: Fraction) -> Terms:
    return {key: bounded(value * number) for key, value in terms.items()} if number else {}


def inverse_of_one(terms: Terms) -> Terms:
    """1 / a sum of one term."""
    ((key, number),) = terms.items()
    turned, factor = monomial((name, -exponent) for name, exponent in key)
    return {turned: bounded(factor / number)}


def conjugate(terms: Terms, name: str) -> Terms:
    """The sum with the other sign of the generator `name`, a square root."""
    return {key: -n if any(g == name for g, _ in key) else n for key, n in terms.items()}


def divide(top: Terms, bottom: Terms) -> Terms | None:
    """The quotient where the division of two polynomials leaves nothing, else None."""
    exponents = [e for terms in (top, bottom) for key in terms for _, e in key]
    if not all(isinstance(e, int) and e > 0 for e in exponents) or len(top) > 60:
        return None
    names = sorted({name for key in bottom for name, _ in key} | {name for key in top for name, _ in key})

    def rank(key: Monomial) -> list[Exponent]:
        powers = dict(key)
        return [powers.get(name, 0) for name in names]

    lead = max(bottom, key=rank)
    quotient: Terms = {}
    rest = top
    for _ in range(60):
        if not rest:
            return quotient
        first = max(rest, key=rank)
        key, _ = times(first, tuple((name, -e) for name, e in lead))
        if any(e < 0 for _, e in key):
            return None
        step = {key: bounded(rest[first] / bottom[lead])}
        quotient = add(quotient, step)
        rest = add(rest, scale(multiply(step, bottom), Fraction(-1)))
    return None


def written(terms: Terms) -> str:
    """The sum as text, the same for equal sums."""
    if not terms:
        return "0"
    text = ""
    for key, number in sorted(terms.items(), key=_order):
        size = _rational(abs(number))
        factors = "*".join(_factor(name, exponent) for name, exponent in key)
        text += "-" if number < 0 else "+" if text else ""
        text += factors if factors and size == "1" else f"{size}*{factors}" if factors else size
    return text


def _order(item: tuple[Monomial, Fraction]) -> tuple[Exponent, Monomial]:
    return -sum(e for name, e in item[0] if name[0] != "#" and name not in ("pi", "e", "i")), item[0]


def _rational(number: Fraction) -> str:
    if number.denominator == 1:
        return _integer(number.numerator)
    return f"{_integer(number.numerator)}/{_integer(number.denominator)}"


def _integer(number: int) -> str:
    return str(number) if number.bit_length() < 13_000 else hex(number)  # Python prints 4300 digits at most


def _factor(name: str, exponent: Exponent) -> str:
    if name[0] == "#":
        name = name[1:]
        if exponent == Fraction(1, 2):
            return f"sqrt({name})"
    if exponent == 1:
        return name
    return f"{name}^{exponent}" if isinstance(exponent, int) and exponent > 0 else f"{name}^({exponent})"
