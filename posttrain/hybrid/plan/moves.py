"""What travels: moves of one box of one tensor, and messages of the moves between two ranks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from posttrain.hybrid.plan.boxes import Box, Shape, extent, position, volume


@dataclass(frozen=True, slots=True)
class Move:
    """One box of a tensor, from a training rank's storage into an engine rank's parameter.

    `local.reshape(-1).as_strided(shape, strides, offset)` is it in the source's storage of `tensor`, and
    `parameter[slices]` (after `reshape(shape)`) is where it belongs.
    """

    tensor: str
    offset: int
    """Of the box's first element in the source's contiguous storage of the tensor, in elements."""
    strides: Shape
    shape: Shape
    parameter: str
    region: Box
    """In the destination's parameter; with a leading index where that counts experts and the tensor is one of them."""
    itemsize: int

    @property
    def nbytes(self) -> int:
        return volume(self.region) * self.itemsize

    @property
    def slices(self) -> tuple[slice, ...]:
        """The region as an index of the parameter."""
        return tuple(slice(start, stop) for start, stop in self.region)

    def part(self, index: int, count: int) -> Move | None:
        """Part `index` of `count` of it, cut along its first dimension longer than one; None where that is empty."""
        dim = next((d for d, n in enumerate(self.shape) if n > 1), 0)
        rows = self.shape[dim]
        start, stop = rows * index // count, rows * (index + 1) // count
        if start == stop:
            return None
        at = dim + len(self.region) - len(self.shape)
        first = self.region[at][0]
        return Move(
            self.tensor,
            self.offset + start * self.strides[dim],
            self.strides,
            (*self.shape[:dim], stop - start, *self.shape[dim + 1 :]),
            self.parameter,
            (*self.region[:at], (first + start, first + stop), *self.region[at + 1 :]),
            self.itemsize,
        )


@dataclass(frozen=True)
class Message:
    """All moves from one training rank to one engine rank in one round, in the order in which both sides pack them."""

    source: int
    destination: int
    local: bool
    """Both ranks are one process: a copy, nothing is sent."""
    moves: tuple[Move, ...]

    @cached_property
    def nbytes(self) -> int:
        return sum(move.nbytes for move in self.moves)


@dataclass(frozen=True, slots=True)
class Stretch:
    """A move without names: alike for all tensors of the same shape that are cut alike."""

    offset: int
    strides: Shape
    shape: Shape
    region: Box

    @classmethod
    def of(cls, box: Box, stored: tuple[Shape, Shape, int], region: Box) -> Stretch:
        """`stored`: first index and strides of the box of which the source stores a range, and the range's start."""
        origin, steps, start = stored
        index = tuple(lo - o for (lo, _), o in zip(box, origin, strict=True))
        return cls(position(index, steps) - start, steps, extent(region), region)

    def bound(self, tensor: str, parameter: str, slot: int | None, itemsize: int) -> Move:
        region = self.region if slot is None else ((slot, slot + 1), *self.region)
        return Move(tensor, self.offset, self.strides, self.shape, parameter, region, itemsize)
