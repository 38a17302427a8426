"""What a learning step takes of memory, against what `posttrain plan` says, in fp32 on a CPU.

python benchmarks/memory.py            every case below, each in a process of its own
python benchmarks/memory.py CASE CASE  some of them

Measured is the largest resident memory of a step beyond that before there was a model. glibc gives every freed block of
64 kB or more back at once here, so what is resident is what is allocated. Of logits: what those of all learnt tokens of
a micro-batch would take in fp32, once, and without their gradient.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))


@dataclass(frozen=True)
class Case:
    """A random Llama and how it learns. Groups of four responses share a prompt."""

    hidden: int = 320
    layers: int = 6
    heads: int = 5
    kv_heads: int = 1
    width: int = 864
    vocabulary: int = 8192
    tied: bool = True
    lora: bool = False
    checkpointing: bool = False
    chunk: int = 512
    layout: str = "rows"
    attention: str = "trees"
    budget: int = 1024
    groups: int = 2
    prompt: int = 64
    response: int = 192


BASE = Case()
WIDE = replace(BASE, vocabulary=49152)
LONG = replace(BASE, vocabulary=151936, layout="tree", budget=8192, response=992, lora=True)
CASES = {
    "full": BASE,
    "full, tree": replace(BASE, layout="tree"),
    "full, masked": replace(BASE, attention="masked"),
    "full, tree, masked": replace(BASE, layout="tree", attention="masked"),
    "full, untied": replace(BASE, tied=False),
    "full, every head its own keys": replace(BASE, kv_heads=5),
    "full, checkpointing": replace(BASE, checkpointing=True),
    "full, one micro-batch": replace(BASE, budget=4096),
    "full, long": replace(BASE, budget=2048, response=448),
    "full, long, tree": replace(BASE, budget=2048, response=448, layout="tree"),
    "lora": replace(BASE, lora=True),
    "lora, checkpointing": replace(BASE, lora=True, checkpointing=True),
    "lora, tree": replace(BASE, lora=True, layout="tree"),
    "49k": WIDE,
    "49k, chunk 64": replace(WIDE, chunk=64),
    "49k, chunk 2048": replace(WIDE, chunk=2048, budget=2048),
    "49k, checkpointing, tree": replace(WIDE, checkpointing=True, layout="tree"),
    "49k, lora": replace(WIDE, lora=True),
    "49k, lora, chunk 64": replace(WIDE, lora=True, chunk=64),
    "152k, 8k tokens": replace(LONG, lora=False),
    "152k, 8k tokens, lora": LONG,
}


def measured(case: Case) -> dict[str, float]:
    """Bytes at the peak of the second step, beyond what there was before the model. Runs in a process of its own."""
    import torch

    torch.set_num_threads(1)
    # A small one of the same kind first loads all the code and opens every library's buffers.
    step(replace(case, hidden=64 * case.heads, layers=1, width=64, vocabulary=64, response=16, prompt=16, groups=1))
    before = resident("VmRSS")
    micro_batches = step(case)
    return {"bytes": resident("VmHWM") - before, "micro_batches": micro_batches}


def step(case: Case) -> int:
    """Two optimiser steps, the largest memory of the second noted by the system; how many micro-batches each took."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from posttrain.algorithms.choice import choose
    from posttrain.algorithms.state import RowState, Terms
    from posttrain.data.packing import pack
    from posttrain.learner.backbone import take_trees
    from posttrain.learner.computation import Computation
    from posttrain.learner.policy import PolicyLearner
    from posttrain.models.checkpoint import with_adapters
    from posttrain.recipe import Lora, Optimizer

    config = LlamaConfig(
        vocab_size=case.vocabulary,
        hidden_size=case.hidden,
        head_dim=case.hidden // case.heads,
        intermediate_size=case.width,
        num_hidden_layers=case.layers,
        num_attention_heads=case.heads,
        num_key_value_heads=case.kv_heads,
        tie_word_embeddings=case.tied,
    )
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM._from_config(config, attn_implementation="sdpa").train()
    if case.checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    if case.lora:
        model = with_adapters(model, Lora(), case.checkpointing)
    flat = case.attention == "trees" and take_trees(model)
    settings = Computation(case.layout, case.budget, case.chunk, 1.0, flat=flat)  # type: ignore[arg-type]
    learner = PolicyLearner(model, None, Optimizer(), settings, 10)  # type: ignore[arg-type]
    algorithm = choose("grpo", {})
    coefficients = RowState.of(algorithm).coefficients(Terms(max_tokens=case.response))
    batches = list(pack(samples(case), learner.packing))
    for _ in range(2):
        Path("/proc/self/clear_refs").write_text("5")
        learner.accumulate(batches, algorithm, coefficients)
        learner.step()
    return len(batches)


def samples(case: Case) -> list[Any]:
    import torch

    from posttrain.types import Rollout, Sample

    generator = torch.Generator().manual_seed(0)
    found = []
    for group in range(case.groups):
        asked = torch.randint(case.vocabulary, (case.prompt,), generator=generator).tolist()
        for _ in range(4):
            said = torch.randint(case.vocabulary, (case.response,), generator=generator).tolist()
            mask = (False,) * case.prompt + (True,) * case.response
            logprobs = tuple(-9.0 * m for m in mask)
            rollout = Rollout((*asked, *said), mask, "", "length", logprobs, tuple(m - 1 for m in mask))
            learnt = torch.tensor(mask)
            found.append(Sample(rollout, group, learnt, 0.5 * learnt))
    return found


def resident(name: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return 1024 * int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {name}")


def planned(case: Case) -> dict[str, float]:
    """The same by arithmetic."""
    from posttrain.planner.memory import Placement, learning_terms
    from posttrain.planner.shape import Shape
    from posttrain.planner.work import laid_out
    from posttrain.recipe import Lora, parse

    tree = {
        "model": {"path": "a/b", "lora": Lora().model_dump() if case.lora else None},
        "data": {},
        "run": {"folder": "runs/none"},
        "rollout": {"group_size": 4, "max_tokens": case.response},
        "optimizer": {"prompts_per_step": case.groups},
        "hardware": {
            "dtype": "float32",
            "learner": {
                "layout": case.layout,
                "attention": case.attention,
                "micro_batch_tokens": case.budget,
                "logit_chunk": case.chunk,
                "gradient_checkpointing": case.checkpointing,
            },
        },
    }
    shape = Shape(
        "llama",
        case.hidden,
        case.layers,
        case.heads,
        case.kv_heads,
        case.hidden // case.heads,
        case.width,
        case.vocabulary,
        case.tied,
    )
    recipe = parse(tree, "benchmark")
    work = laid_out(recipe, case.prompt, case.response)
    return learning_terms(recipe, shape, work, Placement.of(recipe, "cpu"))


def alone(name: str) -> dict[str, float]:
    """`measured` in a new process, whose memory nothing else has touched."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    environment |= {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    said = subprocess.run([sys.executable, __file__, name], env=environment, stdout=subprocess.PIPE, text=True)
    if said.returncode:
        raise SystemExit(f"{name}: ended with code {said.returncode}")
    found: dict[str, float] = json.loads(said.stdout.splitlines()[-1])
    return found


def main(names: list[str]) -> None:
    if len(names) == 1 and names[0] not in CASES:
        print(json.dumps(measured(Case(**json.loads(names[0])))))
        return
    print(f"{'case':<32}{'measured':>12}{'planned':>12}{'ratio':>8}{'of logits':>11}  planned terms (MB)")
    for name in names or CASES:
        case = CASES[name]
        found, terms = alone(json.dumps(asdict(case))), planned(case)
        total = sum(terms.values())
        words = ", ".join(f"{key} {size / 1e6:.0f}" for key, size in terms.items() if size)
        logits = case.groups * 4 * case.response / found["micro_batches"] * case.vocabulary * 4
        figures = f"{found['bytes'] / 1e6:>9.1f} MB{total / 1e6:>9.1f} MB{total / found['bytes']:>8.3f}"
        print(f"{name:<32}{figures}{found['bytes'] / logits:>11.2f}  {words}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
