"""Values that cross a program's border: the same on the other side, and nothing but plain data on ours."""

from __future__ import annotations

import datetime
import json
import math
import random
import time
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain_verifiers.sandbox import Handle, Iterated, Limits, ProgramError, Sandbox, values

UTC = datetime.timezone(datetime.timedelta(hours=-3, minutes=-30))
PLAIN: list[Any] = [
    *(None, True, False, 0, -1, 1 << 52, 1 << 53, -(1 << 64), 10**5000, 0.1, -0.0, math.inf, -math.inf, 5e-324),
    *("", "é\0\n", "\ud800", "😀", b"", b"\xff\0", bytearray(b"x"), 1 + 2j, complex(math.inf, -0.0)),
    *([], (), set(), frozenset(), {}, [[1], (2,)], {1, "1"}, frozenset({(1, 2)}), {1: "a", None: [], (1, 2): {}}),
    *(range(3), range(10**30, -5, -7), Counter("abca"), deque([1, 2]), deque([1], 3), OrderedDict([(2, 1), (1, 2)])),
    *(Decimal("1.50"), Decimal("Infinity"), Fraction(-3, 7), datetime.date(2024, 2, 29), datetime.time(1, 2, 3, 4)),
    *(datetime.datetime(2024, 1, 2, 3, 4, 5, 6, tzinfo=UTC), datetime.timedelta(-1, 5, 7), UTC, int, type(None)),
    defaultdict(int, {"a": 1}),
    datetime.datetime(2024, 10, 27, 2, 30, fold=1),
]


def refuse(value: Any) -> list[Any]:
    raise TypeError(f"{value!r} was held back")


def crossed(value: Any) -> Any:
    return values.decode(values.loads(values.dumps(values.encode(value, refuse))), refuse)


def shape(value: Any) -> Any:
    """A value with the type of every part, so that 1, 1.0 and True differ, and the order of a dict counts."""
    if isinstance(value, dict):
        return type(value), [(shape(k), shape(v)) for k, v in value.items()]
    if isinstance(value, set | frozenset):
        return type(value), sorted(map(repr, map(shape, value)))
    if isinstance(value, list | tuple | deque):
        return type(value), list(map(shape, value)), getattr(value, "maxlen", None)
    return type(value), repr(value) if isinstance(value, float | complex) else value


@pytest.mark.parametrize("value", PLAIN, ids=lambda v: type(v).__name__)
def test_plain_data_crosses_with_its_types(value: Any) -> None:
    assert shape(crossed(value)) == shape(value)


def test_every_plain_value_comes_back_from_a_program() -> None:
    with Sandbox(limits=Limits(seconds=60)) as sandbox, sandbox.open("def f(x): return x") as session:
        for value in PLAIN:
            assert shape(session.call("f", [value])) == shape(value)
        assert math.isnan(session.call("f", [math.nan]))


LEAVES = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary() | st.fractions()
)
KEYS = st.recursive(LEAVES, lambda inner: st.tuples(inner, inner) | st.frozensets(inner, max_size=3), max_leaves=5)
TREES = st.recursive(
    LEAVES, lambda inner: st.lists(inner) | st.dictionaries(KEYS, inner) | st.tuples(inner, inner), max_leaves=20
)


@settings(max_examples=100, deadline=None)
@given(TREES)
def test_any_nested_data_crosses(value: Any) -> None:
    assert crossed(value) == value


def test_views_and_iterators_cross_as_what_they_give() -> None:
    assert crossed({1: 2, 3: 4}.keys()) == {1, 3}
    assert crossed({1: 2}.items()) == {(1, 2)}
    assert list(crossed({1: 2, 3: 4}.values())) == [2, 4]
    for iterator in ((i for i in range(3)), iter([0, 1, 2]), map(int, "012"), reversed([2, 1, 0])):
        found = crossed(iterator)
        assert isinstance(found, Iterated)
        assert found != [0, 1, 2]
        assert next(found) == 0
        assert list(found) == [1, 2]
        assert list(found) == []
    endless: Iterator[int] = iter(int, 1)
    source = """
import itertools
def f():
    while True: yield 7
def g(it): return list(it)
def h(): return itertools.count()
"""
    with Sandbox(limits=Limits(seconds=60)) as sandbox, sandbox.open(source) as session:
        sevens = session.call("f")
        assert [next(sevens) for _ in range(5)] == [7] * 5
        with pytest.raises(values.TooLargeError):
            list(sevens)
        assert session.call("g", [Iterated([1, 2])]) == [1, 2]
        assert session.call("h").items[:3] == [0, 1, 2]
        with pytest.raises(TypeError):
            session.call("g", [endless])


def test_what_is_not_plain_data_stays_where_it_is() -> None:
    class Sub(int):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    held: list[Any] = []

    def hold(value: Any) -> list[Any]:
        held.append(value)
        return ["handle", len(held), "Sub", "7"]

    tree = values.encode([Sub(7), {"k": Sub(7)}], hold)
    found = values.decode(values.loads(values.dumps(tree)), lambda parts: Handle(*parts))
    assert [type(v) for v in held] == [Sub, Sub]
    assert type(found[0]) is Handle
    assert found[0] != 7
    assert found[0] != Handle(1, "Sub", "7")
    for value in (Decimal("1e999999"), Decimal("sNaN"), object(), len, type("T", (), {}), ...):
        with pytest.raises(TypeError, match="held back"):
            values.encode(value, refuse)


def test_what_is_too_large_or_too_deep_is_refused() -> None:
    deep: list[Any] = []
    for _ in range(values.DEEPEST + 2):
        deep = [deep]
    doubled: Any = 1
    for _ in range(60):
        doubled = [doubled, doubled]
    around: list[Any] = []
    around.append(around)
    for value in (deep, doubled, around, [0] * (values.MOST_ITEMS + 1), "x" * (values.MOST_BYTES + 1), 1 << (1 << 25)):
        started = time.process_time()
        with pytest.raises(values.TooLargeError):
            values.dumps(values.encode(value, refuse))
        # Seconds of CPU: 60 doublings written out would never end.
        assert time.process_time() - started < 10
    with Sandbox(limits=Limits(seconds=60)) as sandbox, sandbox.open("def f(n): return 'x' * n") as session:
        assert len(session.call("f", [1 << 20])) == 1 << 20
        with pytest.raises(ProgramError) as caught:
            session.call("f", [values.MOST_BYTES + 1])
        assert caught.value.kind == "TooLargeError"


def collided(count: int) -> list[Any]:
    return [["int", hex(i * ((1 << 61) - 1))] for i in range(count)]


HOSTILE: list[Any] = [
    *([], [1], ["nothing"], [["list"]], [None], {"a": 1}, ["list", {"a": 1}], ["int"], ["int", 5], ["int", "z"]),
    *(["dict", 1], ["dict", ["list"], 1], ["set", ["set"]], ["fraction", "1", "0"], ["decimal", "1e99999999"]),
    *(["decimal", "sNaN"], ["decimal", "x"], ["datetime", "now", 0], ["date", "2024-13-01", 0], ["timezone", 9, 0, 0]),
    *(
        ["deque", -1],
        ["type", "eval"],
        ["type", "object"],
        ["default", "eval"],
        ["bytes", "zz"],
        ["range", "0", "1", "0"],
    ),
    *(["fraction", "f" * 100_000, "e" * 100_000], ["complex", "1", "2"], ["timedelta", 10**12, 0, 0], ["iterated"]),
    ["set", *collided(60_000)],
    ["dict", *(part for key in collided(60_000) for part in (key, 1))],
    ["keys", *collided(60_000)],
]


@pytest.mark.parametrize("tree", HOSTILE, ids=lambda t: repr(t)[:30])
def test_a_hostile_tree_is_malformed_and_quickly_so(tree: Any) -> None:
    started = time.process_time()
    with pytest.raises(values.MalformedError):
        values.decode(tree, refuse)
    # Seconds of CPU: 60,000 keys of one hash would take a minute.
    assert time.process_time() - started < 5


def test_noise_is_malformed_or_plain() -> None:
    generator = random.Random(0)
    text = values.dumps(values.encode([v for v in PLAIN if not isinstance(v, int) or abs(v) < 1 << 99], refuse))
    refused = 0
    for _ in range(2000):
        noisy = bytearray(text)
        for _ in range(generator.randint(1, 4)):
            noisy[generator.randrange(len(noisy))] = generator.choice(b'[]",0189aefx{}:')
        try:
            json.dumps(values.encode(values.decode(values.loads(bytes(noisy)), refuse), refuse))
        except values.MalformedError:
            refused += 1
    assert 0 < refused < 2000
    for noise in (b"", b"\xff", b"[" * 100_000, b"[" * 100_000 + b"]" * 100_000, b"1" * 10_000):
        with pytest.raises(values.MalformedError):
            values.decode(values.loads(noise), refuse)
