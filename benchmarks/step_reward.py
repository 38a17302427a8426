"""A reward that costs next to nothing and differs within a group, so that every group teaches something."""

from __future__ import annotations

import zlib


def spread(completion: str) -> float:
    """0 or 1, by a checksum of the text."""
    return float(zlib.crc32(completion.encode()) % 2)
