"""Whether two read answers are equal, by exact arithmetic: True, False, or None where it cannot tell."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

from posttrain_verifiers.mathematics.answers import (
    UNORDERED,
    Answer,
    Choice,
    Group,
    Named,
    Number,
    Relation,
    Unread,
    Words,
    relation,
)
from posttrain_verifiers.mathematics.terms import NonsenseError, UnreadableError
from posttrain_verifiers.mathematics.values import Value, generator, rational, real, same

INFINITE = ("oo", "-oo")


class Tolerance(NamedTuple):
    """How far apart two real numbers may be: half a unit of the decimal place `decimals`, or `relative` of the larger.

    Neither, and only equal numbers are equal.
    """

    decimals: int | None = None
    relative: float = 0.0

    def covers(self, a: Value, b: Value) -> bool:
        x, y = a.rational, b.rational
        if x is not None and y is not None:
            gap, size = abs(x - y), max(abs(x), abs(y))
            half = Fraction(1, 2 * 10**self.decimals) if self.decimals is not None else 0
            return gap <= half or gap <= Fraction(self.relative) * size
        u, v = real(a), real(b)
        if u is None or v is None:
            return False
        near = self.decimals is not None and abs(u - v) <= 0.5 * 10.0**-self.decimals
        return near or abs(u - v) <= self.relative * max(abs(u), abs(v))


EXACT = Tolerance()


@dataclass(frozen=True, slots=True)
class Comparison:
    """Compares answers under one tolerance."""

    tolerance: Tolerance = EXACT

    def equal(self, a: Answer, b: Answer) -> bool | None:
        """The same in both orders."""
        try:
            return self._equal(a, b)
        except (NonsenseError, UnreadableError):
            return None

    def _equal(self, a: Answer, b: Answer) -> bool | None:
        if isinstance(a, Number) and isinstance(b, Number):
            return self._numbers(a, b)
        if isinstance(a, Named) or isinstance(b, Named):
            if isinstance(a, Named) and isinstance(b, Named) and a.name != b.name and len(a.name) == len(b.name) == 1:
                return False
            if isinstance(a, Relation) or isinstance(b, Relation):
                return self._equation(a, b)
            return self._equal(a.answer if isinstance(a, Named) else a, b.answer if isinstance(b, Named) else b)
        if isinstance(a, Unread) or isinstance(b, Unread):
            return _unread(a, b)
        if isinstance(a, Choice) or isinstance(b, Choice):
            return self._choices(a, b)
        if isinstance(a, Group) and isinstance(b, Group):
            return self._groups(a, b)
        if isinstance(a, Words) and isinstance(b, Words):
            return a.text == b.text
        if isinstance(a, Relation) and isinstance(b, Relation):
            return self._relations(a, b)
        return False

    def _numbers(self, a: Number, b: Number) -> bool | None:
        x, y = a.value, b.value
        if a.unit is not None and b.unit is not None and a.unit != b.unit:
            if a.unit.dimension != b.unit.dimension:
                return False
            x, y = x * rational(a.unit.factor), y * rational(b.unit.factor)
        found = self._values(x, y)
        if found is False and a.percent != b.percent:
            hundredth = rational(Fraction(1, 100))
            return self._values(x * hundredth, y) if a.percent else self._values(x, y * hundredth)
        return found

    def _values(self, x: Value, y: Value) -> bool | None:
        if x.sure and y.sure:
            return bool(same(x, y)) or (self.tolerance != EXACT and self.tolerance.covers(x, y))
        if x.text in INFINITE or y.text in INFINITE:
            either = x.text in INFINITE and y.text in INFINITE
            return x.text == y.text if either or x.sure or y.sure else None
        return same(x, y)

    def _choices(self, a: Answer, b: Answer) -> bool | None:
        if isinstance(a, Choice) and isinstance(b, Choice):
            return a.letter == b.letter
        choice, other = (a, b) if isinstance(a, Choice) else (b, a)
        assert isinstance(choice, Choice)
        return False if choice.content is None else self._equal(choice.content, other)

    def _groups(self, a: Group, b: Group) -> bool | None:
        kinds = {a.kind, b.kind}
        alike = len(kinds) == 1 or kinds == {"set", "list"}
        if not alike or len(a.items) != len(b.items):
            return False
        if a.kind in UNORDERED:
            return self._unordered(list(a.items), list(b.items))
        return _all([self._equal(x, y) for x, y in zip(a.items, b.items, strict=True)])

    def _unordered(self, left: list[Answer], right: list[Answer]) -> bool | None:
        """Each of the one to one of the other: by text where that settles it, then one by one."""
        texts = [item.text for item in right]
        for item in list(left):
            if item.text in texts:
                at = texts.index(item.text)
                if self._equal(item, right[at]):
                    left.remove(item)
                    del texts[at], right[at]
        table = [[self._equal(item, other) for other in right] for item in left]
        lonely = any(all(cell is False for cell in line) for line in (*table, *zip(*table, strict=True)))
        if lonely:
            return False
        free = set(range(len(right)))
        for line in table:
            taken = [i for i in sorted(free) if line[i]]
            if not taken:
                return None
            free.remove(taken[0])
        return True

    def _equation(self, a: Answer, b: Answer) -> bool | None:
        """y = 2x + 1 against y - 2x - 1 = 0."""
        named, other = (a, b) if isinstance(a, Named) else (b, a)
        assert isinstance(named, Named)
        if not (isinstance(other, Relation) and isinstance(named.answer, Number) and len(named.name) == 1):
            return False
        return self._relations(relation("=", generator(named.name), named.answer.value), other)

    def _relations(self, a: Relation, b: Relation) -> bool | None:
        if a.sign != b.sign:
            return False
        found = same(a.value, b.value)
        if found is False and a.sign in ("=", "!=") and (len(a.value.top) > 1 or len(b.value.top) > 1):
            return same(a.value, -b.value) or False
        return found


def _all(answers: list[bool | None]) -> bool | None:
    return False if False in answers else None if None in answers else True


def _unread(a: Answer, b: Answer) -> bool | None:
    if isinstance(a, Unread) and isinstance(b, Unread):
        return True if a.text == b.text else False if a.hopeless or b.hopeless else None
    unread, other = (a, b) if isinstance(a, Unread) else (b, a)
    assert isinstance(unread, Unread)
    return False if unread.hopeless or isinstance(other, Words | Choice) else None
