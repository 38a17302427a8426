"""Tensors and arithmetic of a model that was never built are those of transformers' own."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from posttrain.errors import ModelError
from posttrain.planner.header import read_header
from posttrain.planner.shape import Shape
from posttrain.planner.source import config_at

SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "tie_word_embeddings": False,
}
ROUTED: dict[str, Any] = {"moe_intermediate_size": 32, "num_experts": 6, "num_experts_per_tok": 2}
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"tie_word_embeddings": True},
    "qwen2": {"head_dim": None},
    "qwen3": {},
    "gemma2": {"tie_word_embeddings": True},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {"head_dim": None, **ROUTED, "shared_expert_intermediate_size": 64},
    "qwen3_moe": ROUTED,
}


@pytest.mark.parametrize("family", MODELS)
def test_tensors_are_those_of_the_model(family: str) -> None:
    settings = {k: v for k, v in {**SIZES, **MODELS[family]}.items() if v is not None}
    config = AutoConfig.for_model(family, **settings)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    shape = Shape.of(config.to_dict())
    found = dict(shape.tensors())
    assert found == {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shape.parameters == sum(prod(size) for size in found.values())
    assert shape.largest == max(prod(size) for size in found.values())


def test_arithmetic_of_a_token_is_counted_by_torch() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    config = AutoConfig.for_model("llama", **SIZES)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    shape, length = Shape.of(config.to_dict()), 32
    with FlopCounterMode(display=False) as counter:
        out = model(input_ids=torch.zeros(1, length, dtype=torch.long), use_cache=False).logits
    # Eager attention multiplies every query with every key.
    assert counter.get_total_flops() == length * shape.flops(length)
    with FlopCounterMode(display=False) as counter:
        out.sum().backward()
    assert counter.get_total_flops() == 2 * length * shape.flops(length)


def test_adapters_have_the_size_that_peft_gives_them() -> None:
    from posttrain.models.checkpoint import with_adapters
    from posttrain.recipe import Lora

    config = AutoConfig.for_model("llama", **SIZES)
    shape = Shape.of(config.to_dict())
    for targets in ("all-linear", ("q_proj", "down_proj")):
        model = with_adapters(AutoModelForCausalLM.from_config(config), Lora(rank=4, targets=targets))
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert shape.adapter_parameters(4, targets) == trained


def test_a_gguf_header_says_what_the_gguf_package_reads(tmp_path: Path) -> None:
    import numpy as np
    from gguf import GGUFReader, GGUFWriter

    file = tmp_path / "tiny.gguf"
    writer = GGUFWriter(file, "llama")
    writer.add_context_length(256)
    writer.add_embedding_length(48)
    writer.add_block_count(1)
    writer.add_feed_forward_length(80)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_token_list([f"token {i} ü" for i in range(96)])
    writer.add_token_scores([0.5] * 96)
    writer.add_tensor("token_embd.weight", np.zeros((96, 48), np.float32))
    writer.add_tensor("blk.0.attn_q.weight", np.zeros((48, 48), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header, reader = read_header(file), GGUFReader(file)
    assert header.shapes == {t.name: tuple(int(n) for n in t.shape) for t in reader.tensors}
    assert header.values["llama.block_count"] == reader.get_field("llama.block_count").contents()
    shape = Shape.of(config_at(str(file)))
    assert (shape.vocabulary, shape.hidden, shape.heads, shape.kv_heads, shape.tied) == (96, 48, 4, 2, True)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ModelError, match=r"no complete GGUF file"):
        config_at(str(file))


def test_a_config_without_sizes_is_refused_by_their_names() -> None:
    with pytest.raises(ModelError, match="num_attention_heads, vocab_size"):
        Shape.of({"model_type": "mamba", "hidden_size": 64, "num_hidden_layers": 2})


def test_a_model_that_is_not_here_is_named_with_the_ways_to_bring_it() -> None:
    with pytest.raises(ModelError, match=r"nobody/nothing.*--shape FILE"):
        config_at("nobody/nothing")
