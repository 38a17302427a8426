"""Messages of a program's channel: four bytes of length, then what is asked (marshal), or an answer (JSON).

A program's process believes its owner, which never unmarshals: a program may have written what it reads.
"""

from __future__ import annotations

import json
import json.scanner
import os
from collections.abc import Callable, Iterable
from typing import Any

MOST_BYTES = 6 << 20
"""Of one message: a value, and what is said about it."""


def _writer() -> Callable[[Any, int], Iterable[str]]:
    """What json makes anew for each text; a tree has no circles that it would have to look for."""
    make: Any = getattr(json.encoder, "c_make_encoder", None)
    if make is None:
        return lambda tree, _: json.JSONEncoder(separators=(",", ":")).iterencode(tree)
    escaped = json.encoder.encode_basestring_ascii
    made: Callable[[Any, int], Iterable[str]] = make(None, None, escaped, None, ":", ",", False, False, True)
    return made


_write = _writer()
_scan: Callable[[str, int], tuple[Any, int]] = json.scanner.make_scanner(json.JSONDecoder())  # type: ignore[arg-type]


def written(tree: Any) -> bytes:
    """JSON text of lists, texts, numbers, truth values and None."""
    return "".join(_write(tree, 0)).encode()


def read(text: bytes) -> Any:
    """What a JSON text says. Raises ValueError where it is none, RecursionError where it is too deep."""
    words = text.decode("ascii")
    try:
        tree, end = _scan(words, 0)
    except StopIteration as error:
        raise ValueError(f"nothing at character {error.value}") from None
    if end != len(words):
        raise ValueError(f"{len(words) - end} characters behind it")
    return tree


def framed(text: bytes) -> bytes:
    return len(text).to_bytes(4, "big") + text


def unframed(buffer: bytes | bytearray) -> bytes | None:
    """The first message of what came so far; None while it is incomplete. Raises ValueError where it is too long."""
    if len(buffer) < 4:
        return None
    length = int.from_bytes(buffer[:4], "big")
    if length > MOST_BYTES:
        raise ValueError(f"a message of {length} bytes")
    return bytes(buffer[4 : 4 + length]) if len(buffer) >= 4 + length else None


def receive(channel: int) -> bytes:
    """The next message, waited for; the other side sends none before it is answered. Raises EOFError where it went."""
    came = os.read(channel, 1 << 13)
    while (text := unframed(came)) is None:
        part = os.read(channel, 1 << 16)
        if not part:
            raise EOFError
        came += part
    return text


def send(channel: int, text: bytes) -> None:
    left = memoryview(framed(text))
    while left:
        left = left[os.write(channel, left) :]
