"""Messages of a program's channel: four bytes of length, then JSON."""

from __future__ import annotations

import socket
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


def receive(channel: socket.socket) -> bytes:
    """The next message, waited for. Raises EOFError where the other side has gone."""
    (length,) = struct.unpack(">I", _exactly(channel, 4))
    return _exactly(channel, length)


def _exactly(channel: socket.socket, count: int) -> bytes:
    parts = bytearray()
    while len(parts) < count:
        part = channel.recv(min(count - len(parts), 1 << 20))
        if not part:
            raise EOFError
        parts += part
    return bytes(parts)
