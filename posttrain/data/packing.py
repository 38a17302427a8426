"""Samples of one optimiser step to micro-batches under a token budget, the step's denominators inside each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor

from posttrain.types import Batch, Sample

AUTHORS = ("policy", "data", "opponent")
ALWAYS = (
    *("tokens", "position", "mask", "behaviour", "advantages", "lengths", "groups", "scores", "offsets", "index"),
    "author",
)
OPTIONAL = ("previous", "reference", "returns", "values", "uniform", "ends")
"""Fields of samples and batches that are there only where the algorithm asks for them."""


@dataclass(frozen=True)
class Packing:
    """How a learner wants its micro-batches: a budget of token positions, and whether a group's prompt is shared."""

    budget: int
    share_prompts: bool = False
    dtype: torch.dtype = torch.float32
    """Of log-probabilities and advantages."""
    ranks: int = 1
    """How many compute at the same time: as many micro-batches are wanted, where there are rows enough."""
    layout: Literal["tree", "rows", "packed"] = "rows"
    """How the learner places a micro-batch: read by what counts positions, not by the packing itself."""
    padded: bool = True
    """Whether rows are filled up to the longest of a micro-batch."""


def pack(samples: Sequence[Sample], packing: Packing) -> Iterator[Batch]:
    """All samples of one optimiser step, longest first, as Batches. Samples without a masked token are left out.

    Every Batch carries the whole step's denominators, so the sum of its losses does not depend on the cut. A
    sequence longer than the budget has a Batch of its own.
    """
    learnt = [i for i, sample in enumerate(samples) if bool(sample.mask.any())]
    totals = sum(int(samples[i].mask.sum()) for i in learnt), len(learnt), len({samples[i].group for i in learnt})
    rows = _rows(samples, learnt, packing)
    # Rows that have nothing to say stand apart, so that no backward pass is made for them.
    silent = {row[0]: not any(bool(samples[i].advantages[samples[i].mask].any()) for i in row) for row in rows}
    rows.sort(key=lambda row: (silent[row[0]], -_length(samples, row, packing), row[0]))
    area = sum(_length(samples, row, packing) for row in rows)
    budget = packing.budget if packing.ranks == 1 else min(packing.budget, -(-area // packing.ranks))
    waiting: list[list[int]] = []
    taken = 0
    for row in rows:
        length = _length(samples, row, packing)
        size = (
            _length(samples, waiting[0], packing) * (len(waiting) + 1) if waiting and packing.padded else taken + length
        )
        if waiting and (size > budget or silent[row[0]] != silent[waiting[0][0]]):
            yield _batch(samples, waiting, packing, totals)
            waiting, taken = [], 0
        waiting.append(row)
        taken += length
    if waiting:
        yield _batch(samples, waiting, packing, totals)


def _rows(samples: Sequence[Sample], learnt: Sequence[int], packing: Packing) -> list[list[int]]:
    """What lies in one row of attention: one sample each, or those of a group that share a prompt and fit."""
    if not packing.share_prompts:
        return [[i] for i in learnt]
    rows: list[list[int]] = []
    by_group: dict[int, list[int]] = {}
    for i in learnt:
        by_group.setdefault(samples[i].group, []).append(i)
    for members in by_group.values():
        row: list[int] = []
        for i in members:
            if row and _length(samples, [*row, i], packing) > packing.budget:
                rows.append(row)
                row = []
            row.append(i)
        rows.append(row)
    return rows


def _length(samples: Sequence[Sample], row: Sequence[int], packing: Packing) -> int:
    lengths = [len(samples[i].rollout.tokens) for i in row]
    if not packing.share_prompts or len(row) == 1:
        return sum(lengths)
    shared = min(_said_from(samples[i]) for i in row)
    return shared + sum(length - shared for length in lengths)


def _said_from(sample: Sample) -> int:
    return sample.rollout.mask.index(True) if True in sample.rollout.mask else len(sample.rollout.mask)


def _batch(
    samples: Sequence[Sample], rows: Sequence[Sequence[int]], packing: Packing, totals: tuple[int, int, int]
) -> Batch:
    index = [i for row in rows for i in row]
    chosen = [samples[i] for i in index]
    lengths = torch.tensor([len(s.rollout.tokens) for s in chosen])

    def joined(field: Callable[[Sample], Any], dtype: torch.dtype) -> Tensor:
        return torch.cat([torch.as_tensor(field(s), dtype=dtype) for s in chosen])

    def optional(name: str) -> Tensor | None:
        if getattr(chosen[0], name) is None:
            return None
        return joined(lambda s: getattr(s, name), packing.dtype)

    return Batch(
        tokens=joined(lambda s: s.rollout.tokens, torch.long),
        position=torch.cat([torch.arange(int(n)) for n in lengths]),
        segment=torch.repeat_interleave(torch.arange(len(chosen)), lengths),
        mask=joined(lambda s: s.mask, torch.bool),
        behaviour=joined(lambda s: s.rollout.logprobs or (0.0,) * len(s.rollout.tokens), packing.dtype),
        advantages=joined(lambda s: s.advantages, packing.dtype),
        lengths=lengths,
        groups=torch.tensor([s.group for s in chosen]),
        scores=torch.tensor([s.score for s in chosen], dtype=packing.dtype),
        offsets=torch.tensor([s.score if s.offset is None else s.offset for s in chosen], dtype=packing.dtype),
        index=torch.tensor(index),
        author=torch.tensor([AUTHORS.index(s.rollout.author) for s in chosen]),
        total_tokens=totals[0],
        total_sequences=totals[1],
        total_groups=totals[2],
        **{name: optional(name) for name in OPTIONAL},
    )


def join(batches: Sequence[Batch]) -> Batch:
    """All micro-batches of an optimiser step as one, for formulas that see the whole step."""
    offsets = [0, *accumulate(len(b.lengths) for b in batches)]
    present = [name for name in OPTIONAL if getattr(batches[0], name) is not None]
    joined: dict[str, Any] = {name: torch.cat([getattr(b, name) for b in batches]) for name in (*ALWAYS, *present)}
    joined["segment"] = torch.cat([b.segment + offset for b, offset in zip(batches, offsets, strict=False)])
    return replace(batches[0], **joined)
