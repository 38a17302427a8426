"""A checkpoint folder as a policy, and a policy's tensors under the names its checkpoint has for them."""

from __future__ import annotations

import collections
import copy
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

from posttrain.errors import ModelError
from posttrain.recipe import Lora, Model

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer


def load_policy(folder: Path, settings: Model, dtype: torch.dtype, device: str, checkpointing: bool = False) -> Any:
    """A causal language model ready to be trained, with adapters where the recipe asks for them.

    Raises ModelError when the checkpoint lacks tensors or holds ones of another shape: nothing is made up silently.
    """
    model, info = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=dtype,
        attn_implementation="sdpa",
        trust_remote_code=settings.trust_remote_code,
        output_loading_info=True,
    )
    missing = [name for name in info["missing_keys"] if name not in (getattr(model, "_tied_weights_keys", None) or ())]
    if missing or info["mismatched_keys"]:
        found = [*missing[:3], *(str(m) for m in list(info["mismatched_keys"])[:3])]
        raise ModelError(f"model.path: {str(folder)!r} does not fill the model: {', '.join(found)}")
    model = without_dropout(model).to(device)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return with_adapters(model, settings.lora, checkpointing) if settings.lora else model


def load_scorer(
    folder: Path,
    outputs: int,
    dtype: torch.dtype,
    device: str,
    trust_remote_code: bool = False,
    key: str = "critic.path",
) -> Any:
    """A sequence classifier with `outputs` scores per state: a reward model or critic with its head, or any other
    model with a head of zeros, so that it starts by saying 0 of everything. `key` is what errors call the folder.

    Raises ModelError for a head of another size, or a checkpoint that does not fill the model.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    has_head = any("SequenceClassification" in name for name in config.architectures or ())
    if has_head and config.num_labels != outputs:
        raise ModelError(
            f"{key}: {str(folder)!r} has a head of {config.num_labels} outputs, but the algorithm reads {outputs}; use "
            "another checkpoint, or set algorithm.value_bins or heads"
        )
    verbosity = logging.get_verbosity()
    # What is missing is checked below; transformers would tell everybody who starts a reward model to train it.
    logging.set_verbosity_error()
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            folder,
            dtype=dtype,
            num_labels=outputs,
            attn_implementation="sdpa",
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    finally:
        logging.set_verbosity(verbosity)
    if not isinstance(getattr(model, "score", None), nn.Linear) or model.score.bias is not None:
        raise ModelError(f"{key}: {type(model).__name__} has no plain linear head `score`")
    missing = [name for name in info["missing_keys"] if has_head or not name.startswith("score.")]
    if missing or info["mismatched_keys"]:
        raise ModelError(f"{key}: {str(folder)!r} does not fill the model: {', '.join(map(str, missing[:3]))}")
    if not has_head:
        nn.init.zeros_(model.score.weight)
    # A sequence is never read at its padding here.
    model.config.pad_token_id = model.config.pad_token_id or 0
    return without_dropout(model).to(device)


def without_dropout(model: Any) -> Any:
    """Switch every dropout off: under it, the log-probability of a token would not be a number but a draw."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "attn_dropout", "dropout", "activation_dropout", "resid_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


def with_adapters(model: Any, lora: Lora, checkpointing: bool = False, scorer: bool = False) -> Any:
    """Put low-rank adapters beside the frozen weights; a scorer's head is trained whole. Raises ModelError when none
    binds.
    """
    # Only here: most recipes have no adapter.
    from peft import LoraConfig, TaskType, get_peft_model

    targets = lora.targets if isinstance(lora.targets, str) else list(lora.targets)
    task = {"task_type": TaskType.SEQ_CLS, "modules_to_save": ["score"]} if scorer else {}
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=targets, **task)
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(f"model.lora.targets: {lora.targets!r} binds to no module: {error}") from None
    if checkpointing:
        adapted.enable_input_require_grads()
    return adapted


def load_tokenizer(folder: Path, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)


def stop_tokens(folder: Path, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """Every token id that ends a turn: the tokenizer's, and all the generation defaults list."""
    found = {tokenizer.eos_token_id}
    if (folder / "generation_config.json").is_file():
        listed = GenerationConfig.from_pretrained(folder).eos_token_id
        found.update(listed if isinstance(listed, list) else [listed])
    return tuple(sorted(t for t in found if t is not None))


def expected_weights(folder: Path, trust_remote_code: bool = False) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor that a complete policy has, tied aliases included, from its config alone."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def merged_weights(
    model: nn.Module,
    whole: Callable[[Tensor], Tensor] = lambda tensor: tensor,
    opened: Callable[[Sequence[Sequence[Tensor]]], Iterable[int]] = lambda needs: range(len(needs)),
) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of every tensor of the policy, tied aliases included; adapters are added into copies.

    The model's own tensors are never changed: an adapted layer yields W + scale * B A, computed in fp32. `whole` makes
    of a rank's part of a tensor what is yielded; `opened` says which of these lists of tensors can be read next.
    """
    deltas = {plain_name(f"{name}.weight"): module for name, module in adapted_layers(model)}
    tensors = [(plain_name(n), t) for n, t in model.state_dict(keep_vars=True).items() if ".lora_" not in n]
    needs = [[t, *(deltas[n].parameters() if n in deltas else ())] for n, t in tensors]
    for number in opened(needs):
        name, tensor = tensors[number]
        yield name, whole(_merged(tensor, deltas[name]) if name in deltas else tensor.detach())


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, LoraLayer]]:
    """Name and layer of each place that has an adapter."""
    if "peft" not in sys.modules:
        # Then nothing can be one of its layers, and its import would be for nothing.
        return
    from peft.tuners.lora import LoraLayer

    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def plain_name(name: str) -> str:
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


@torch.no_grad()
def _merged(weight: Tensor, layer: LoraLayer) -> Tensor:
    out = weight.detach().float()
    for adapter in layer.active_adapters:
        out = out + layer.get_delta_weight(adapter).float()
    return out.to(weight.dtype)


def export_policy(
    model: Any, weights: Iterator[tuple[str, Tensor]], tokenizer: PreTrainedTokenizerBase, folder: Path | None
) -> None:
    """Write a folder that AutoModelForCausalLM and vLLM load: merged weights, config, tokenizer, chat template,
    generation defaults. Without a folder only the weights are gone through, as every rank must.
    """
    if folder is None:
        collections.deque(weights, maxlen=0)
        return
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    tensors = {name: tensor.contiguous().cpu() for name, tensor in weights}
    if plain.config.get_text_config().tie_word_embeddings:
        # Brought together from ranks, they share no memory any more, and both would be written.
        for alias, source in dict(getattr(plain, "_tied_weights_keys", None) or {}).items():
            if alias in tensors and source in tensors:
                tensors[alias] = tensors[source]
    _written(plain, folder, tensors)
    tokenizer.save_pretrained(folder)


def _written(model: Any, folder: Path, tensors: dict[str, Tensor]) -> None:
    """A model's config, generation defaults, and these tensors."""
    if not torch.cuda.is_available():
        # What is saved is looked at for an engine of DeepSpeed's, which would remark on the device it finds.
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # The config says in which dtype the model is loaded again: that of the tensors, not of fp32 masters.
    found = next((t.dtype for t in tensors.values() if t.is_floating_point()), None)
    before, model.config.dtype = model.config.dtype, found
    try:
        model.save_pretrained(folder, state_dict=tensors)
    finally:
        model.config.dtype = before


def export_scorer(
    model: Any, weights: Iterator[tuple[str, Tensor]], tokenizer: PreTrainedTokenizerBase, folder: Path | None
) -> None:
    """Write a folder that AutoModelForSequenceClassification loads: merged weights with their head, config, tokenizer.
    Without a folder only the weights are gone through, as every rank must.

    transformers reads a sequence at its last token that is not the padding's. Where the padding is the token that ends
    a turn, another special token becomes the padding, or that end would never be read.
    """
    if folder is None:
        collections.deque(weights, maxlen=0)
        return
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    tensors = {}
    for name, tensor in weights:
        if ".original_module." not in name:
            tensors[name.replace(".modules_to_save.default.", ".")] = tensor.contiguous().cpu()
    tokenizer = copy.deepcopy(tokenizer)
    ends = {tokenizer.eos_token_id, None}
    if tokenizer.pad_token_id in ends:
        others = [t for t in sorted(tokenizer.all_special_ids) if t not in ends]
        if others:
            tokenizer.pad_token = tokenizer.convert_ids_to_tokens(others[0])
    plain.config.pad_token_id = tokenizer.pad_token_id
    _written(plain, folder, tensors)
    tokenizer.save_pretrained(folder)


def original_head(folder: Path) -> Tensor | None:
    """The output head `[V, H]` as the checkpoint has it: its own, or the embedding it is tied to; None if unknown."""
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as stored:
            names = list(stored.keys())
            for ending in ("lm_head.weight", "embed_tokens.weight", "wte.weight"):
                found = [name for name in names if name.endswith(ending)]
                if found:
                    return stored.get_tensor(found[0])
    return None
