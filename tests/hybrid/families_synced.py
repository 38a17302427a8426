"""Tiny random models of families, each in a real engine of this process: prints JSON, a line for each.

`tests.hybrid.families_synced FAMILY...`
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from posttrain.errors import PosttrainError
from posttrain.hybrid.publishing import Gathered, Planned
from posttrain.models.checkpoint import load_tokenizer
from posttrain.recipe import Hardware
from posttrain.recipe import Sampler as Settings
from posttrain.rollout import Request
from posttrain.rollout.vllm import EngineOptions, VllmSampler
from posttrain.types import Sampling
from posttrain.world import ALONE
from tests.data import tiny_tokenizer
from tests.tiny import VOCABULARY, prompt, randomise, tiny_learner

SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
    "initializer_range": 0.1,
}
MOE = {"moe_intermediate_size": 32, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
OWN: dict[str, dict[str, Any]] = {
    "phi3": {"original_max_position_embeddings": 512, "tie_word_embeddings": False},
    "gemma2": {"query_pre_attn_scalar": 32, "sliding_window": 256},
    "gemma3_text": {"query_pre_attn_scalar": 32, "sliding_window": 256},
    "mistral": {"sliding_window": None},
    "mixtral": MOE,
    "qwen2_moe": {**MOE, "shared_expert_intermediate_size": 64},
    "qwen3_moe": MOE,
}
ASKED = [0, 7, 12, 30, 31, 32, 33, 34, 40, 41]


def folder_of(family: str, folder: Path) -> Path:
    config = AutoConfig.for_model(family, **{**SIZES, **OWN.get(family, {})})
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@torch.no_grad()
def gap(model: Any, sampler: VllmSampler) -> float:
    """The largest difference between the engine's log-probabilities and a plain forward pass."""
    worst = 0.0
    requests = [Request(prompt(ASKED), seed) for seed in range(2)]
    for r in sampler.generate(requests, Sampling(temperature=1.0, max_tokens=8)):
        assert r.logprobs is not None
        table = model(torch.tensor([r.tokens])).logits[0].float().log_softmax(-1)
        found = [abs(float(table[t - 1, r.tokens[t]]) - r.logprobs[t]) for t in range(len(ASKED), len(r.tokens))]
        worst = max(worst, *found)
    return worst


def synced(family: str, folder: Path) -> dict[str, Any]:
    folder_of(family, folder)
    hardware = Hardware(device="cpu", dtype="float32", sampler=Settings(memory=0.05, max_sequences=8))
    sampler = VllmSampler(folder, load_tokenizer(folder), EngineOptions("cpu", "float32", 256, hardware))
    learner = tiny_learner(folder)
    # Others leave Gemma 2's cap on attention scores out.
    learner.model.set_attn_implementation("eager")
    gaps = []
    try:
        planned = Planned(learner, sampler, ALONE)
        for seed in range(3):
            randomise(learner.model, seed, 0.02)
            learner.version += 1
            planned.publish(learner, sampler)
            gaps.append(gap(learner.model, sampler))
    except PosttrainError as error:
        return {"family": family, "refused": str(error)}
    randomise(learner.model, 9, 0.02)
    learner.version += 1
    try:
        Gathered().publish(learner, sampler)
        gathered = gap(learner.model, sampler)
    except (PosttrainError, ValueError) as error:
        # Names in memory need not be those of the checkpoint, which are all that the engine's own loader knows.
        return {"family": family, "gaps": gaps, "gathered is refused": str(error)}
    return {"family": family, "gaps": gaps, "gathered": gathered}


if __name__ == "__main__":
    for name in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as place:
            print(json.dumps(synced(name, Path(place))), flush=True)
