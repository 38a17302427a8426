"""Heads go whole to a rank: which numbers of ranks can have them."""

from __future__ import annotations

from typing import Any

import pytest

from posttrain.build.layouts import heads_mistakes

SMOL = {"num_attention_heads": 9, "num_key_value_heads": 3}


@pytest.mark.parametrize(
    ("config", "able"),
    [
        (SMOL, {1, 3, 9}),
        ({"num_attention_heads": 8, "num_key_value_heads": 2}, {1, 2, 4, 8}),
        ({"num_attention_heads": 6}, {1, 2, 3, 6}),
        ({"text_config": {"num_attention_heads": 4, "num_key_value_heads": 1}}, {1, 2, 4}),
    ],
)
def test_heads_are_dealt_out_whole_and_shared_ones_are_copied(config: dict[str, Any], able: set[int]) -> None:
    assert {n for n in range(1, 13) if not heads_mistakes(config, n)} == able


def test_nine_heads_over_two_ranks_are_refused_with_what_would_do() -> None:
    (said,) = heads_mistakes(SMOL, 2)
    assert "tensor_parallel: 2" in said
    assert "9 attention heads and 3" in said
    assert "1, 3, 9" in said


def test_a_model_without_such_heads_is_left_to_its_engine() -> None:
    assert heads_mistakes({}, 7) == []
