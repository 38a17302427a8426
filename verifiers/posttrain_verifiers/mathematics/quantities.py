"""Formulas with a unit, a percent sign or a scale behind them."""

from __future__ import annotations

import re
from fractions import Fraction

from posttrain_verifiers.mathematics.answers import Number
from posttrain_verifiers.mathematics.expressions import read_expression
from posttrain_verifiers.mathematics.spelling import without_thousands
from posttrain_verifiers.mathematics.terms import NonsenseError, UnreadableError
from posttrain_verifiers.mathematics.units import KNOWN, SCALES, Unit, read_unit
from posttrain_verifiers.mathematics.values import rational

_MONEY = re.compile(r"([-+]?)\s*(?:US)?\s*([$€£₹¥])\s*([-+]?)(?=[\d.\\])")
_DEGREES = re.compile(r"\s*\^\s*\{?\s*\\circ\s*\}?\s*([CF])?(?![A-Za-z])\s*")
_SHORT = re.compile(
    r"(.*(?:\d|\\pi))(?:\s*(?=cm|mm|km|kg|mg|ml|ft|in|mi|hr|lb|oz|yd|[mgshL]\s*[/^])|\s+(?=[mgshL]$))"
    r"([A-Za-z]{1,2}(?![A-Za-z]).*)"
)
"""Abbreviated units; one letter is one only behind a space or before a power or a slash."""
_TAIL = re.compile(r"(.*(?:[\d})!]|\\pi))\s*((?<!\\)\b(?:sq\.\s*|cu\.\s*)?[A-Za-z]{2,}.*)", re.DOTALL)
_COMPOUND = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)[\s,]*")
_FORMULA_WORDS = re.compile(
    r"(?:sqrt|pi|sin|cos|tan|cot|sec|csc|log|ln|exp|abs|mod|theta|alpha|beta|infinity|inf)\b|[a-z]{2}\b"
)

_OPERATION = re.compile(
    r"\b(?:plus|minus|times|over|squared|cubed|factorial|divided|multiplied|not|isn't|but|except|wrong|incorrect|more|less)\b"
)


def read_quantity(text: str) -> Number:
    """'$5 million', '15 cm^2', '50%', '5 feet 3 inches', or a formula alone. Raises UnreadableError, NonsenseError."""
    unit: Unit | None = None
    percent = False
    factor = Fraction(1)
    if not text:
        raise UnreadableError("nothing")
    if (compound := _compound(text)) is not None:
        return compound
    if money := _MONEY.match(text):
        unit = read_unit(money.group(2))
        text = money.group(1) + money.group(3) + text[money.end() :]
    if "^" in text and (degree := _DEGREES.search(text)):
        if text[degree.end() :] or not text[: degree.start()]:
            raise UnreadableError("degrees inside a formula")
        kind = {"C": "celsius", "F": "fahrenheit"}.get(degree.group(1), "angle")
        unit, text = Unit(kind, Fraction(1)), text[: degree.start()]
    if "%" in text:
        text, _, rest = text.partition("%")
        percent = not re.search(r"[\d=+*/^]", rest)
        if not percent:
            raise UnreadableError("a percentage inside a formula")
    elif match := _SHORT.fullmatch(text) or _with_prose(text):
        text, words = match.groups()
        while (scale := re.match(r"\s*([A-Za-z]+)", words)) and scale.group(1).lower() in SCALES:
            factor *= SCALES[scale.group(1).lower()]
            words = words[scale.end() :]
        percent = bool(re.match(r"\s*(?:percent|per cent)\b", words))
        unit = read_unit(words) or unit
    elif text[-1:] in "$€£":
        unit, text = read_unit(text[-1]), text[:-1]
    value = read_expression(without_thousands(text.strip()))
    return Number(value * rational(factor) if factor != 1 else value, unit, percent)


def formula_word(text: str) -> bool:
    """Whether a text begins with a word that formulas are made of."""
    return bool(_FORMULA_WORDS.match(text))


def _with_prose(text: str) -> re.Match[str] | None:
    """A formula and what stands behind it, where that is a unit or a noun, neither a formula nor a second number."""
    match = _TAIL.fullmatch(text)
    if match is None or re.search(r"\d(?!\s*\}?$)|[=+*<>]|\\", match.group(2)):
        return None
    if _OPERATION.search(match.group(2)):
        raise NonsenseError("a calculation in words")
    first = re.match(r"[A-Za-z]+", match.group(2))
    known = first is not None and first.group().lower() in {*KNOWN, *SCALES}
    return match if known or not formula_word(match.group(2)) else None


def _compound(text: str) -> Number | None:
    """5 feet 3 inches."""
    parts = _COMPOUND.findall(text) if text[:1].isdigit() and text[-1].isalpha() else []
    if len(parts) < 2 or _COMPOUND.sub("", text):
        return None
    units = [read_unit(name) for _, name in parts]
    first = units[0]
    if first is None or any(unit is None or unit.dimension != first.dimension for unit in units):
        return None
    total = sum(Fraction(n) * unit.factor for (n, _), unit in zip(parts, units, strict=True) if unit is not None)
    return Number(rational(total / first.factor), first)
