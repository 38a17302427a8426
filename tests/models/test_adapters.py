"""An adapter read out of a policy: its tensors, its base, and what is more than scale x B A."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from posttrain.errors import ModelError
from posttrain.models.adapters import Adapter, Noisy, expected_adapter
from posttrain.models.checkpoint import merged_weights
from posttrain.recipe import Lora
from tests.tiny import tiny_folder, tiny_learner


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


def adapted(folder: Path, **settings: Any) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder)
    return get_peft_model(model, LoraConfig(**{"r": 4, "target_modules": ["q_proj", "down_proj"], **settings}))


def test_its_tensors_are_those_that_peft_saves(folder: Path, tmp_path: Path) -> None:
    model = adapted(folder)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    model.save_pretrained(tmp_path)
    theirs = load_file(tmp_path / "adapter_model.safetensors")
    found = dict(Adapter(model).tensors())
    assert {f"base_model.model.{name}" for name in found} == set(theirs)
    assert all(torch.equal(tensor, theirs[f"base_model.model.{name}"]) for name, tensor in found.items())


def test_its_base_is_the_checkpoint(folder: Path) -> None:
    model = adapted(folder)
    for name, parameter in model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(parameter)
    plain = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    found = dict(Adapter(model).base())
    assert found.keys() == plain.keys()
    assert all(torch.equal(tensor, plain[name]) for name, tensor in found.items())


@pytest.mark.parametrize("lora", [Lora(rank=3, alpha=12.0), Lora(targets=("v_proj", "o_proj"))], ids=["all", "two"])
def test_what_an_engine_expects_is_what_a_learner_gives(folder: Path, lora: Lora) -> None:
    expected, given = expected_adapter(folder, lora), tiny_learner(folder, lora=lora).adapter()
    assert expected == given.form
    assert expected.scale == lora.alpha / lora.rank
    assert {name: tuple(tensor.shape) for name, tensor in given.tensors()} == expected.shapes
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert set(expected.targets) == set(names if lora.targets == "all-linear" else lora.targets)


MORE: dict[str, tuple[dict[str, Any], str]] = {
    "dora": ({"use_dora": True}, "its variant is .*Dora"),
    "a bias": ({"lora_bias": True}, "it has a bias"),
    "a module trained whole": ({"modules_to_save": ["lm_head"]}, "trains lm_head.* whole"),
    "an embedding": ({"target_modules": ["embed_tokens"]}, "Embedding, no linear projection"),
    "ranks that differ": ({"rank_pattern": {"q_proj": 2}}, "2 ranks and scales"),
    "scales that differ": ({"alpha_pattern": {"q_proj": 2}}, "2 ranks and scales"),
}


@pytest.mark.parametrize("name", MORE)
def test_what_is_more_than_a_scaled_product_is_refused(folder: Path, name: str) -> None:
    settings, words = MORE[name]
    with pytest.raises(ModelError, match=words):
        Adapter(adapted(folder, **settings))


def test_two_adapters_at_one_time_are_refused(folder: Path) -> None:
    model = adapted(folder)
    model.add_adapter("second", LoraConfig(r=4, target_modules=["q_proj"]))
    model.base_model.set_adapter(["default", "second"])
    with pytest.raises(ModelError, match="2 adapters at one time"):
        Adapter(model)


def test_rank_stabilised_scales_are_carried(folder: Path) -> None:
    assert Adapter(adapted(folder, use_rslora=True, lora_alpha=8)).form.scale == pytest.approx(8 / 4**0.5)


def test_noise_merged_is_the_noise_that_is_given_apart(folder: Path) -> None:
    model = adapted(folder, lora_alpha=12)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    noisy = Noisy(Adapter(model))
    merged = dict(noisy.merged())
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    own = dict(model.named_parameters())
    for name, tensor in noisy.tensors():
        own[f"base_model.model.{name.removesuffix('.weight')}.default.weight"].data.copy_(tensor)
    for name, tensor in merged_weights(model):
        assert torch.allclose(merged[name], tensor, atol=1e-6), name
        plain = before.get(f"base_model.model.{name.removesuffix('.weight')}.base_layer.weight")
        if plain is not None and ("q_proj" in name or "down_proj" in name):
            ratio = (merged[name] - plain).square().mean().sqrt() / plain.square().mean().sqrt()
            assert float(ratio) == pytest.approx(0.1, rel=1e-3)
