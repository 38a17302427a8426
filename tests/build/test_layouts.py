"""Heads go whole to a rank: which numbers of ranks can have them."""

from __future__ import annotations

from typing import Any

import pytest

from posttrain.build.layouts import heads_mistakes, layout_mistakes
from posttrain.build.run import refuse_other_world
from posttrain.errors import RecipeError
from posttrain.recipe import Recipe, load
from posttrain.world import ALONE
from tests.runs import ROOT

SMOL = {"num_attention_heads": 9, "num_key_value_heads": 3}


@pytest.mark.parametrize(
    ("config", "able"),
    [
        (SMOL, {1, 3, 9}),
        ({"num_attention_heads": 8, "num_key_value_heads": 2}, {1, 2, 4, 8}),
        ({"num_attention_heads": 6}, {1, 2, 3, 6}),
        (SMOL | {"intermediate_size": 1536}, {1, 3}),
        ({"num_attention_heads": 8, "intermediate_size": 96, "moe_intermediate_size": 36}, {1, 2, 4}),
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


def laid(learner: str, sampler: str) -> Recipe:
    over = [f"hardware.learner={learner}", f"hardware.sampler={sampler}"]
    return load(ROOT / "recipes" / "grpo-arithmetic.yaml", over)


def test_an_engine_over_ranks_that_are_not_there_is_refused_before_anything_starts() -> None:
    recipe = laid("{strategy: fsdp2}", "{tensor_parallel: 3}")
    (said,) = layout_mistakes(recipe, None)
    assert "use processes: 3" in said
    with pytest.raises(RecipeError, match="does not divide the 1 processes"):
        refuse_other_world(recipe, ALONE)


def test_a_servers_ranks_are_its_own() -> None:
    recipe = laid("{strategy: ddp, processes: 2}", "{placement: servers, tensor_parallel: 3}")
    assert layout_mistakes(recipe, None) == []
    refuse_other_world(recipe, ALONE)


def test_ranks_that_wait_for_a_server_wait_longer_than_it_may_take() -> None:
    servers = "{placement: servers, servers: {answer_timeout: 1800}}"
    with pytest.raises(RecipeError, match=r"answer_timeout: 1800, but .* hardware.patience: 1800"):
        laid("{strategy: ddp, processes: 2}", servers)
    assert laid("{}", servers).hardware.sampler.servers.answer_timeout == 1800
