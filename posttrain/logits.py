"""How many logits are worked on at a time in full precision. Imports no torch: a plan says so too."""

from __future__ import annotations

BLOCK = {"cpu": 2**20}
"""By device. On a CPU a block stays in the cache from one operation to the next: on two cores with 49k words the
forward pass takes half the time.
"""
ELSEWHERE = 2**26
"""Bounds the memory that fp32 takes beside the products of half precision."""


def rows_of_a_block(device: str, vocabulary: int) -> int:
    """Positions whose logits are worked on at a time, one at least."""
    return max(1, BLOCK.get(device, ELSEWHERE) // vocabulary)
