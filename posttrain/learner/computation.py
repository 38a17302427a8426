"""How a learner computes, and figures of masked tokens put back where the tokens are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from posttrain.learner.layout import Layout
from posttrain.types import Batch


@dataclass(frozen=True)
class Computation:
    """How the learner computes. The first three change speed and memory only; the last is the roll-outs' own."""

    layout: Layout
    micro_batch_tokens: int
    logit_chunk: int
    temperature: float


def scattered(values: Tensor, batch: Batch) -> Tensor:
    """`[M, ...]` figures of masked tokens to `[N, ...]`, 0 elsewhere."""
    at = batch.mask.nonzero()[:, 0].to(values.device)
    out = torch.zeros(len(batch.tokens), *values.shape[1:], dtype=values.dtype, device=values.device)
    return out.index_copy(0, at, values)
