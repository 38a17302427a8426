"""Boxes: rectangular regions of a row-major tensor, a (start, stop) range per dimension."""

from __future__ import annotations

from math import prod

Shape = tuple[int, ...]
Range = tuple[int, int]
Box = tuple[Range, ...]


def everything(shape: Shape) -> Box:
    """The box that is the whole tensor."""
    return tuple((0, size) for size in shape)


def extent(box: Box) -> Shape:
    return tuple(stop - start for start, stop in box)


def volume(box: Box) -> int:
    return prod(stop - start for start, stop in box)


def corner(box: Box) -> Shape:
    """Its first element's index."""
    return tuple(start for start, _ in box)


def shifted(box: Box, by: Shape) -> Box:
    return tuple((start + d, stop + d) for (start, stop), d in zip(box, by, strict=True))


def intersection(one: Box, other: Box) -> Box | None:
    """What both hold, or None where that is nothing."""
    found = []
    for (a, b), (c, d) in zip(one, other, strict=True):
        start, stop = max(a, c), min(b, d)
        if start >= stop:
            return None
        found.append((start, stop))
    return tuple(found)


def strides(shape: Shape) -> Shape:
    """Elements between neighbours along each dimension of a contiguous tensor."""
    return tuple(prod(shape[d + 1 :]) for d in range(len(shape)))


def position(index: Shape, steps: Shape) -> int:
    """Where the element at `index` lies in a storage with strides `steps`."""
    return sum(i * s for i, s in zip(index, steps, strict=True))


def chunk(size: int, count: int, index: int) -> Range:
    """The rows of chunk `index` of `count`, as torch.chunk and DTensor's Shard cut them: every chunk is as long as the
    first, the trailing ones are short or empty.
    """
    length = -(-size // count)
    return min(index * length, size), min((index + 1) * length, size)


def rectangles(start: int, stop: int, shape: Shape) -> list[Box]:
    """The boxes that make up elements `start` to `stop` of a flattened tensor: the end of a row, whole rows, the
    beginning of a row; at most `2 * len(shape) - 1`, in order.
    """
    if start >= stop:
        return []
    if not shape:
        return [()]
    inner = shape[1:]
    row = prod(inner)
    (first, head), (last, tail) = divmod(start, row), divmod(stop, row)
    if first == last:
        return [((first, first + 1), *box) for box in rectangles(head, tail, inner)]
    found: list[Box] = []
    if head:
        found += [((first, first + 1), *box) for box in rectangles(head, row, inner)]
        first += 1
    if first < last:
        found.append(((first, last), *everything(inner)))
    if tail:
        found += [((last, last + 1), *box) for box in rectangles(0, tail, inner)]
    return found
