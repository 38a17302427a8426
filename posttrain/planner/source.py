"""A model's config, read where the model is: a folder, a .gguf header, or the hub's cache. Nothing is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from posttrain.errors import ModelError
from posttrain.models.location import config_of, locate
from posttrain.planner.header import read_header

OF_GGUF = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
    "head_dim": "attention.key_length",
    "num_local_experts": "expert_count",
    "num_experts_per_tok": "expert_used_count",
    "moe_intermediate_size": "expert_feed_forward_length",
}
"""Keys of a config.json, and of a GGUF header behind the architecture's name."""


def config_at(path: str, revision: str | None = None) -> dict[str, Any]:
    """The config of the model that a recipe's path points to.

    Raises ModelError where it is not on this machine, with the ways to bring it here.
    """
    location = locate(path)
    if location.kind == "folder":
        return config_of(location)
    if location.kind == "gguf":
        assert location.file is not None
        return _of_gguf(location.file)
    # Only the function that looks into the cache is needed, and only for a model of the hub.
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(path, "config.json", revision=revision)
    if not isinstance(found, str):
        raise ModelError(
            f"model.path: {path!r} is not in the hub's cache on this machine, so its shape is not known; give its "
            "config.json with --shape FILE, or run `hf download " + path + " config.json`"
        )
    return read_config(Path(found))


def read_config(file: Path) -> dict[str, Any]:
    """A config.json, or that of a folder. Raises ModelError for what is none."""
    file = file / "config.json" if file.is_dir() else file
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"--shape: {str(file)!r} is no config.json ({error}); give the file of a model") from None
    if not isinstance(found, dict):
        raise ModelError(f"--shape: {str(file)!r} holds no mapping; give a model's config.json")
    return found


def _of_gguf(file: Path) -> dict[str, Any]:
    header = read_header(file)
    family = header.values.get("general.architecture")
    config: dict[str, Any] = {"model_type": family}
    for key, name in OF_GGUF.items():
        value = header.values.get(f"{family}.{name}")
        if value is not None:
            # Sizes that differ from layer to layer are a list: the largest is planned for.
            config[key] = max(value) if isinstance(value, list) else value
    if "token_embd.weight" in header.shapes:
        config["vocab_size"] = header.shapes["token_embd.weight"][-1]
    config["tie_word_embeddings"] = "output.weight" not in header.shapes
    return config
