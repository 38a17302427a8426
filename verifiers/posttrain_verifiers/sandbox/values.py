"""Plain data as JSON and back, for both ends of a program's channel: no pickle, no eval, no types but Python's own.

What is decoded has the very types that are listed here, so its `==` and its hash are Python's. A subclass is not its
base class: its instance stays where it is, and a `Handle` crosses.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Any

from posttrain_verifiers.sandbox import frames, scalars

MOST_BYTES = 4 << 20
"""Of one encoded value."""
MOST_ITEMS = 500_000
"""Of one value, all depths together."""
DEEPEST = 100
MOST_ITERATED = 10_000
"""Items that are taken from an iterator."""
MOST_EQUAL_HASHES = 50
"""Of a set or dict: more would make building it quadratic."""

Held = Callable[[Any], list[Any]]
Found = Callable[[list[Any]], Any]


class TooLargeError(ValueError):
    """A value that is too large or too deep to cross."""


class MalformedError(ValueError):
    """Bytes that no value is encoded as."""


class Handle:
    """A value that stayed with its program, equal to nothing but itself. Its two texts are the program's words."""

    __slots__ = ("id", "repr", "type_name")

    def __init__(self, id: int, type_name: str, repr: str) -> None:
        self.id, self.type_name, self.repr = id, type_name, repr

    def __repr__(self) -> str:
        return f"Handle({self.id}, {self.type_name!r}, {self.repr!r})"


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
_ITERABLE: tuple[Any, ...] = ([], (), "", "é", {}, {}.values(), {}.items(), set(), b"", range(0), range(1 << 70))
_ITERATORS = {type(iter(v)) for v in _ITERABLE} | {type(reversed(v)) for v in _ITERABLE[:1] + _ITERABLE[4:7]}
_ITERATORS |= {map, filter, zip, enumerate, reversed, type(_ for _ in "")}
_ITSELF = frozenset({bool, str, float, type(None)})
"""Types that JSON has."""
_EXACT = 1 << 53


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
        scalar = scalars.tree_of(value, kind)
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
            return ["default", scalars.NAMES.get(value.default_factory, ""), *self.pairs(value, depth)]
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


def encode(value: Any, held: Held) -> Any:
    """`value` as a tree that JSON holds; `held` says what stands for a value that does not cross.

    Raises TooLargeError, and what `held` or an iterator of the value raises.
    """
    if type(value) in _ITSELF:
        return value
    return _Encoder(held).tree(value)


def dumps(tree: Any) -> bytes:
    """Raises TooLargeError above `MOST_BYTES`."""
    text = frames.written(tree)
    if len(text) > MOST_BYTES:
        raise TooLargeError(f"{len(text)} bytes, more than {MOST_BYTES}")
    return text


def loads(text: bytes) -> Any:
    """Raises MalformedError."""
    try:
        return frames.read(text)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"no message: {error!s:.100}") from None


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
    if tag in scalars.MAKERS:
        return scalars.MAKERS[tag](*rest)
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
        return defaultdict(scalars.NAMED[first] if first else None, table)
    if tag == "items":
        return table.items()
    return {"dict": dict, "ordered": OrderedDict, "counter": Counter}[tag](table)


def _spread(keys: list[Any]) -> list[Any]:
    """The keys, unless a hostile program chose them so that building their set takes quadratic time."""
    if len(keys) > MOST_EQUAL_HASHES and max(Counter(map(hash, keys)).values()) > MOST_EQUAL_HASHES:
        raise MalformedError("too many keys of one hash")
    return keys
