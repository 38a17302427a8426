"""Runs in a process of its own: builds vLLM's models as one rank of a tensor parallelism would, lets vLLM's own loaders
fill them from numbered tensors, and says for each parameter whether the plan, executed, gives the same.

No other rank exists: a parameter's shape and its loader only ask for the rank's number and the ranks' count.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_LOGGING_LEVEL="ERROR", VLLM_CPU_OMP_THREADS_BIND="nobind")

import numpy as np
import torch
import transformers
from vllm.config import LoadConfig, ModelConfig, ParallelConfig, VllmConfig, set_current_vllm_config
from vllm.distributed import parallel_state
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.utils.torch_utils import set_default_torch_dtype

from posttrain.hybrid.plan import Architecture, Generation, Tensor, Training, make_plan
from tests.hybrid.made_plans import Arrays, execute

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "vocab_size": 100,
    "pad_token_id": 0,
    "max_position_embeddings": 64,
}
MOE = {"moe_intermediate_size": 24, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
SETTINGS: dict[str, dict[str, Any]] = {
    "qwen2_moe": {**MOE, "shared_expert_intermediate_size": 40, "decoder_sparse_step": 1},
    "qwen3_moe": {**MOE, "decoder_sparse_step": 1, "mlp_only_layers": [0]},
    "mixtral": MOE,
    "phi3": {"original_max_position_embeddings": 64, "eos_token_id": 1},
}


@dataclass
class Alone:
    """What layers ask of the group of tensor-parallel ranks while they are built and loaded."""

    rank_in_group: int
    world_size: int

    def destroy(self) -> None:
        """Nothing is held."""


def trainer(family: str, tied: bool) -> tuple[Any, dict[str, torch.Tensor]]:
    """A tiny model's config, and its parameters in memory, each element with a number of its own (exact in float32)."""
    values = {**SIZES, **SETTINGS.get(family, {}), "tie_word_embeddings": tied}
    if family == "phi3":
        del values["head_dim"]
    config = transformers.AutoConfig.for_model(family, **values)
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    config.architectures = [type(model).__name__]
    first, found = 1, {}
    for name, parameter in model.named_parameters():
        numbers = torch.arange(first, first + parameter.numel(), dtype=torch.float32)
        found[name] = numbers.reshape(parameter.shape)
        first += parameter.numel()
    assert first < 2**24
    return config, found


def checkpoint(config: Any, held: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors under the names that a saved checkpoint has."""
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    model.load_state_dict(held, strict=False, assign=True)
    model.tie_weights()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        from safetensors.torch import load_file

        return {k: v for file in sorted(Path(folder).glob("*.safetensors")) for k, v in load_file(file).items()}


def engine(config: Any, folder: str, degree: int, t: int, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """vLLM's parameters on rank t of `degree`, filled by its own loaders; a tied head under both its names."""
    config.save_pretrained(folder)
    settings = VllmConfig(
        model_config=ModelConfig(model=folder, skip_tokenizer_init=True, dtype="float32", max_model_len=32),
        parallel_config=ParallelConfig(),
        load_config=LoadConfig(),
    )
    kept, parallel_state._TP = parallel_state._TP, Alone(t, degree)
    try:
        with set_current_vllm_config(settings), set_default_torch_dtype(torch.float32):
            model = initialize_model(settings)
            for parameter in model.parameters():
                parameter.data.zero_()
            model.load_weights(iter(weights.items()))
        # A router's gate has a second name inside its experts; that of a head is asked for.
        found = dict(model.named_parameters())
        head = getattr(model, "lm_head", None)
        return found | ({} if head is None else {"lm_head.weight": head.weight})
    finally:
        parallel_state._TP = kept


def differences(family: str, tied: bool, degree: int) -> list[str]:
    config, held = trainer(family, tied)
    architecture = Architecture.of(config.to_dict())
    saved = checkpoint(config, held)
    found = []
    for t in sorted({0, degree // 2, degree - 1}):
        with tempfile.TemporaryDirectory() as folder:
            wanted = engine(config, folder, degree, t, saved)
        for what, weights in (("in memory", held), ("checkpoint", saved)):
            tensors = [Tensor(name, tuple(w.shape), 4) for name, w in weights.items()]
            plan = make_plan(tensors, architecture, Training(2, "rows"), Generation(degree, 1, False))
            arrays = {name: w.numpy().astype(np.int64) for name, w in weights.items()}
            mine = execute(plan, arrays)[0][t]
            mine |= {alias: mine[name] for alias, name in plan.aliases.items() if alias in wanted}
            found += [f"{what}, rank {t}: {text}" for text in _unlike(mine, wanted)]
        gc.collect()
    return found


def _unlike(mine: Arrays, wanted: dict[str, torch.Tensor]) -> Iterator[str]:
    for name in sorted(mine.keys() | wanted.keys()):
        if name not in mine or name not in wanted:
            yield f"{name} is only in {'the plan' if name in mine else 'the engine'}"
        elif mine[name].shape != wanted[name].shape:
            yield f"{name} is {mine[name].shape}, the engine has {tuple(wanted[name].shape)}"
        elif not np.array_equal(mine[name], wanted[name].detach().numpy()):
            yield f"{name} differs in {int((mine[name] != wanted[name].detach().numpy()).sum())} elements"


def main(cases: list[list[Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder, set_current_vllm_config(VllmConfig()):
        parallel_state.init_distributed_environment(1, 0, f"file://{folder}/store", 0, "gloo")
        parallel_state.initialize_model_parallel(1, 1)
        print("RESULT " + json.dumps([differences(*case) for case in cases]))
        parallel_state.destroy_model_parallel()
        parallel_state.destroy_distributed_environment()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
