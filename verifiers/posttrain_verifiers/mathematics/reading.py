"""From the text of an answer to what it says."""

from __future__ import annotations

import re
from collections.abc import Iterator

from posttrain_verifiers.mathematics.answers import (
    Answer,
    Choice,
    Group,
    GroupKind,
    Named,
    Number,
    Unread,
    Words,
    as_interval,
)
from posttrain_verifiers.mathematics.expressions import read_expression
from posttrain_verifiers.mathematics.quantities import formula_word, read_quantity
from posttrain_verifiers.mathematics.relations import read_relation, sides
from posttrain_verifiers.mathematics.spelling import spell, without_thousands
from posttrain_verifiers.mathematics.terms import NonsenseError, UnreadableError
from posttrain_verifiers.mathematics.values import rational
from posttrain_verifiers.mathematics.words import read_choice, read_date, read_number_word, read_words

LONGEST = 400
"""Characters of an answer; more is a text, not an answer."""
MOST = 50
"""Members of a list."""

_INTEGER = re.compile(r"[-+]?\d{1,18}")
_BASED = re.compile(r"(?=.*\d)([0-9A-F]+)\s*_\s*\{?\s*(\d{1,2}|[a-z]+)\s*\}?")
_MATRIX = re.compile(r"\\begin\{([pbB]?matrix|array)\}(?:\{[clr|]*\})?(.*)\\end\{\1\}", re.DOTALL)
_AND = re.compile(r"\s(?:and|or)\s|;|,\s*(?:and\s|or\s)?")
_LETTER = re.compile(r"(?<!\\)[A-Za-z]")
_HEDGE = re.compile(
    r"^(?:approximately|about|roughly|around|exactly|\\approx(?![a-z])|\\simeq|~)\s*(?=[-+\d$\\.])", re.IGNORECASE
)
_OPENING, _CLOSING = "([{", ")]}"


def read(text: str) -> Answer:
    """What an answer says. Never raises: what cannot be read is `Unread`."""
    if _INTEGER.fullmatch(text):
        return Number(rational(int(text)))
    if len(text) > LONGEST:
        return Unread(text, hopeless=True)
    spelt = text
    try:
        if "\\begin{" in text:
            return _matrix(text)
        spelt = spell(text)
        return _read(spelt)
    except NonsenseError:
        return Unread(_squeezed(spelt), hopeless=True)
    except (UnreadableError, RecursionError):
        words = read_words(spelt)
        return Unread(_squeezed(spelt)) if words is None else Words(words)


def _squeezed(text: str) -> str:
    return re.sub(r"\s+(?!\w)|(?<!\w)\s+", "", text).replace("{", "(").replace("}", ")")


def _read(text: str) -> Answer:
    """Raises UnreadableError and TooLargeError."""
    text = _HEDGE.sub("", text)
    if not text:
        raise UnreadableError("nothing")
    if r"\pm" in text or r"\mp" in text:
        return _both_signs(text)
    text = without_thousands(text) if text[0] not in "([{\\" else text
    if (found := _atom(text)) is not None:
        return found
    if re.search(r"\\l?dots|\.\.\.|\\cdots", text):
        raise NonsenseError("dots")
    if len(parts := split(text, _AND)) > 1:
        return _several(text, parts)
    if len(parts := split(text, re.compile(r"\\cup(?![A-Za-z])|(?<=[\])])\s*[Uu]\s*(?=[\[(])"))) > 1:
        return Group("union", tuple(_read(part) for part in parts))
    if (found := _bracketed(text)) is not None:
        return found
    if member := re.fullmatch(r"([A-Za-z](?:_\{?\w+\}?)?)\s*\\in(?![A-Za-z])(.*)", text, re.DOTALL):
        return Named(member.group(1), _read(member.group(2).strip()))
    if len(sides(text)) > 1:
        return read_relation(text, _read)
    if ":" in text and len(parts := split(text, re.compile(":"))) in (2, 3):
        return _ratio(parts)
    return read_quantity(text)


def _atom(text: str) -> Answer | None:
    """What is no formula: a date, a choice, a number in words or in another base, a name."""
    if _LETTER.search(text) or text[0] == "\\" or "-" in text[1:]:
        if date := read_date(text):
            return Words(date)
        if choice := read_choice(text):
            letter, rest = choice
            if not rest and text.islower():
                return Choice(letter, Number(read_expression(text)))  # (e) may be a formula
            return Choice(letter, read(rest) if rest else None)
        number = read_number_word(text)
        if number is not None:
            return Number(rational(number))
        if (re.fullmatch(r"\(?[A-Za-z' .-]{3,}\)?", text) and not formula_word(text)) or text[0] == "\\":
            words = read_words(text)
            if words is not None and text not in ("abc", "xyz", "oo") and not re.search(r"\b(?:and|or)\b", words):
                return Words(words)
    if based := _BASED.fullmatch(text):
        return _based(*based.groups())
    return None


def _based(digits: str, base: str) -> Answer:
    number = read_number_word(base) if base.isalpha() else int(base)
    if number is None or not 2 <= number <= 36 or not digits.isalnum():
        raise UnreadableError("a number in such a base")
    try:
        value = int(digits, number)
    except ValueError:
        raise UnreadableError(f"{digits} has digits that base {number} lacks") from None
    # The base is part of the answer: 52_8 is asked for where 42 is not.
    return Number(rational(value)) if number == 10 else Words(f"{digits.lstrip('0') or '0'}_{number}")


def split(text: str, separator: re.Pattern[str]) -> list[str]:
    """The parts of a text between separators that stand in no bracket."""
    if not separator.search(text):
        return [text]
    depths = list(_depths(text))
    parts, start = [], 0
    for match in separator.finditer(text):
        if depths[match.start()] == 0 and match.start() >= start:
            parts.append(text[start : match.start()])
            start = match.end()
    parts.append(text[start:])
    return [part.strip() for part in parts]


def _depths(text: str) -> Iterator[int]:
    depth = 0
    for letter in text:
        if letter in _CLOSING:
            depth -= 1
        yield depth
        if letter in _OPENING:
            depth += 1


def _several(text: str, parts: list[str]) -> Answer:
    if len(parts) > MOST:
        raise NonsenseError(f"a list of more than {MOST}")
    if not all(parts):
        raise UnreadableError("a list with a gap")
    items = [_read(part) for part in parts]
    names = {item.name for item in items if isinstance(item, Named)}
    intervals = [_is_interval(item) for item in items]
    if any(intervals) and len(names) == 1:
        # x < 1 or x > 3 is a union; "and" would be an intersection.
        if not all(intervals) or re.search(r"\sand\s|,(?!\s*or\s)", text):
            raise UnreadableError("an intersection")
        return Named(names.pop(), Group("union", tuple(_value(item) for item in items)))
    if len(names) == 1 and not all(isinstance(item, Words | Choice) for item in items):
        items = [_value(item) for item in items]
    if len({item.text for item in items}) == 1 and re.search(r"\sor\s", text):
        return items[0]  # one answer in two spellings
    flat = [i for item in items for i in (item.items if isinstance(item, Group) and item.kind == "list" else [item])]
    return Group("list", tuple(flat))


def _value(item: Answer) -> Answer:
    return item.answer if isinstance(item, Named) else item


def _is_interval(item: Answer) -> bool:
    return isinstance(item, Named) and isinstance(item.answer, Group) and item.answer.kind in ("()", "[]", "(]", "[)")


def _both_signs(text: str) -> Answer:
    """a ± b is two answers; all its signs go together."""
    if len(parts := split(text, _AND)) > 1:
        return _several(text, parts)
    if text.startswith(r"\{") and text.endswith(r"\}"):
        return _as_set(_read(text[2:-2].strip()))
    one = _read(text.replace(r"\pm", "+").replace(r"\mp", "-"))
    other = _read(text.replace(r"\pm", "-").replace(r"\mp", "+"))
    if isinstance(one, Named) and isinstance(other, Named):
        return Named(one.name, Group("list", (one.answer, other.answer)))
    return Group("list", (one, other)) if one.text != other.text else one


def _bracketed(text: str) -> Answer | None:
    """A tuple, an interval, a set, or a choice in its brackets; None where the brackets are a formula's."""
    if text.startswith(r"\{") and text.endswith(r"\}") and list(_depths(text)).count(0) == 3:
        inside = text[2:-2].strip()
        return _as_set(_read(inside)) if inside else Words(r"\emptyset")
    if text[0] not in "([{" or text[-1] not in ")]}" or list(_depths(text)).count(0) != 2:
        return None
    inside = text[1:-1].strip()
    parts = split(inside, re.compile(","))
    if text[0] == "{" or text[-1] == "}":
        return _as_set(_read(inside)) if len(parts) > 1 else _read(inside)
    if len(parts) == 1:
        return _read(inside) if text[0] == "(" and text[-1] == ")" else Group("[]", (_read(inside),))
    kind: GroupKind = {"()": "()", "[]": "[]", "(]": "(]", "[)": "[)"}[text[0] + text[-1]]  # type: ignore[assignment]
    items = [_read(part) for part in parts]
    if len(items) != 2:
        if kind in ("(]", "[)"):
            raise UnreadableError("brackets that do not match")
        return Group(kind, tuple(items))
    return as_interval(kind, *items)


def _as_set(answer: Answer) -> Answer:
    """Without repetition; a set is also what a list of its elements says."""
    if not (isinstance(answer, Group) and answer.kind == "list"):
        return Group("set", (answer,))
    return Group("list", tuple({item.text: item for item in answer.items}.values()))


def _ratio(parts: list[str]) -> Answer:
    """6:8 is 3:4; 10:30 with two digits may be a time, and stays."""
    if len(parts) == 2 and re.fullmatch(r"\d{1,2}", parts[0]) and re.fullmatch(r"[0-5]\d", parts[1]):
        return Words(f"{int(parts[0]):02d}:{parts[1]}")
    numbers = [read_quantity(part) for part in parts]
    first = next((n.value for n in numbers if n.value.rational != 0), None)
    if first is None:
        raise UnreadableError("a ratio of nothing")
    return Group("ratio", tuple(Number(n.value / first) for n in numbers))


def _matrix(text: str) -> Answer:
    match = _MATRIX.fullmatch(text.strip().strip("$").replace(r"\left", "").replace(r"\right", "").strip(" ()[]"))
    if match is None or "\\begin" in match.group(2):
        raise UnreadableError("a matrix inside a formula")
    rows = [row for row in re.split(r"\\\\(?:\[[^\]]*\])?|\\cr(?![A-Za-z])", match.group(2)) if row.strip()]
    cells = [tuple(_read(spell(cell)) for cell in row.split("&")) for row in rows]
    if not cells or len({len(row) for row in cells}) > 1:
        raise UnreadableError("a matrix with rows of different lengths")
    return Group("matrix", tuple(Group("row", row) for row in cells))
