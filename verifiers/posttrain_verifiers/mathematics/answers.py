"""What an answer can be. Each has a `text`: the same for answers that are equal in every spelling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from posttrain_verifiers.mathematics.units import Unit
from posttrain_verifiers.mathematics.values import Value

GroupKind = Literal["()", "[]", "(]", "[)", "set", "list", "union", "matrix", "row", "ratio"]
UNORDERED = ("set", "list", "union")


@dataclass(frozen=True, slots=True)
class Number:
    """A value, with what was said of its unit. A percentage may mean its hundredth."""

    value: Value
    unit: Unit | None = None
    percent: bool = False

    @property
    def text(self) -> str:
        return self.value.text


@dataclass(frozen=True, slots=True)
class Words:
    """A name, a yes, a date, a number in another base."""

    text: str


@dataclass(frozen=True, slots=True)
class Choice:
    """The letter of a multiple choice, and what was written behind it."""

    letter: str
    content: Answer | None = None

    @property
    def text(self) -> str:
        return self.letter


@dataclass(frozen=True, slots=True)
class Group:
    """Several answers: a tuple or open interval `()`, a closed one `[]`, half-open ones, a set or list without order,
    a union of intervals, a matrix of rows, a ratio.
    """

    kind: GroupKind
    items: tuple[Answer, ...]

    @property
    def text(self) -> str:
        texts = [item.text for item in self.items]
        if self.kind in UNORDERED:
            texts.sort()
        if len(self.kind) == 2:
            return self.kind[0] + ", ".join(texts) + self.kind[1]
        if self.kind == "union":
            return " U ".join(texts)
        if self.kind == "ratio":
            return ":".join(texts)
        return "{" + ", ".join(texts) + "}" if self.kind in UNORDERED else "[" + ", ".join(texts) + "]"


@dataclass(frozen=True, slots=True)
class Relation:
    """`value` = 0, != 0, < 0 or <= 0, up to a factor that changes nothing."""

    sign: Literal["=", "!=", "<", "<="]
    value: Value

    @property
    def text(self) -> str:
        return f"{self.value.text} {self.sign} 0"


@dataclass(frozen=True, slots=True)
class Named:
    """An answer that says of what it is the value: x = 5, f(x) = 2x, x in [0, 1]."""

    name: str
    answer: Answer

    @property
    def text(self) -> str:
        return self.answer.text


@dataclass(frozen=True, slots=True)
class Unread:
    """What the exact layer cannot read."""

    text: str
    hopeless: bool = False
    """No other text is equal to it: it is too large to be written down, or has no value."""


Answer = Number | Words | Choice | Group | Relation | Named | Unread


def relation(sign: Literal["=", "!=", "<", "<="], left: Value, right: Value) -> Relation:
    """`left sign right`, scaled so that its first coefficient is 1, or for an order of size 1."""
    difference = left - right
    top = difference.top if difference.sure and len(difference.bottom) == 1 else {}
    if top:
        first = top[min(top)] if len(top) == 1 else top[min(key for key in top if key)]
        factor = 1 / (first if sign in ("=", "!=") else abs(first))
        difference = Value({key: number * factor for key, number in top.items()}, difference.bottom)
    return Relation(sign, difference)


def as_interval(kind: GroupKind, low: Answer, high: Answer) -> Answer:
    """An interval, where both ends are infinite the real numbers."""
    texts = (low.text, high.text)
    if texts == ("-oo", "oo"):
        return Words(r"\mathbb{R}")
    return Group(kind, (low, high))
