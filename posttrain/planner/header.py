"""The header of a GGUF file (github.com/ggml-org/ggml, docs/gguf.md). The gguf package makes arrays of every word of a
vocabulary and takes seconds for it.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.errors import ModelError

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Type numbers of the format, as struct calls them."""
STRING, ARRAY = 8, 9
SHORT = 512
"""Entries of an array beyond which it is skipped: numbers for each layer are kept, vocabularies are not."""


@dataclass(frozen=True)
class Header:
    """What a file says of itself."""

    values: dict[str, Any]
    shapes: dict[str, tuple[int, ...]]
    """Of the tensors, the fastest dimension first, as GGUF writes them."""


def read_header(file: Path) -> Header:
    """Raises ModelError for what is no GGUF file of version 2 or 3, or is cut off."""
    try:
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Cursor(data).header()
    except (struct.error, ValueError, KeyError, UnicodeDecodeError) as error:
        raise ModelError(f"model.path: {str(file)!r} is no complete GGUF file ({error}); fetch it again") from None


class _Cursor:
    """A place in the file."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at = data, 0

    def header(self) -> Header:
        magic, version, tensors, pairs = struct.unpack_from("<4sIQQ", self.data, 0)
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError(f"it begins with {magic!r}, version {version}")
        self.at = 24
        values = {self.text(): self.value(self.number("I")) for _ in range(pairs)}
        return Header(values, dict(self.tensor() for _ in range(tensors)))

    def number(self, kind: str) -> Any:
        (found,) = struct.unpack_from(f"<{kind}", self.data, self.at)
        self.at += struct.calcsize(kind)
        return found

    def text(self) -> str:
        size = self.number("Q")
        self.at += size
        return self.data[self.at - size : self.at].decode("utf-8")

    def value(self, kind: int) -> Any:
        """One value; None for a long array."""
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            return self.number(SCALARS[kind])
        of, count = self.number("I"), self.number("Q")
        if of in SCALARS and count > SHORT:
            self.at += count * struct.calcsize(SCALARS[of])
            return None
        if of == STRING:
            at, unpack = self.at, struct.Struct("<Q").unpack_from
            for _ in range(count):
                at += 8 + unpack(self.data, at)[0]
            self.at = at
            return None
        return [self.value(of) for _ in range(count)]

    def tensor(self) -> tuple[str, tuple[int, ...]]:
        name, dimensions = self.text(), self.number("I")
        shape = tuple(self.number("Q") for _ in range(dimensions))
        self.at += 12  # type and offset
        return name, shape
