"""Weights of a trainer on two ranks in real engines of the same processes; runs as several ranks, prints JSON.

One engine a process: `tests.hybrid.transfer_on_ranks MODEL SHARDING TENSOR_PARALLEL`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from posttrain.errors import SyncError
from posttrain.hybrid.publishing import Gathered, Planned
from posttrain.learner.computation import Computation
from posttrain.learner.policy import PolicyLearner
from posttrain.learner.sharding import Rows, Whole
from posttrain.models.checkpoint import load_policy, load_tokenizer
from posttrain.ranks import connected
from posttrain.recipe import Hardware, Model, Optimizer
from posttrain.recipe import Sampler as Settings
from posttrain.rollout import Request
from posttrain.rollout.shared import SharedSampler
from posttrain.rollout.vllm import EngineOptions, VllmSampler
from posttrain.types import Rollout, Sampling
from posttrain.world import World
from tests.tiny import VOCABULARY, prompt, tiny_folder

ASKED = [0, 7, 12, 30, 31, 32, 33, 34, 40, 41]
CAP = 20_000
"""Bytes of a round: these models take several."""


def folder_of(model: str, folder: Path) -> Path:
    if model == "moe":
        # The tokenizer is the same.
        tiny_folder(folder)
        torch.manual_seed(0)
        config = Qwen3MoeConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            intermediate_size=96,
            moe_intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            num_experts=4,
            num_experts_per_tok=2,
            bos_token_id=0,
            eos_token_id=1,
            pad_token_id=1,
            initializer_range=0.2,
            tie_word_embeddings=False,
        )
        Qwen3MoeForCausalLM(config).save_pretrained(folder)
        return folder
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    return tiny_folder(folder, tied=model == "tied", **heads, initializer_range=0.2)


class Both:
    """A learner and a sampler on the same ranks, and a plain model that is given what the learner should have."""

    def __init__(self, folder: Path, world: World, sharding: str, span: int) -> None:
        hardware = Hardware(
            device="cpu", dtype="float32", sampler=Settings(memory=0.05, max_sequences=32, tensor_parallel=span)
        )
        options = EngineOptions("cpu", "float32", 256, hardware, ranks=world.size)
        self.world, tokenizer = world, load_tokenizer(folder)
        self.sampler = SharedSampler(VllmSampler(folder, tokenizer, options), world, span)
        laid = Rows(world, torch.float32, "cpu") if sharding == "fsdp2" else Whole(world)
        policy = load_policy(folder, Model(path=str(folder)), torch.float32, "cpu")
        self.plain: Any = load_policy(folder, Model(path=str(folder)), torch.float32, "cpu")
        self.learner = PolicyLearner(policy, tokenizer, Optimizer(), Computation("tree", 512, 16, 1.0, laid), 10)
        self.planned = Planned(self.learner, self.sampler, world, CAP)

    def change(self, seed: int, only: str | None = None, scale: float = 0.05) -> None:
        """Move weights of the plain model by noise, and give the learner its rank's part of them."""
        generator = torch.Generator().manual_seed(seed)
        own = dict(self.learner.model.named_parameters())
        with torch.no_grad():
            for name, parameter in self.plain.named_parameters():
                if only in (None, name):
                    parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
                held = own[name]
                if isinstance(held, DTensor):
                    rows = parameter.chunk(self.world.size)
                    if self.world.rank < len(rows):
                        held.to_local().copy_(rows[self.world.rank])
                else:
                    held.copy_(parameter)
        self.learner.version += 1

    def draw(self, new: int = 8) -> list[Rollout]:
        requests = [Request(prompt(ASKED), seed) for seed in range(2)]
        return self.sampler.generate(requests, Sampling(temperature=1.0, max_tokens=new))

    @torch.no_grad()
    def gap(self) -> float:
        worst = 0.0
        for r in self.draw():
            assert r.logprobs is not None
            table = self.plain(torch.tensor([r.tokens])).logits[0].log_softmax(-1)
            found = [abs(float(table[t - 1, r.tokens[t]]) - r.logprobs[t]) for t in range(len(ASKED), len(r.tokens))]
            worst = max(worst, *found)
        return worst


def measured(both: Both) -> dict[str, Any]:
    out: dict[str, Any] = {"words": both.planned.words, "rounds": len(both.planned.transfer.parts)}
    out["refused at first"] = refused(both)
    out["gaps"], out["reports"] = [], []
    for seed in range(3):
        both.change(seed)
        out["reports"].append(both.planned.publish(both.learner, both.sampler).values())
        out["gaps"].append(both.gap())
    both.change(7)
    Gathered().publish(both.learner, both.sampler)
    out["gap after a gathered sync"] = both.gap()
    out["broken"] = broken(both)
    both.planned.publish(both.learner, both.sampler)
    out["gap after a broken sync"] = both.gap()
    out["unnoticed"], out["perturbed"], out["largest gap"] = [], 0, 0.0
    for number, (name, _) in enumerate(both.plain.named_parameters()):
        before = both.draw(4)
        both.change(100 + number, only=name, scale=0.3)
        both.planned.publish(both.learner, both.sampler)
        out["perturbed"] += 1
        if [r.logprobs for r in before] == [r.logprobs for r in both.draw(4)]:
            out["unnoticed"].append(name)
        out["largest gap"] = max(out["largest gap"], both.gap())
    return {key: value if key in ("words", "rounds") else both.world.gather(value) for key, value in out.items()}


def refused(both: Both) -> bool:
    try:
        both.draw(1)
    except SyncError:
        return True
    return False


def broken(both: Both) -> dict[str, Any]:
    """A sync in which one message is withheld, or one copy where nothing is sent."""
    parts = both.planned.transfer.parts
    both.change(8)
    number = next((i for i, part in enumerate(parts) if part.receives or part.sends), 0)
    kept = parts[number]
    pairs = [(m.source, m.destination) for m in (*kept.sends, *kept.receives)]
    pair = min(both.world.gather(pairs)[0], default=None)
    parts[number] = replace(
        kept,
        copies=kept.copies if pair is not None else kept.copies[1:],
        sends=[m for m in kept.sends if (m.source, m.destination) != pair],
        receives=[m for m in kept.receives if (m.source, m.destination) != pair],
    )
    said = ""
    try:
        both.planned.publish(both.learner, both.sampler)
    except SyncError as error:
        said = str(error)
    parts[number] = kept
    return {"said": said, "refused": refused(both), "version": both.sampler.version}


def main(model: str, sharding: str, span: str) -> None:
    with connected("cpu", 600.0) as world, tempfile.TemporaryDirectory() as folder:
        # transformers writes on the first rank only.
        place = world.shared(lambda: folder_of(model, Path(folder)))
        both = Both(place, world, sharding, int(span))
        found = measured(both)
        if world.rank == 0:
            print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
