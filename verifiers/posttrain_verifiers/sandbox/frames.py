"""Messages of a program's channel: four bytes of length, then JSON."""

from __future__ import annotations

import os
import struct

MOST_BYTES = 6 << 20
"""Of one message: a value, and what is said about it."""


def framed(text: bytes) -> bytes:
    return struct.pack(">I", len(text)) + text


def unframed(buffer: bytes | bytearray) -> bytes | None:
    """The first message of what came so far; None while it is incomplete. Raises ValueError where it is too long."""
    if len(buffer) < 4:
        return None
    (length,) = struct.unpack_from(">I", buffer)
    if length > MOST_BYTES:
        raise ValueError(f"a message of {length} bytes")
    return bytes(buffer[4 : 4 + length]) if len(buffer) >= 4 + length else None


def receive(channel: int) -> bytes:
    """The next message, waited for; the other side sends none before it is answered. Raises EOFError where it went."""
    came = bytearray()
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
