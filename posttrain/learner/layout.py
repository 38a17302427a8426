"""How a Batch lies before attention: the learner's private choice, which gradients do not depend on.

`rows`: a sequence per row, padded on the right. `packed`: all sequences in one row that do not see each other.
`tree`: a group per row, its prompt computed once and every response attending to the prompt and itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from posttrain.learner.attention import Tree
from posttrain.types import Batch

Layout = Literal["tree", "rows", "packed"]
SHARED, PADDING = -1, -2
"""Owners of a slot that are no sequence."""


@dataclass(frozen=True)
class Laid:
    """Model inputs `[R, L]`, and where the hidden state that predicts each masked token is found."""

    input_ids: Tensor
    position_ids: Tensor
    attention_mask: Tensor | None
    """`[R, 1, L, L]` bool, True where attention is allowed; None where plain causal attention is right."""
    row: Tensor
    column: Tensor
    """`[M]` each: the predictor of the m-th masked token of the Batch, in the Batch's order."""
    trees: tuple[Tree, ...] | None = None
    """What lies in the only row there is, where attention is told so instead of by a mask."""


@dataclass
class _Row:
    """Slots of one row: `(sequence, first token, stop token)` runs, `shared` leading tokens belonging to all."""

    sequences: list[int]
    shared: int


def lay_out(batch: Batch, layout: Layout, flat: bool = False) -> Laid:
    """Place a Batch's tokens into rows. Right padding is never attended to by a token.

    `flat` puts the rows one behind the other, without padding, for a model whose attention takes trees.
    """
    starts = torch.cat([torch.zeros(1, dtype=torch.long), batch.lengths.cumsum(0)]).tolist()
    rows = _rows(batch, layout, starts)
    input_ids, position_ids, owner, sizes = [], [], [], []
    predictor = torch.zeros(len(batch.tokens), dtype=torch.long)
    at = 0
    for row in rows:
        first, begun = starts[row.sequences[0]], at
        input_ids.append(batch.tokens[first : first + row.shared])
        position_ids.append(torch.arange(row.shared))
        owner.append(torch.full((row.shared,), SHARED))
        at += row.shared
        for s in row.sequences:
            begin, end = starts[s] + row.shared, starts[s + 1]
            input_ids.append(batch.tokens[begin:end])
            position_ids.append(batch.position[begin:end])
            owner.append(torch.full((end - begin,), s))
            # Token t is predicted by the slot of token t - 1, which for the first own token is the last shared one.
            slots = torch.cat([torch.arange(begun, begun + row.shared), torch.arange(at, at + end - begin)])
            predictor[starts[s] + 1 : end] = slots[: end - starts[s] - 1]
            at += end - begin
        sizes.append(at - begun)
    said = predictor[batch.mask]
    parts = torch.cat(input_ids), torch.cat(position_ids), torch.cat(owner)
    if flat:
        trees = tuple(Tree(r.shared, tuple(_own(starts, s, r.shared) for s in r.sequences)) for r in rows)
        return Laid(parts[0][None], parts[1][None], None, torch.zeros_like(said), said, trees)
    ids, positions, owners = (
        pad_sequence(part.split(sizes), batch_first=True, padding_value=fill)
        for part, fill in zip(parts, (0, 0, PADDING), strict=True)
    )
    ends = torch.tensor(sizes).cumsum(0)
    row_of = torch.searchsorted(ends, said, right=True)
    single = all(len(row.sequences) == 1 for row in rows)
    column = said - (ends - torch.tensor(sizes))[row_of]
    return Laid(ids, positions, None if single else _allowed(owners), row_of, column)


def _own(starts: list[int], sequence: int, shared: int) -> int:
    return starts[sequence + 1] - starts[sequence] - shared


def _rows(batch: Batch, layout: Layout, starts: list[int]) -> list[_Row]:
    count = len(batch.lengths)
    if layout == "rows":
        return [_Row([s], 0) for s in range(count)]
    if layout == "packed":
        return [_Row(list(range(count)), 0)]
    runs: list[list[int]] = []
    for s in range(count):
        if runs and batch.groups[runs[-1][-1]] == batch.groups[s]:
            runs[-1].append(s)
        else:
            runs.append([s])
    return [_Row(run, _shared(batch, run, starts)) for run in runs]


def _shared(batch: Batch, run: list[int], starts: list[int]) -> int:
    """How many leading tokens all sequences of a run have in common and none of them learns."""
    if len(run) == 1:
        return 0
    limit = min(int(batch.mask[starts[s] : starts[s + 1]].int().argmax()) for s in run)
    first = batch.tokens[starts[run[0]] : starts[run[0]] + limit]
    same = torch.ones(limit, dtype=torch.bool)
    for s in run[1:]:
        same &= batch.tokens[starts[s] : starts[s] + limit] == first
    return int(same.int().cumprod(0).sum())


def _allowed(owner: Tensor) -> Tensor:
    """`[R, L]` owners to `[R, 1, L, L]`: causal, within one's own and what is shared."""
    mine, other = owner[:, :, None], owner[:, None, :]
    causal = torch.ones(owner.shape[1], owner.shape[1], dtype=torch.bool).tril()
    allowed = causal & ((mine == other) | ((other == SHARED) & (mine != PADDING)))
    return allowed[:, None]
