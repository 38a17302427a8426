"""Columns that are made of a data set's own: `columns: {tests: "stored_tests(public_test_cases, private_test_cases)"}`.

Nothing that a data set holds is run: see `unpickled`.
"""

from __future__ import annotations

import base64
import binascii
import io
import json
import pickle
import pickletools
import re
import zlib
from collections.abc import Callable
from typing import Any, NoReturn

from posttrain.errors import DataError

Reading = tuple[Callable[..., Any], tuple[str, ...]]
"""What makes a value, and the columns it is made of."""

LARGEST = 1 << 30
"""Bytes that a row's stored tests may unpack to."""
_CALL = re.compile(r"(\w+)\(\s*([^()]+?)\s*\)")
_STEPS = """PROTO FRAME STOP MARK MEMOIZE BINPUT NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 BINFLOAT SHORT_BINUNICODE
BINUNICODE BINUNICODE8 EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS"""
_PLAIN = frozenset(_STEPS.split())
"""Steps of a pickle that make text, numbers, lists and dicts. None calls anything, and none names a thing that was made
before: what comes out is a tree that is no larger than the pickle.
"""


def reading(origin: str) -> Reading | None:
    """What a value of a source's `columns` asks for; None for the name of a column. Raises DataError for a reading that
    there is not.
    """
    found = _CALL.fullmatch(origin.strip())
    if found is None:
        return None
    name, columns = found.group(1), tuple(column.strip() for column in found.group(2).split(","))
    if name not in READINGS:
        raise DataError(f"{origin!r}: no reading {name!r}; there is: {', '.join(READINGS)}")
    return READINGS[name], columns


def stored_tests(*stored: Any) -> str:
    """The tests of all these columns as one JSON text. Each is JSON text, a list, or LiveCodeBench's (2403.07974) form:
    a pickle of JSON text, deflated, in base 64. Raises DataError for what is neither.
    """
    return json.dumps([test for value in stored if value not in (None, "") for test in _tests(value)])


READINGS: dict[str, Callable[..., Any]] = {"stored_tests": stored_tests}


def _tests(value: Any) -> list[Any]:
    try:
        if isinstance(value, str):
            text = value if value.lstrip()[:1] in ("[", "{") else unpickled(inflated(value))
            value = json.loads(text) if isinstance(text, str) else text
    except (binascii.Error, zlib.error, ValueError, RecursionError) as error:
        raise DataError(f"tests are neither JSON nor a deflated pickle of it in base 64: {error!s:.200}") from None
    if not isinstance(value, list):
        raise DataError(f"a list of tests is due, not {type(value).__name__}")
    return value


def inflated(text: str, largest: int = LARGEST) -> bytes:
    """What is deflated, in base 64. Raises ValueError for more bytes than the largest number, or a missing end."""
    stream = zlib.decompressobj()
    found = stream.decompress(base64.b64decode(text, validate=True), largest)
    if not stream.eof:
        raise ValueError(f"it is cut, or unpacks to more than {largest} bytes")
    return found


def unpickled(data: bytes) -> Any:
    """Text, numbers, lists and dicts of a pickle. Raises ValueError for a pickle with any other step, before one of its
    steps is taken.
    """
    try:
        for step, _, _ in pickletools.genops(data):
            if step.name not in _PLAIN:
                raise ValueError(f"a pickle with the step {step.name}, which no plain data needs")
        return _Plain(io.BytesIO(data)).load()
    except (pickle.UnpicklingError, EOFError, IndexError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no pickle: {error!s:.100}") from None


class _Plain(pickle.Unpickler):
    """Knows no classes and no functions."""

    def find_class(self, module_name: str, global_name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"{module_name}.{global_name} is no plain data")

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("a reference to something outside")
