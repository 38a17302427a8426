"""How an engine's parameter is cut by tensor parallelism, and which part of it one tensor of the checkpoint fills."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from posttrain.hybrid.plan.boxes import Box, Shape, everything


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive rows (or columns) that are cut alike: slice `t // copies` of `shard` rows each."""

    size: int
    """Of the whole; the last slices are short where `size` is below all shards together (padding)."""
    shard: int
    copies: int = 1
    """How many neighbouring ranks hold the same slice: key-value heads fewer than ranks, and what is held whole."""

    def held(self, t: int) -> tuple[int, int]:
        """The rows of the whole that rank t holds."""
        start = min(t // self.copies * self.shard, self.size)
        return start, min(start + self.shard, self.size)


@dataclass(frozen=True, slots=True)
class Cut:
    """A parameter made of `parts` along dimension `dim`; a tensor brings `count` of them from `first` on."""

    dim: int
    parts: tuple[Part, ...]
    first: int = 0
    count: int = 1

    @property
    def filled(self) -> range:
        return range(self.first, self.first + self.count)

    def local(self, shape: Shape) -> Shape:
        """One rank's shape of the parameter, for a tensor of `shape`."""
        rows = sum(part.shard for part in self.parts)
        return tuple(rows if d == self.dim else n for d, n in enumerate(shape))

    def landings(self, shape: Shape, t: int) -> Iterator[tuple[Box, int]]:
        """What rank t holds of a tensor of `shape`: boxes of it, each with its first row in the rank's parameter."""
        before = 0
        row = sum(part.shard for part in self.parts[: self.first])
        for index in self.filled:
            part = self.parts[index]
            start, stop = part.held(t)
            if start < stop:
                yield _with(everything(shape), self.dim, (before + start, before + stop)), row
            before += part.size
            row += part.shard

    def padding(self, t: int) -> tuple[int, int] | None:
        """Rows at the end of rank t's parameter that no tensor fills."""
        last = self.parts[-1]
        start, stop = last.held(t)
        rows = sum(part.shard for part in self.parts)
        missing = last.shard - (stop - start)
        return (rows - missing, rows) if missing else None


def _with(box: Box, dim: int, rows: tuple[int, int]) -> Box:
    return (*box[:dim], rows, *box[dim + 1 :])
