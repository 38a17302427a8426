"""Whether a recipe's adapter can be served beside the weights of its base, as far as the recipe can tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from posttrain.recipe.blocks import Recipe

OUTSIDE = ("embed_tokens", "wte", "word_embeddings", "lm_head", "embed_out", "score")
"""Modules outside the layers: tables of the vocabulary and heads, which may share their tensor with one another."""


def merged_because(recipe: Recipe, config: Mapping[str, Any] | None = None, device: str | None = None) -> str | None:
    """Why the adapter is merged into the weights that are published; None where an engine may serve it apart. `config`
    is the model's own and `device` what the recipe's stands for, where they are known. Whether the engine can is seen
    when it starts.
    """
    lora, sampler = recipe.model.lora, recipe.hardware.sampler
    if lora is None:
        return "model.lora: there is no adapter"
    if recipe.rollout.engine != "vllm":
        return f"rollout.engine: {recipe.rollout.engine} takes whole weights by their names"
    if sampler.placement == "servers":
        return "hardware.sampler.placement: servers take whole weights from memory they share with the trainer"
    if sampler.sync == "planned":
        return "hardware.sampler.sync: planned brings whole weights for each version"
    outside = [] if isinstance(lora.targets, str) else [t for t in lora.targets if t.split(".")[-1] in OUTSIDE]
    if outside:
        return f"model.lora.targets: {outside[0]!r} is no projection inside a layer, and only those are served apart"
    if config and "quantization_config" in config:
        return "model.path: its base is quantised, and an adapter beside rounded weights was not learnt on them"
    if sampler.adapters == "auto" and (device or recipe.hardware.device) == "cpu":
        return "on a CPU an engine with an adapter beside its layers draws at about half the speed"
    return None


def published_apart(recipe: Recipe) -> bool:
    """Whether an adapter is sent without its base, if the engine can and the probe agrees."""
    return recipe.hardware.sampler.adapters != "merged" and merged_because(recipe) is None


def adapters_mistakes(recipe: Recipe, samples: bool, config: Mapping[str, Any]) -> list[str]:
    """What `hardware.sampler.adapters` asks for that cannot be. `samples`: the run has an engine."""
    sampler = recipe.hardware.sampler
    if sampler.adapters == "auto":
        return []
    key = f"hardware.sampler.adapters: {sampler.adapters}"
    if recipe.model.lora is None or not samples:
        missing = "the recipe has no model.lora" if recipe.model.lora is None else "nothing is sampled"
        return [f"{key}, but {missing}, so nothing reads it; leave it out"]
    if sampler.adapters == "merged":
        return []
    reason = merged_because(recipe, config)
    return [f"{key}, but {reason}; use merged or auto"] if reason else []
