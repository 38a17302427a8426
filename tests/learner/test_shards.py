"""What a learner says of its tensors to whoever sends them on without bringing them together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from posttrain.errors import ModelError, PosttrainError
from posttrain.hybrid.publishing import choose
from posttrain.recipe import Lora
from posttrain.rollout.local import LocalSampler
from posttrain.world import ALONE
from tests.tiny import randomise, tiny_folder, tiny_learner


@pytest.mark.parametrize("tied", [True, False])
def test_shards_of_a_whole_model_are_the_weights_that_are_published(tmp_path: Path, tied: bool) -> None:
    learner = tiny_learner(tiny_folder(tmp_path, tied=tied))
    shards = learner.shards()
    assert shards.layout == "whole"
    assert shards.ties == ({"lm_head.weight": "model.embed_tokens.weight"} if tied else {})
    # As they are when they are asked for, not when the shards were.
    randomise(learner.model, 3)
    published = dict(learner.weights())
    assert set(published) == {*shards.shapes, *shards.ties}
    for name, shape in shards.shapes.items():
        assert tuple(published[name].shape) == shape
        assert torch.equal(shards.local(name), published[name].reshape(-1))


def test_adapters_are_no_shards_of_what_is_published(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.lora"):
        tiny_learner(tiny_folder(tmp_path), lora=Lora(rank=2)).shards()


def test_the_way_of_weights_is_chosen_aloud(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path)
    learner = tiny_learner(folder)
    sampler = LocalSampler(tiny_learner(folder).model, learner.tokenizer, [1])
    found = choose("auto", learner, sampler, ALONE)
    assert found.words == "weights: gathered on every rank (the engine takes whole tensors by their names)"
    assert choose("gathered", learner, sampler, ALONE).words == "weights: gathered on every rank"
    with pytest.raises(PosttrainError, match=r"hardware\.sampler\.sync: planned, but the engine takes whole tensors"):
        choose("planned", learner, sampler, ALONE)
    randomise(learner.model, 1)
    learner.version = 4
    found.publish(learner, sampler)
    assert sampler.version == 4
    assert torch.equal(sampler.model.lm_head.weight, learner.model.lm_head.weight)
