"""What a sum is in floating point, where each variable stands for one positive number: enough to tell two apart."""

from __future__ import annotations

import cmath
import math
import zlib
from collections.abc import Callable, Mapping

from posttrain_verifiers.mathematics.terms import Terms

Atoms = Mapping[str, float]
"""Generators that are known by their text only, with their values at the sample; nan where that is not known."""
NONE: Atoms = {}
CANCELLED = 1e-6
"""A result smaller than this share of its terms is rounding."""
DIFFERENT = 1e-6
"""Relative: a thousand million times what rounding does."""
FARTHEST = 1e4
"""Beyond this a sine is rounding."""


def approximate(terms: Terms, atoms: Atoms) -> tuple[complex, float]:
    """The sum, and the sum of its terms' sizes; nan where a generator's value is not known."""
    total, size = 0j, 0.0
    try:
        for key, number in terms.items():
            product = complex(float(number))
            for name, exponent in key:
                product *= _generator(name, atoms) ** float(exponent)
            total += product
            size += abs(product)
    except (OverflowError, ZeroDivisionError):
        return complex(math.nan), math.nan
    return total, size


def _generator(name: str, atoms: Atoms) -> complex:
    if name in atoms and name[0] != "#":
        return complex(atoms[name])
    if name[0] == "#":
        return complex(float(name[1:]))
    if name in ("pi", "e", "i"):
        return {"pi": complex(math.pi), "e": complex(math.e), "i": 1j}[name]
    if "(" in name:
        return complex(math.nan)
    return complex(0.6 + zlib.crc32(name.encode()) / 2**32)


def ratio(top: Terms, bottom: Terms, atoms: Atoms) -> tuple[complex, float]:
    """The quotient of two sums and the size of what it is made of."""
    above, size = approximate(top, atoms)
    below, scale = approximate(bottom, atoms)
    if not cmath.isfinite(above) or not cmath.isfinite(below) or abs(below) <= CANCELLED * scale:
        return complex(math.nan), math.nan
    return above / below, size / abs(below)


def apart(a: tuple[complex, float], b: tuple[complex, float]) -> bool:
    """Whether two sampled quotients are of different values."""
    return abs(a[0] - b[0]) > DIFFERENT * (a[1] + b[1])  # false where one is nan


def applied(function: Callable[[float], float], sample: tuple[complex, float], least: float = -FARTHEST) -> float:
    """A real function's value at a sample; nan outside what it is defined and precise for."""
    value, size = sample
    if not cmath.isfinite(value) or abs(value.imag) > 1e-12 * size or not least < value.real < FARTHEST:
        return math.nan
    if abs(value) < CANCELLED * size:
        return math.nan
    try:
        return float(function(value.real))
    except (ValueError, OverflowError, ZeroDivisionError):
        return math.nan
