"""Plain data as JSON and back, for both ends of a program's channel: no pickle, no eval, no types but Python's own.

What is decoded has the very types that are listed here, so its `==` and its hash are Python's. A subclass is not its
base class: its instance stays where it is, and a `Handle` crosses.
"""

from __future__ import annotations

import datetime
import json
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any

MOST_BYTES = 4 << 20
"""Of one encoded value."""
MOST_ITEMS = 500_000
"""Of one value, all depths together."""
DEEPEST = 100
MOST_ITERATED = 10_000
"""Items that are taken from an iterator."""
MOST_EQUAL_HASHES = 50
"""Of a set or dict: more would make building it quadratic."""

_read = json.JSONDecoder().scan_once
_write = json.JSONEncoder(separators=(",", ":")).iterencode
if json.encoder.c_make_encoder is not None:
    # What the encoder itself makes anew for each message. Trees have no circles.
    _write = json.encoder.c_make_encoder(
        None, None, json.encoder.encode_basestring_ascii, None, ":", ",", False, False, True
    )

Held = Callable[[Any], list[Any]]
Found = Callable[[list[Any]], Any]


class TooLargeError(ValueError):
    """A value that is too large or too deep to cross."""


class MalformedError(ValueError):
    """Bytes that no value is encoded as."""


@dataclass(frozen=True, slots=True, eq=False)
class Handle:
    """A value that stayed with its program, equal to nothing but itself. Its two texts are the program's words."""

    id: int
    type_name: str
    repr: str


class Iterated(Iterator[Any]):
    """What an iterator of the program gave: an iterator again, never equal to a list.

    `items` holds what it yields. Where the program's iterator went on beyond `MOST_ITERATED`, `complete` is False, and
    going on raises TooLargeError.
    """

    def __init__(self, items: list[Any], complete: bool = True) -> None:
        self.items, self.complete = items, complete
        self._next = 0

    def __next__(self) -> Any:
        if self._next < len(self.items):
            self._next += 1
            return self.items[self._next - 1]
        if self.complete:
            raise StopIteration
        raise TooLargeError(f"the iterator gives more than {MOST_ITERATED} items")

    def __repr__(self) -> str:
        return f"Iterated({self.items!r})"


_ROWS: dict[type, str] = {list: "list", tuple: "tuple", set: "set", frozenset: "frozenset"}
_TABLES: dict[type, str] = {dict: "dict", OrderedDict: "ordered", Counter: "counter"}
_VIEWS: dict[type, str] = {type({}.keys()): "keys", type({}.values()): "values"}
_DATES: dict[type, str] = {datetime.datetime: "datetime", datetime.date: "date", datetime.time: "time"}
_NAMED: dict[str, type] = {
    t.__name__: t for t in (int, float, complex, bool, str, bytes, list, tuple, set, frozenset, dict, type(None))
}
_NAMES: dict[type, str] = {t: name for name, t in _NAMED.items()}
_ITERABLE: tuple[Any, ...] = ([], (), "", "é", {}, {}.values(), {}.items(), set(), b"", range(0), range(1 << 70))
_ITERATORS = {type(iter(v)) for v in _ITERABLE} | {type(reversed(v)) for v in _ITERABLE[:1] + _ITERABLE[4:7]}
_ITERATORS |= {map, filter, zip, enumerate, reversed, type(_ for _ in "")}
_ITSELF = frozenset({bool, str, float, type(None)})
"""Types that JSON has."""
_EXACT = 1 << 53
_DIGITS = 5000
"""Of a decimal or fraction; and the largest exponent of a decimal, since arithmetic may write it out."""


class _Encoder:
    def __init__(self, held: Held) -> None:
        self.held = held
        self.left = MOST_ITEMS

    def tree(self, value: Any, depth: int = 0) -> Any:
        kind = type(value)
        if kind in _ITSELF:
            return value
        if kind is int:
            return value if -_EXACT < value < _EXACT else ["int", hex(value)]
        if depth > DEEPEST:
            raise TooLargeError(f"nested more than {DEEPEST} deep")
        if kind in _ROWS:
            return [_ROWS[kind], *self.all(value, depth)]
        if kind in _TABLES:
            return [_TABLES[kind], *self.pairs(value, depth)]
        scalar = _scalar(value, kind)
        return self.rare(value, kind, depth) if scalar is None else scalar

    def all(self, values: Any, depth: int) -> list[Any]:
        self.left -= len(values)
        if self.left < 0:
            raise TooLargeError(f"more than {MOST_ITEMS} items")
        return [v if type(v) in _ITSELF else self.tree(v, depth + 1) for v in values]

    def pairs(self, values: Any, depth: int) -> list[Any]:
        return self.all([part for pair in values.items() for part in pair], depth)

    def rare(self, value: Any, kind: type, depth: int) -> list[Any]:
        if kind is defaultdict:
            return ["default", _NAMES.get(value.default_factory, ""), *self.pairs(value, depth)]
        if kind is deque:
            return ["deque", value.maxlen, *self.all(value, depth)]
        if kind in _VIEWS:
            return [_VIEWS[kind], *self.all(value, depth)]
        if kind is type({}.items()):
            return ["items", *self.all([part for pair in value for part in pair], depth)]
        if kind is Iterated:
            return ["iterated", value.complete, *self.all(value.items[value._next :], depth)]
        if kind in _ITERATORS or (kind.__module__ == "itertools" and hasattr(kind, "__next__")):
            items = [item for _, item in zip(range(MOST_ITERATED + 1), value, strict=False)]
            return ["iterated", len(items) <= MOST_ITERATED, *self.all(items[:MOST_ITERATED], depth)]
        return self.held(value)


def _scalar(value: Any, kind: type) -> list[Any] | None:
    """The tree of a value that holds no others; None where it is not one that crosses."""
    found: list[Any] | None = None
    if kind in (bytes, bytearray):
        found = [kind.__name__, value.hex()]
    elif kind is complex:
        found = ["complex", value.real, value.imag]
    elif kind is range:
        found = ["range", hex(value.start), hex(value.stop), hex(value.step)]
    elif kind is Fraction:
        parts = [hex(value.numerator), hex(value.denominator)]
        found = ["fraction", *parts] if sum(map(len, parts)) <= _DIGITS else None
    elif kind is Decimal:
        text = str(value)
        found = ["decimal", text] if len(text) <= _DIGITS and _is_small(value) else None
    elif kind is datetime.timedelta:
        found = ["timedelta", value.days, value.seconds, value.microseconds]
    elif kind is datetime.timezone:
        found = ["timezone", *_scalar(value.utcoffset(None), datetime.timedelta)[1:]]  # type: ignore[index]
    elif kind in _DATES and type(getattr(value, "tzinfo", None)) in (type(None), datetime.timezone):
        found = [_DATES[kind], value.isoformat(), getattr(value, "fold", 0)]
    elif kind is type and value in _NAMES:
        found = ["type", _NAMES[value]]
    return found


def encode(value: Any, held: Held) -> Any:
    """`value` as a tree that JSON holds; `held` says what stands for a value that does not cross.

    Raises TooLargeError, and what `held` or an iterator of the value raises.
    """
    if type(value) in _ITSELF:
        return value
    return _Encoder(held).tree(value)


def dumps(tree: Any) -> bytes:
    """Raises TooLargeError above `MOST_BYTES`."""
    text = "".join(_write(tree, 0)).encode()
    if len(text) > MOST_BYTES:
        raise TooLargeError(f"{len(text)} bytes, more than {MOST_BYTES}")
    return text


def loads(text: bytes) -> Any:
    """Raises MalformedError."""
    try:
        words = text.decode("ascii")
        tree, end = _read(words, 0)
    except (ValueError, RecursionError, StopIteration) as error:
        raise MalformedError(f"no message: {error!s:.100}") from None
    if end != len(words):
        raise MalformedError("no message: words behind it")
    return tree


def decode(tree: Any, found: Found) -> Any:
    """The value of a tree, which may be a hostile one; `found` says what a `["handle", ...]` is.

    Raises MalformedError.
    """
    try:
        return _decode(tree, found, 0)
    except (ValueError, TypeError, LookupError, ArithmeticError, RecursionError, AttributeError) as error:
        raise MalformedError(f"no value: {type(error).__name__}: {error!s:.100}") from None


def _decode(tree: Any, found: Found, depth: int) -> Any:
    if not isinstance(tree, list):
        if isinstance(tree, dict):
            raise MalformedError("an object")
        return tree
    if depth > DEEPEST + 1:
        raise MalformedError("too deep")
    tag, *rest = tree
    if tag == "handle":
        return found(rest)
    if tag in _SCALARS:
        return _SCALARS[tag](*rest)
    first = rest.pop(0) if tag in ("default", "deque", "iterated") else None
    return _gathered(tag, first, [_decode(v, found, depth + 1) for v in rest])


def _gathered(tag: str, first: Any, values: list[Any]) -> Any:
    if tag == "list":
        return values
    if tag == "tuple":
        return tuple(values)
    if tag in ("set", "frozenset"):
        return {"set": set, "frozenset": frozenset}[tag](_spread(values))
    if tag == "deque":
        return deque(values, first)
    if tag == "iterated":
        return Iterated(values, bool(first))
    if tag == "keys":
        return dict.fromkeys(_spread(values)).keys()
    if tag == "values":
        return dict(enumerate(values)).values()
    keys = _spread(values[::2])
    table = dict(zip(keys, values[1::2], strict=True))
    if tag == "default":
        return defaultdict(_NAMED[first] if first else None, table)
    if tag == "items":
        return table.items()
    return {"dict": dict, "ordered": OrderedDict, "counter": Counter}[tag](table)


def _spread(keys: list[Any]) -> list[Any]:
    """The keys, unless a hostile program chose them so that building their set takes quadratic time."""
    if len(keys) > MOST_EQUAL_HASHES and max(Counter(map(hash, keys)).values()) > MOST_EQUAL_HASHES:
        raise MalformedError("too many keys of one hash")
    return keys


def _integer(text: str) -> int:
    return int(text, 16)


def _fraction(top: str, bottom: str) -> Fraction:
    if len(top) + len(bottom) > _DIGITS:
        raise MalformedError("a fraction beyond the limits")
    return Fraction(_integer(top), _integer(bottom))


def _decimal(text: str) -> Decimal:
    if len(text) > _DIGITS or not _is_small(value := Decimal(text)):
        raise MalformedError("a decimal beyond the limits")
    return value


def _is_small(value: Decimal) -> bool:
    """Whether arithmetic with it stays cheap; a signalling NaN raises where it is compared."""
    return abs(value.adjusted()) <= _DIGITS and not value.is_snan()


_SCALARS: dict[str, Callable[..., Any]] = {
    "int": _integer,
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "complex": complex,
    "range": lambda *parts: range(*map(_integer, parts)),
    "fraction": _fraction,
    "decimal": _decimal,
    "timedelta": datetime.timedelta,
    "timezone": lambda *parts: datetime.timezone(datetime.timedelta(*parts)),
    "datetime": lambda text, fold: datetime.datetime.fromisoformat(text).replace(fold=fold),
    "date": lambda text, fold: datetime.date.fromisoformat(text),
    "time": lambda text, fold: datetime.time.fromisoformat(text).replace(fold=fold),
    "type": lambda name: _NAMED[name],
}
