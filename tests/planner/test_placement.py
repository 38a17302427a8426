"""What each strategy leaves on one of four ranks, against the arithmetic of its paper (ZeRO, 1910.02054, figure 1)."""

from __future__ import annotations

import pytest

from posttrain.planner.memory import Placement, state_terms
from posttrain.planner.shape import Shape
from tests.planner.test_shape import SIZES

LLAMA = Shape.of({"model_type": "llama", **SIZES})
EXPECTED = {
    # Bytes a parameter of bf16 weights, fp32 masters and fp32 moments.
    "single": (2, 4, 8),
    "ddp": (2, 4, 8),
    "zero1": (2, 1, 2),
    "zero2": (2, 1, 2),
    "zero3": (0.5, 1, 2),
    # Shards are in fp32, and their own masters.
    "fsdp2": (1, 0, 2),
}


@pytest.mark.parametrize("strategy", EXPECTED)
def test_a_rank_keeps_what_its_strategy_leaves_to_it(strategy: str) -> None:
    placement = Placement(strategy, 4, 1, 2, "cpu")
    found = state_terms(LLAMA, LLAMA.parameters, placement)
    assert tuple(found[name] / LLAMA.parameters for name in ("weights", "masters", "moments")) == EXPECTED[strategy]
    assert placement.share_of_gradients == (0.25 if strategy in ("fsdp2", "zero2", "zero3") else 1.0)
