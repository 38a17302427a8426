"""How a learner computes, and figures of masked tokens put back where the tokens are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from posttrain.learner.layout import Layout
from posttrain.learner.sharding import WHOLE, Sharding
from posttrain.types import Batch


@dataclass(frozen=True)
class Computation:
    """How the learner computes. All but the temperature, which is the roll-outs' own, changes speed and memory only."""

    layout: Layout
    micro_batch_tokens: int
    logit_chunk: int
    temperature: float
    sharding: Sharding = WHOLE
    dtype: torch.dtype | None = None
    """Where it is not that of the parameters."""
    skips: bool = True
    """Whether no backward pass is made where there is no gradient."""
    flat: bool = False
    """Whether rows lie one behind the other without padding: every model of the learner takes trees."""


def scattered(values: Tensor, batch: Batch) -> Tensor:
    """`[M, ...]` figures of masked tokens to `[N, ...]`, 0 elsewhere."""
    at = batch.mask.nonzero()[:, 0].to(values.device)
    out = torch.zeros(len(batch.tokens), *values.shape[1:], dtype=values.dtype, device=values.device)
    return out.index_copy(0, at, values)


def said_by(head: nn.Linear, states: Tensor) -> Tensor:
    """`[M, B]` of states `[M, H]`, in fp32 at least: in bf16 a value would have two and a half digits."""
    weight = head.weight
    wide = torch.promote_types(weight.dtype, torch.float32)
    return functional.linear(states.to(wide), weight.to(wide))
