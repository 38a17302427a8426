"""How a Batch lies before attention: the learner's private choice, which gradients do not depend on.

`rows`: a sequence per row, padded on the right. `packed`: all sequences in one row that do not see each other.
`tree`: a group per row, its prompt computed once and every response attending to the prompt and itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from posttrain.types import Batch

Layout = Literal["tree", "rows", "packed"]


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


@dataclass
class _Row:
    """Slots of one row: `(sequence, first token, stop token)` runs, `shared` leading tokens belonging to all."""

    sequences: list[int]
    shared: int


def lay_out(batch: Batch, layout: Layout) -> Laid:
    """Place a Batch's tokens into rows. Right padding is never attended to by a token."""
    starts = torch.cat([torch.zeros(1, dtype=torch.long), batch.lengths.cumsum(0)]).tolist()
    rows = _rows(batch, layout, starts)
    width = max(r.shared + sum(_own(starts, s, r.shared) for s in r.sequences) for r in rows)
    input_ids = torch.zeros(len(rows), width, dtype=torch.long)
    position_ids = torch.zeros_like(input_ids)
    owner = torch.full((len(rows), width), -2)
    predictor_row = torch.zeros(len(batch.tokens), dtype=torch.long)
    predictor_column = torch.zeros_like(predictor_row)
    for r, row in enumerate(rows):
        first = starts[row.sequences[0]]
        input_ids[r, : row.shared] = batch.tokens[first : first + row.shared]
        position_ids[r, : row.shared] = torch.arange(row.shared)
        owner[r, : row.shared] = -1
        at = row.shared
        for s in row.sequences:
            begin, end = starts[s] + row.shared, starts[s + 1]
            size = end - begin
            input_ids[r, at : at + size] = batch.tokens[begin:end]
            position_ids[r, at : at + size] = batch.position[begin:end]
            owner[r, at : at + size] = s
            predictor_row[starts[s] : end] = r
            # Token t is predicted by the slot of token t - 1, which for the first own token is the last shared one.
            columns = torch.cat([torch.arange(row.shared), torch.arange(at, at + size)])
            predictor_column[starts[s] + 1 : end] = columns[: end - starts[s] - 1]
            at += size
    single = all(len(row.sequences) == 1 for row in rows)
    return Laid(
        input_ids,
        position_ids,
        None if single else _allowed(owner),
        predictor_row[batch.mask],
        predictor_column[batch.mask],
    )


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
    """`[R, L]` owners (-1 shared, -2 padding) to `[R, 1, L, L]`: causal, within one's own and what is shared."""
    mine, other = owner[:, :, None], owner[:, None, :]
    causal = torch.ones(owner.shape[1], owner.shape[1], dtype=torch.bool).tril()
    allowed = causal & ((mine == other) | ((other == -1) & (mine != -2)))
    return allowed[:, None]
