"""Processes, engines and heads that cannot be laid over each other, found without torch."""

from __future__ import annotations

import importlib.util
from typing import Any

from posttrain.algorithms.row import Algorithm
from posttrain.models.location import Location, config_of
from posttrain.recipe import Recipe
from posttrain.world import launched


def layout_mistakes(recipe: Recipe, location: Location | None) -> list[str]:
    """What `hardware.learner` and `hardware.sampler` ask of each other and of the model that cannot be."""
    learner, sampler, key = recipe.hardware.learner, recipe.hardware.sampler, "hardware.sampler.tensor_parallel"
    span, found = sampler.tensor_parallel, []
    if sampler.placement == "servers" and recipe.rollout.engine != "vllm":
        found.append(
            f"hardware.sampler.placement: servers, but rollout.engine: {recipe.rollout.engine} cannot run apart; use "
            "vllm"
        )
    if span == 1:
        return found
    if recipe.rollout.engine != "vllm":
        found.append(f"{key}: {span}, but rollout.engine: {recipe.rollout.engine} runs in one process; use 1, or vllm")
    if sampler.placement == "servers":
        return found + (heads_mistakes(config_of(location), span) if location is not None else [])
    # Under another launcher it says how many there are, and the run looks again.
    if learner.processes % span and learner.strategy != "single" and not (learner.processes == 1 and launched()):
        found.append(
            f"{key}: {span} does not divide hardware.learner.processes: {learner.processes}, whose ranks the engines "
            f"span; use processes: {span}, or a multiple"
        )
    if learner.strategy == "single":
        found.append(
            f"{key}: {span}, but hardware.learner.strategy: single has one process for an engine to span; use ddp or "
            f"fsdp2 with processes: {span}"
        )
    if location is not None:
        found += heads_mistakes(config_of(location), span)
    return found


def lag_mistakes(recipe: Recipe, algorithm: Algorithm) -> list[str]:
    """What drawing a step ahead cannot be combined with."""
    if recipe.rollout.max_lag == 0 or not algorithm.needs.sampler:
        return []
    hardware, key = recipe.hardware, f"rollout.max_lag: {recipe.rollout.max_lag}"
    together = hardware.device == "cuda" and hardware.sampler.placement != "servers"
    cannot = {
        f"{algorithm.name} has correction: {algorithm.correction.kind}, which knows nothing of the weights that drew; "
        "use correction: truncated_importance": not algorithm.needs.behaviour,
        f"selection: {algorithm.selection.kind} reads what the step before it has learnt; use another": (
            algorithm.selection.kind == "steady_spread"
        ),
        "opponents share the engine with the policy; use 0": algorithm.needs.opponent,
        "run.parity_every: 1 compares engine and trainer in every step, and only a step that is not drawn ahead can be "
        "compared; use 10": recipe.run.parity_every == 1,
        f"hardware.learner.processes: {hardware.learner.processes} share every draw; use 1 process, or 0": (
            hardware.learner.processes > 1
        ),
        "hardware.device: cuda is slept and woken between drawing and learning; use hardware.sampler.placement: "
        "servers": together,
    }
    return [f"{key}, but {reason}" for reason, true in cannot.items() if true]


def zero_mistakes(recipe: Recipe, algorithm: Algorithm) -> list[str]:
    """What DeepSpeed cannot do with a row, or with this machine."""
    learner, needs = recipe.hardware.learner, algorithm.needs
    if not learner.strategy.startswith("zero"):
        return []
    key, way = f"hardware.learner.strategy: {learner.strategy}", "use fsdp2 or ddp"
    exact = algorithm.kl.kind == "in_loss" and algorithm.kl["kl_estimator"] == "exact"
    cannot = {
        "kl_estimator: exact reads the reference's output head outside its passes": (
            exact and learner.strategy == "zero3"
        ),
        f"hardware.dtype: {recipe.hardware.dtype} has no fp32 masters": recipe.hardware.dtype == "float64",
        "hardware.dtype: bfloat16 would round the head of a reward model or critic, which others keep in fp32": (
            recipe.hardware.dtype == "bfloat16" and (needs.scorer or (needs.critic and recipe.critic.backbone == "own"))
        ),
        # Another optimiser of DeepSpeed's, with other pieces: stage 2 holds less, and is the same otherwise.
        "hardware.dtype: bfloat16 is for zero2 and zero3": (
            learner.strategy == "zero1" and recipe.hardware.dtype == "bfloat16"
        ),
    }
    found = [f"{key}, but {reason}; {way}" for reason, true in cannot.items() if true]
    if learner.offload != "none" and recipe.hardware.device == "cpu":
        found.append(
            f"hardware.learner.offload: {learner.offload}, but hardware.device: cpu has nowhere else; use none"
        )
    if importlib.util.find_spec("deepspeed") is None:
        found.append(f'{key}, but deepspeed is not installed; pip install "posttrain[deepspeed]", or {way}')
    return found


def heads_mistakes(config: dict[str, Any], span: int) -> list[str]:
    """Attention heads are dealt out whole, and an MLP's columns evenly: why `span` ranks cannot have them, and how many
    could.
    """
    text = config.get("text_config") or config
    heads, shared = text.get("num_attention_heads"), text.get("num_key_value_heads")
    if not isinstance(heads, int):
        return []
    shared = shared if isinstance(shared, int) else heads
    widths = [text.get(name) for name in ("intermediate_size", "moe_intermediate_size")]
    columns = [width for width in widths if isinstance(width, int)]
    able = [
        n
        for n in range(1, heads + 1)
        if heads % n == 0 and (shared % n == 0 or n % shared == 0) and not any(width % n for width in columns)
    ]
    if span in able:
        return []
    return [
        f"hardware.sampler.tensor_parallel: {span}, but the model has {heads} attention heads and {shared} of keys and "
        f"values, which go whole to a rank, and MLPs of {' and '.join(map(str, columns)) or 'unknown'} columns; use "
        f"one of: {', '.join(map(str, able))}"
    ]
