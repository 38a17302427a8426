"""How the training ranks hold a tensor: whole, cut by rows, as flat ranges, or by tensor parallelism; with replicas."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod
from typing import Literal

from posttrain.errors import RecipeError
from posttrain.hybrid.plan.boxes import Box, Shape, chunk, everything, extent

Shards = Literal["whole", "rows", "flat"]


@dataclass(frozen=True, slots=True)
class Piece:
    """Elements `start` to `stop` of the flattened `box` of a tensor, which each of `ranks` stores contiguously."""

    box: Box
    start: int
    stop: int
    ranks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Training:
    """The source layout. Rank (replica * shards + shard) * tensor + t holds slice t of the tensor parallelism, of that
    the shard of its data parallelism, as every replica does.
    """

    ranks: int
    shards: Shards = "whole"
    """whole: one device, DDP, ZeRO-1/2. rows: FSDP2 (dimension 0, as torch.chunk cuts it). flat: ZeRO-3 (the flattened
    tensor, padded to a multiple of the shards, equal ranges)."""
    replicas: int = 1
    """Of a sharded layout: how many groups of ranks hold the same shards (HSDP's outer mesh dimension)."""
    tensor: int = 1
    dims: tuple[tuple[str, int], ...] = ()
    """For tensor parallelism: (regular expression over the whole name, dimension); what matches none is held whole."""

    def __post_init__(self) -> None:
        mistakes = []
        for key in ("ranks", "replicas", "tensor"):
            if getattr(self, key) < 1:
                mistakes.append(f"{key}: {getattr(self, key)} training ranks cannot be; at least 1 is needed")
        if not mistakes and self.ranks % (self.replicas * self.tensor):
            mistakes.append(
                f"ranks: {self.ranks} training ranks are no multiple of {self.replicas} replicas x {self.tensor} of "
                f"tensor parallelism"
            )
        if self.shards == "whole" and self.replicas != 1:
            mistakes.append("replicas: with shards whole every data-parallel rank is a replica; leave it at 1")
        if self.tensor > 1 and not self.dims:
            mistakes.append("dims: tensor parallelism needs the dimension by which each tensor is cut")
        if mistakes:
            raise RecipeError(mistakes, "training layout")

    def dim(self, name: str) -> int | None:
        """The dimension by which tensor parallelism cuts the tensor of this name, if it does."""
        if self.tensor == 1:
            return None
        return next((dim for pattern, dim in self.dims if re.fullmatch(pattern, name)), None)

    def pieces(self, shape: Shape, dim: int | None) -> list[Piece]:
        """The distinct slices of a tensor `shape`, cut along `dim`, each with every rank that holds it; empty ones are
        left out.
        """
        if dim is None:
            return self._of_box(everything(shape), tuple(range(self.tensor)))
        found = []
        for t in range(self.tensor):
            box = tuple(chunk(n, self.tensor, t) if d == dim else (0, n) for d, n in enumerate(shape))
            found += self._of_box(box, (t,))
        return found

    def _of_box(self, box: Box, slices: tuple[int, ...]) -> list[Piece]:
        groups = self.ranks // self.tensor
        count = 1 if self.shards == "whole" else groups // self.replicas
        found = []
        for shard in range(count):
            start, stop = self._range(extent(box), count, shard)
            holders = [group * self.tensor + t for group in range(shard, groups, count) for t in slices]
            if start < stop:
                found.append(Piece(box, start, stop, tuple(sorted(holders))))
        return found

    def _range(self, shape: Shape, count: int, shard: int) -> tuple[int, int]:
        if self.shards == "rows" and shape:
            first, last = chunk(shape[0], count, shard)
            return first * prod(shape[1:]), last * prod(shape[1:])
        # DeepSpeed pads to a multiple of the ranks, so every range has the same length but the last elements are none.
        return chunk(prod(shape), count, shard)

    def storage(self, shape: Shape, dim: int | None, rank: int) -> tuple[Box, int, int]:
        """What `rank` stores of a tensor: (box, start, stop) as in Piece; start equals stop where it stores nothing."""
        for piece in self.pieces(shape, dim):
            if rank in piece.ranks:
                return piece.box, piece.start, piece.stop
        return everything(shape), 0, 0

    def __str__(self) -> str:
        words = [f"{self.ranks} training ranks", {"whole": "whole", "rows": "rows", "flat": "flat ranges"}[self.shards]]
        words += [f"{self.replicas} replicas"] * (self.replicas > 1) + [f"tensor {self.tensor}"] * (self.tensor > 1)
        return f"{words[0]} ({', '.join(words[1:])})"
