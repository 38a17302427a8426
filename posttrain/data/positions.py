"""Token positions of micro-batches as a learner lays them out, counted from what lies in them: which of them teach."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import groupby, pairwise, takewhile
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from posttrain.data.packing import Packing
    from posttrain.types import Batch


@dataclass(frozen=True)
class Positions:
    """Token positions of one pass over the micro-batches of an update."""

    computed: int = 0
    padding: int = 0
    """Of these, those that fill rows up."""
    learnt: int = 0
    """Masked tokens."""
    repeated: int = 0
    """Prompt tokens computed anew though the same prompt, as far as this token, was computed before in the update."""
    shared: int = 0
    """Prompt tokens that are not computed anew, because the responses of a row share them."""
    waiting: int = 0
    """What ranks with fewer positions could have computed while the busiest one had more."""

    def __add__(self, other: Positions) -> Positions:
        return Positions(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


Sequences = Sequence[tuple[int, tuple[int, ...], int]]
"""Of each sequence of a micro-batch its group, its tokens before the first masked one, and its length."""


def count(batches: Sequence[Batch], packing: Packing, further: int = 0) -> Positions:
    """The positions of one pass over an update's micro-batches, as `packing.layout` places them.

    `further` tokens are put behind each sequence, as where a reward model is read after the last token.
    """
    out, busy = Positions(), [0] * packing.ranks
    asked: dict[int, list[tuple[int, ...]]] = defaultdict(list)
    paid = 0
    for number, batch in enumerate(batches):
        sequences = list(_sequences(batch, further))
        rows = list(_rows(sequences, packing.layout))
        sizes = [sum(size for _, _, size in row) - (len(row) - 1) * shared for row, shared in rows]
        computed = len(rows) * max(sizes) if packing.padded else sum(sizes)
        shared = sum((len(row) - 1) * shared for row, shared in rows)
        for group, prompt, _ in sequences:
            asked[group].append(prompt)
            paid += len(prompt)
        out += Positions(computed, computed - sum(sizes), int(batch.mask.sum()), shared=shared)
        busy[number % packing.ranks] += computed
    needed = sum(_distinct(prompts) for prompts in asked.values())
    return out + Positions(
        repeated=paid - out.shared - needed, waiting=packing.ranks * max(busy, default=0) - out.computed
    )


def _sequences(batch: Batch, further: int) -> Iterator[tuple[int, tuple[int, ...], int]]:
    mask, at = batch.mask.tolist(), 0
    for group, length in zip(batch.groups.tolist(), batch.lengths.tolist(), strict=True):
        # A state read after a token moves the mask by as much.
        said = mask.index(True, at) + further
        yield group, tuple(batch.tokens[at:said].tolist()), length + further
        at += length


def _rows(sequences: Sequences, layout: str) -> Iterator[tuple[Sequences, int]]:
    """Sequences of each row, and how many leading tokens they have in common and compute once."""
    if layout == "packed":
        yield sequences, 0
    elif layout == "rows":
        yield from (([sequence], 0) for sequence in sequences)
    else:
        for _, members in groupby(sequences, key=lambda sequence: sequence[0]):
            row = list(members)
            yield row, _common([prompt for _, prompt, _ in row]) if len(row) > 1 else 0


def _common(prompts: Sequence[tuple[int, ...]]) -> int:
    """How many leading tokens are the same in all."""
    together = zip(*prompts, strict=False)
    return sum(1 for _ in takewhile(lambda at: len(set(at)) == 1, together))


def _distinct(prompts: Sequence[tuple[int, ...]]) -> int:
    """Different beginnings of prompts: what is computed where nothing is computed twice."""
    if len(set(prompts)) == 1:
        return len(prompts[0])
    ordered = sorted(prompts)
    again = sum(_common(pair) for pair in pairwise(ordered))
    return sum(map(len, ordered)) - again
