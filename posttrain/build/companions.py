"""Models beside the policy: references and the critic, from the recipe's blocks of these names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from posttrain.build.check import Checked
from posttrain.errors import ModelError
from posttrain.learner.references import References
from posttrain.learner.sharding import Rows, Sharding, Whole
from posttrain.models.checkpoint import load_policy, load_scorer
from posttrain.models.gguf import checkpoint_folder
from posttrain.recipe import Recipe, Reference
from posttrain.world import ALONE, World


@dataclass(frozen=True)
class Checkpoint:
    """A model folder with its tokenizer, where it is computed, and in what."""

    folder: Path
    tokenizer: PreTrainedTokenizerBase
    device: str
    dtype: torch.dtype
    world: World = ALONE
    """Who computes."""


def make_sharding(recipe: Recipe, checkpoint: Checkpoint) -> Sharding:
    """How `hardware.learner.strategy` lays models over the ranks; in a world of one there is nothing to lay out."""
    learner, world = recipe.hardware.learner, checkpoint.world
    if world.size == 1 or learner.strategy in ("single", "ddp"):
        return Whole(world)
    if learner.strategy == "fsdp2":
        return Rows(world, checkpoint.dtype, checkpoint.device)
    from posttrain.learner.zero import Zero

    return Zero(world, checkpoint.dtype, checkpoint.device, int(learner.strategy[-1]), learner.offload)


def shares(reference: Reference) -> tuple[float, ...]:
    """Parts of the reference policies, adding up to 1."""
    total = sum(p.share for p in reference.policies)
    return tuple(p.share / total for p in reference.policies)


def references(recipe: Recipe, checkpoint: Checkpoint, device: str) -> References:
    """Every reference policy on `device`, frozen. An adapter's own base needs no second copy. Raises ModelError."""
    plain = recipe.model.model_copy(update={"lora": None})
    models: list[nn.Module | None] = []
    for i, policy in enumerate(recipe.reference.policies):
        if policy.path is None and recipe.model.lora is not None:
            models.append(None)
            continue
        key = f"reference.policies[{i}].path"
        folder = checkpoint.folder if policy.path is None else checkpoint_folder(policy.path, policy.revision, key)
        model = load_policy(folder, plain, checkpoint.dtype, device)
        size, own = model.get_input_embeddings().num_embeddings, len(checkpoint.tokenizer)
        if size < own:
            raise ModelError(f"{key}: {policy.path!r} knows {size} tokens, but the policy's tokenizer has {own}")
        models.append(model)
    return References(models)


def critic_model(checked: Checked, checkpoint: Checkpoint, policy: Any, device: str) -> Any:
    """What the recipe's `critic` block reads values from: a model on `device` with the outputs that the row's cell
    reads, or a head of zeros for the policy's own states. Raises ModelError.
    """
    recipe, settings = checked.recipe, checked.recipe.critic
    outputs = int(checked.algorithm.critic.settings.get("value_bins", 1))
    if settings.backbone == "shared":
        width = policy.get_output_embeddings().weight.shape[1]
        head = nn.Linear(width, outputs, bias=False, device=checkpoint.device)
        nn.init.zeros_(head.weight)
        return head
    folder = checkpoint.folder
    if settings.path is not None:
        folder = checkpoint_folder(settings.path, settings.revision, "critic.path")
    model = load_scorer(folder, outputs, checkpoint.dtype, device, recipe.model.trust_remote_code)
    if checked.algorithm.frozen_values:
        model.requires_grad_(False)
    return model
