"""Tensors as bytes in shared memory: one side writes a file and says what lies where, the other maps it.

A bucket is written once and never again. Its name is removed when every reader has loaded it; memory goes with the last
mapping, so that a layer which waits for its other shards may keep what it has been given.
"""

from __future__ import annotations

import mmap
import os
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posttrain.errors import SyncError

MEMORY = Path("/dev/shm")
PREFIX = "posttrain-bucket-"
ALIGNMENT = 64
"""Bytes: a tensor begins where any dtype may."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One tensor of a bucket: its name, the name of its dtype, its shape, and its first byte."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def bytes(self) -> int:
        count = 1
        for size in self.shape:
            count *= size
        return count * _dtype(self.dtype).itemsize


@dataclass
class Bucket:
    """The writer's end. `close` frees the memory, also where a transfer broke off."""

    capacity: int
    """Bytes; a single tensor may be larger and has a bucket of its own."""
    folder: Path = MEMORY
    entries: list[Entry] = field(default_factory=list)
    size: int = 0

    def __post_init__(self) -> None:
        self.path = self.folder / f"{PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
        # Of this user alone, and never a file that is there already.
        self._file = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)

    def takes(self, tensor: Tensor) -> bool:
        return not self.entries or self.size + tensor.nbytes <= self.capacity

    def put(self, name: str, tensor: Tensor) -> None:
        """Append a copy. Raises SyncError where shared memory is full."""
        plain = tensor.detach().to("cpu").contiguous()
        self.size = -(-self.size // ALIGNMENT) * ALIGNMENT
        self.entries.append(Entry(name, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), self.size))
        self.write(plain.reshape(-1).view(torch.uint8).numpy().data)

    def write(self, data: bytes | memoryview) -> None:
        """Append bytes as they are. Raises SyncError where shared memory is full."""
        rest = memoryview(data)
        while rest:
            try:
                written = os.pwrite(self._file, rest, self.size)
            except OSError as error:
                raise SyncError(
                    f"{self.folder}: {error.strerror} after {self.size} bytes of weights; give the container more "
                    "shared memory, or lower the bucket's bytes"
                ) from None
            rest, self.size = rest[written:], self.size + written

    def index(self) -> dict[str, Any]:
        """What a reader must know, in JSON."""
        tensors = [[e.name, e.dtype, list(e.shape), e.offset] for e in self.entries]
        return {"path": str(self.path), "tensors": tensors}

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1
            self.path.unlink(missing_ok=True)


def read(path: str, tensors: Sequence[Sequence[Any]], folder: Path = MEMORY) -> Iterator[tuple[str, Tensor]]:
    """(name, view into the mapping) of each tensor. Raises SyncError for a path that is none of ours, or an index that
    points beyond the file.
    """
    at = Path(path)
    if at.parent != folder or not at.name.startswith(PREFIX):
        raise SyncError(f"{path} is no bucket of weights: those lie in {folder} and are called {PREFIX}*")
    try:
        with at.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            # Copy on write: torch wants memory that may be written, and the file must not be.
            mapped = mmap.mmap(file.fileno(), max(size, 1), access=mmap.ACCESS_COPY) if size else None
    except OSError as error:
        raise SyncError(
            f"{path}: {error.strerror}; engine and trainer share no memory: run both on one machine (in one container)"
        ) from None
    for name, dtype, shape, offset in tensors:
        entry = Entry(name, dtype, tuple(shape), offset)
        if offset < 0 or any(n < 0 for n in entry.shape) or (entry.bytes and offset + entry.bytes > size):
            raise SyncError(f"{name} ends at byte {offset + entry.bytes} of a bucket of {size}")
        kind = _dtype(dtype)
        if mapped is None or entry.bytes == 0:
            yield name, torch.empty(entry.shape, dtype=kind)
            continue
        flat = torch.frombuffer(mapped, dtype=kind, count=entry.bytes // kind.itemsize, offset=offset)
        yield name, flat.view(entry.shape)


def sweep(folder: Path = MEMORY, prefix: str = PREFIX) -> None:
    """Remove buckets, or what else is named by a prefix and a process, whose writers are gone."""
    for file in folder.glob(f"{prefix}*"):
        owner = file.name.removeprefix(prefix).split("-")[0]
        if owner.isdigit() and not Path("/proc", owner).exists():
            file.unlink(missing_ok=True)


def _dtype(name: str) -> torch.dtype:
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise SyncError(f"{name!r} is no dtype")
    return found
