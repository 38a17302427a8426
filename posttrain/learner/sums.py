"""Adding numbers of few bits to a sum of more."""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 2**20
"""Numbers that are widened at a time, so that they stay in the cache."""


def add_into(total: Tensor, part: Tensor) -> None:
    """`total += part`, to the last bit, where `part` has the same shape and may have fewer bits.

    On a CPU torch adds across dtypes at a sixth of the speed at which it widens and adds.
    """
    if total.device.type != "cpu" or total.dtype == part.dtype or not (total.is_contiguous() and part.is_contiguous()):
        total.add_(part)
        return
    wide = torch.empty(min(BLOCK, part.numel()), dtype=total.dtype)
    for into, few in zip(total.view(-1).split(BLOCK), part.view(-1).split(BLOCK), strict=True):
        into.add_(wide[: len(few)].copy_(few))
