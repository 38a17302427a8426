"""What servers are told by a recipe."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from posttrain.build.engines import make_sampler
from posttrain.recipe import load
from posttrain.world import ALONE
from tests.data import LLAMA, tiny_tokenizer
from tests.runs import ROOT


@pytest.mark.parametrize(("lag", "kept"), [(0, False), (1, True)])
def test_servers_that_draw_ahead_keep_weights_and_all_stop_where_the_template_ends_a_turn(
    monkeypatch: pytest.MonkeyPatch, lag: int, kept: bool
) -> None:
    monkeypatch.setattr("posttrain.rollout.server.sampler.ServerSampler", lambda *given: given)
    over = ["hardware.dtype=float32", "hardware.sampler.placement=servers", f"rollout.max_lag={lag}"]
    recipe = load(ROOT / "recipes" / "grpo-arithmetic.yaml", over)
    checkpoint: Any = SimpleNamespace(
        folder=ROOT, tokenizer=tiny_tokenizer(LLAMA, eos="<|end|>", bos="<|bos|>"), device="cpu", world=ALONE
    )
    made: Any = make_sampler(recipe, checkpoint, 64)
    assert made[-1].keep == kept
    # Fine-tuning teaches the token at the end of the template's turns, whatever the model's own defaults are.
    assert made[2].stops == (4, 5)
