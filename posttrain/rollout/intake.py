"""The door through which weights enter an engine: nothing missing, nothing renamed, nothing empty."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping

from torch import Tensor

from posttrain.errors import SyncError


class Intake:
    """Passes a stream of (name, tensor) on while checking it against the names and shapes a complete set has."""

    def __init__(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        self.expected = expected
        self.seen: set[str] = set()

    def __call__(self, weights: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """Yield each tensor. Raises SyncError, naming it, for one that is unknown, repeated, or of another shape."""
        for name, tensor in weights:
            yield self.admit(name, tensor)
        self.require_complete()

    def admit(self, name: str, tensor: Tensor) -> tuple[str, Tensor]:
        """The pair as it came, and counted. Raises as above."""
        if name not in self.expected:
            near = difflib.get_close_matches(name, [n for n in self.expected if n not in self.seen], n=1)
            hint = f"; did it mean {near[0]!r}?" if near else ""
            raise SyncError(f"the engine has no tensor {name!r}{hint}")
        if name in self.seen:
            raise SyncError(f"tensor {name!r} was sent twice")
        if tuple(tensor.shape) != self.expected[name]:
            raise SyncError(f"tensor {name!r} has shape {tuple(tensor.shape)}, expected {self.expected[name]}")
        self.seen.add(name)
        return name, tensor

    def require_complete(self) -> None:
        """Raise SyncError naming what did not arrive."""
        missing = [name for name in self.expected if name not in self.seen]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise SyncError(f"the sync left out {', '.join(map(repr, missing[:3]))}{more}")


def refusal(version: int | None) -> None:
    """Raise SyncError where an engine holds no complete set of weights."""
    if version is None:
        raise SyncError("the engine refuses to generate: it holds no complete set of weights; sync it first")
