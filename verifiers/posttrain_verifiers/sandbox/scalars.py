"""Values that hold no others, as trees and back. What a program may never need is imported with the first value."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

_DIGITS = 5000
"""Of a decimal or fraction; and the largest exponent of a decimal, since arithmetic may write it out."""
NAMED: dict[str, type] = {
    t.__name__: t for t in (int, float, complex, bool, str, bytes, list, tuple, set, frozenset, dict, type(None))
}
NAMES: dict[type, str] = {t: name for name, t in NAMED.items()}


def tree_of(value: Any, kind: type) -> list[Any] | None:
    """The tree of a value of this type; None where it is not one that crosses."""
    if kind in (bytes, bytearray):
        return [kind.__name__, value.hex()]
    if kind is complex:
        return ["complex", value.real, value.imag]
    if kind is range:
        return ["range", hex(value.start), hex(value.stop), hex(value.step)]
    if kind is type:
        return ["type", NAMES[value]] if value in NAMES else None
    if kind is _loaded("fractions", "Fraction"):
        parts = [hex(value.numerator), hex(value.denominator)]
        return ["fraction", *parts] if sum(map(len, parts)) <= _DIGITS else None
    if kind is _loaded("decimal", "Decimal"):
        text = str(value)
        return ["decimal", text] if len(text) <= _DIGITS and _is_small(value) else None
    return _moment(value, kind) if "datetime" in sys.modules else None


def _loaded(module: str, name: str) -> type | None:
    """A type that there can be values of."""
    return getattr(sys.modules.get(module), name, None)


def _moment(value: Any, kind: type) -> list[Any] | None:
    import datetime

    if kind is datetime.timedelta:
        return ["timedelta", value.days, value.seconds, value.microseconds]
    if kind is datetime.timezone:
        offset = value.utcoffset(None)
        return ["timezone", offset.days, offset.seconds, offset.microseconds]
    if kind in (datetime.datetime, datetime.date, datetime.time):
        zone = type(getattr(value, "tzinfo", None))
        if zone in (type(None), datetime.timezone):
            return [kind.__name__, value.isoformat(), getattr(value, "fold", 0)]
    return None


def _integer(text: str) -> int:
    return int(text, 16)


def _fraction(top: str, bottom: str) -> Any:
    from fractions import Fraction

    if len(top) + len(bottom) > _DIGITS:
        raise ValueError("a fraction beyond the limits")
    return Fraction(_integer(top), _integer(bottom))


def _decimal(text: str) -> Any:
    from decimal import Decimal

    if len(text) > _DIGITS or not _is_small(value := Decimal(text)):
        raise ValueError("a decimal beyond the limits")
    return value


def _is_small(value: Any) -> bool:
    """Whether arithmetic with it stays cheap; a signalling NaN raises where it is compared."""
    return abs(value.adjusted()) <= _DIGITS and not value.is_snan()


def _timedelta(*parts: Any) -> Any:
    import datetime

    return datetime.timedelta(*parts)


def _timezone(*parts: Any) -> Any:
    import datetime

    return datetime.timezone(datetime.timedelta(*parts))


def _dated(name: str) -> Callable[[str, int], Any]:
    def made(text: str, fold: int) -> Any:
        import datetime

        value = getattr(datetime, name).fromisoformat(text)
        return value if name == "date" else value.replace(fold=fold)

    return made


MAKERS: dict[str, Callable[..., Any]] = {
    "int": _integer,
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "complex": complex,
    "range": lambda *parts: range(*map(_integer, parts)),
    "fraction": _fraction,
    "decimal": _decimal,
    "timedelta": _timedelta,
    "timezone": _timezone,
    **{name: _dated(name) for name in ("datetime", "date", "time")},
    "type": lambda name: NAMED[name],
}
"""By the first word of a tree; each takes the rest. They raise ValueError, TypeError, LookupError, ArithmeticError."""
