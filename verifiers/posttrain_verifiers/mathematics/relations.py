"""Equations and inequalities as answers."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Literal

from posttrain_verifiers.mathematics.answers import Answer, Named, Number, Unread, as_interval, relation
from posttrain_verifiers.mathematics.expressions import read_expression
from posttrain_verifiers.mathematics.terms import NonsenseError, UnreadableError
from posttrain_verifiers.mathematics.values import Value, atom, real

_SIGN = re.compile(r"<=|>=|!=|==|=|<|>|\\(?:le|ge|ne|approx|equiv|sim|to|implies)(?![A-Za-z])")
WIDEST = 0.05
"""Relative, of an approximation behind an exact value."""
_ORDER = {"<": "<", ">": ">", "<=": "<=", ">=": ">=", r"\le": "<=", r"\ge": ">="}
_FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<="}
_VARIABLE = re.compile(r"[A-Za-z]|\\(?:alpha|beta|gamma|delta|theta|lambda|mu|phi|omega)|[A-Za-z]_\{?\w+\}?")
_NAME = re.compile(
    r"\([a-z](?:\s*,\s*[a-z])+\)|(?:[A-Za-z]|\\[a-z]+)(?:'|_\{?\w+\}?|\^\{?-1\}?)*\s*\([^()=]*\)|\|?[A-Z]{2,4}\|?|m?\s*\\angle\s*\w+"
    r"|\\(?:overline|overrightarrow)\{\w+\}|[A-Za-z][a-z]{2,}(?:\s[A-Za-z]+)*|\\[a-z]+\{[A-Za-z ]+\}"
)


def sides(text: str) -> list[str]:
    """What stands between a relation's signs, brackets or not."""
    return [side.strip() for side in _SIGN.split(text)]


def read_relation(text: str, read: Callable[[str], Answer]) -> Answer:
    """An equation, a chain of equations that ends in a value, or an inequality. `read` reads one side."""
    parts, signs = sides(text), _SIGN.findall(text)
    if not all(parts) or len(parts) > 12:
        raise UnreadableError("a relation with a side missing")
    if all(sign in ("=", "==") for sign in signs):
        return _equation(parts, read)
    if signs[-1] == r"\approx" and signs.count(r"\approx") == 1:
        return _rounded(text[: text.rindex(r"\approx")].strip(), parts[-1], read)
    if len(parts) == 2 and signs[0] in (r"\ne", "!="):
        return relation("!=", read_expression(parts[0]), read_expression(parts[1]))
    if all(sign in _ORDER for sign in signs):
        return _inequality(parts, [_ORDER[sign] for sign in signs])
    raise UnreadableError("such a relation")


def _equation(parts: list[str], read: Callable[[str], Answer]) -> Answer:
    first, last = parts[0], parts[-1]
    for name, other in ((first, last), (last, first)):
        if _VARIABLE.fullmatch(name) or (name is first and _NAME.fullmatch(name)):
            answer = read(other)
            if _says_nothing_of(name, answer):
                _check_chain([part for part in parts if part is not name])
                return Named(_bare(name), answer)
    values = [read_expression(part) for part in parts]
    if all(value.constant for value in values):
        _check_chain(parts)
        return Number(values[-1])
    if len(values) != 2:
        raise UnreadableError("a chain of equations")
    return relation("=", *values)


def _rounded(exact: str, approximation: str, read: Callable[[str], Answer]) -> Answer:
    """16 sqrt(3) \\approx 27.7 says 16 sqrt(3). Raises NonsenseError where the two are further apart than rounding."""
    answer = read(exact)
    said = answer.answer if isinstance(answer, Named) else answer
    value = real(said.value) if isinstance(said, Number) else None
    near = read(approximation)
    decimal = real(near.value) if isinstance(near, Number) else None
    if value is None or decimal is None:
        raise UnreadableError("an approximation")
    if abs(value - decimal) > WIDEST * abs(value):
        raise NonsenseError("an approximation that is not one")
    return answer


def _check_chain(parts: list[str]) -> None:
    """Raises NonsenseError where two rational sides differ; a decimal may have been rounded."""
    if len(parts) > 1:
        exact = {value.rational for part in parts if "." not in part and (value := read_expression(part)).constant}
        if len(exact - {None}) > 1:
            raise NonsenseError("an equation that does not hold")


def _bare(name: str) -> str:
    return re.sub(r"[\s{}\\]", "", name)


def _says_nothing_of(name: str, answer: Answer) -> bool:
    """Whether the other side is a value for the name, not one more equation in it."""
    if isinstance(answer, Named | Unread):
        return False
    if not (isinstance(answer, Number) and _VARIABLE.fullmatch(name)):
        return True
    mine = read_expression(name)
    ((key, _),) = mine.top.items()
    used = {n for terms in (answer.value.top, answer.value.bottom) for k in terms for n, _ in k}
    return answer.value.sure and not any(n == key[0][0] for n in used)


def _inequality(parts: list[str], signs: list[str]) -> Answer:
    values = [read_expression(part) for part in parts]
    variables = [i for i, part in enumerate(parts) if _VARIABLE.fullmatch(part)]
    others = [v for i, v in enumerate(values) if i not in variables]
    if len(variables) == 1 and all(v.constant or v.text in ("oo", "-oo") for v in others):
        at = variables[0]
        if len(parts) == 2:
            # The variable first.
            sign, bound = (signs[0], values[1]) if at == 0 else (_FLIPPED[signs[0]], values[0])
            return Named(_bare(parts[at]), _half_line(sign, bound))
        if len(parts) == 3 and at == 1 and signs[0][0] == signs[1][0]:
            low, high = (0, 2) if signs[0][0] == "<" else (2, 0)
            marks = signs if signs[0][0] == "<" else signs[::-1]
            kind = ("[" if marks[0].endswith("=") else "(") + ("]" if marks[1].endswith("=") else ")")
            return Named(_bare(parts[1]), as_interval(kind, Number(values[low]), Number(values[high])))  # type: ignore[arg-type]
    if len(parts) != 2:
        raise UnreadableError("a chain of inequalities")
    less, more = (values[0], values[1]) if signs[0][0] == "<" else (values[1], values[0])
    strictness: Literal["<", "<="] = "<=" if signs[0].endswith("=") else "<"
    return relation(strictness, less, more)


def _half_line(sign: str, bound: Value) -> Answer:
    infinite = atom("oo")
    if sign[0] == "<":
        return as_interval("(]" if sign == "<=" else "()", Number(-infinite), Number(bound))
    return as_interval("[)" if sign == ">=" else "()", Number(bound), Number(infinite))
