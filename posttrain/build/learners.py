"""Who learns: a policy with what stands beside it, or a reward model."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from posttrain.build import companions
from posttrain.build.check import Checked
from posttrain.build.companions import Checkpoint
from posttrain.errors import ModelError
from posttrain.learner.backbone import prove_layout, states_agree, take_trees
from posttrain.learner.compiling import compile_parts
from posttrain.learner.computation import Computation
from posttrain.learner.critic import Critic
from posttrain.learner.layout import Layout
from posttrain.learner.policy import Companions, PolicyLearner
from posttrain.learner.scorer import ScorerLearner
from posttrain.learner.sharding import Sharding
from posttrain.models.checkpoint import load_policy, load_scorer, with_adapters
from posttrain.recipe import Learner


def make_learner(checked: Checked, checkpoint: Checkpoint) -> PolicyLearner:
    """The learner of `hardware.learner`, its layout proven on this model."""
    recipe, settings = checked.recipe, checked.recipe.hardware.learner
    torch.manual_seed(recipe.run.seed)
    sharding = companions.make_sharding(recipe, checkpoint)
    home = sharding.home(checkpoint.device)
    model = load_policy(checkpoint.folder, recipe.model, checkpoint.dtype, home, settings.gradient_checkpointing)
    layout: Layout = "tree" if settings.layout == "auto" else settings.layout
    try:
        prove_layout(model, layout)
    except ModelError:
        if settings.layout != "auto":
            raise
        layout = "rows"
        prove_layout(model, layout)
    temperature = recipe.rollout.temperature if checked.algorithm.needs.sampler else 1.0
    return _learner(checked, checkpoint, model, computation(checked, checkpoint, layout, temperature, sharding))


def _learner(checked: Checked, checkpoint: Checkpoint, model: Any, settings: Computation) -> PolicyLearner:
    recipe, updates, needs = checked.recipe, total_updates(checked), checked.algorithm.needs
    home = settings.sharding.home(checkpoint.device)
    references = companions.references(recipe, checkpoint, home) if needs.reference else None
    values = companions.critic_model(checked, checkpoint, model, home) if needs.critic else None
    reading = [model, *(m for m in (references.models if references else ()) if m is not None)]
    if values is not None and recipe.critic.backbone == "own":
        reading.append(values)
    # Tried before any of them is laid out over the ranks: after that, a model is read through its reader alone.
    settings = replace(settings, flat=_flat(reading, recipe.hardware.learner.attention))
    _compile(reading, recipe.hardware.learner)
    critic = Critic(values, recipe.critic, recipe.optimizer, updates, settings.sharding) if values is not None else None
    # While its critic warms up the policy rests, and so does its schedule.
    warming = recipe.critic.warmup_steps if needs.critic else 0
    moving = updates - updates // max(recipe.run.steps, 1) * warming
    return PolicyLearner(
        model, checkpoint.tokenizer, recipe.optimizer, settings, moving, Companions(references, critic)
    )


def _flat(models: Sequence[Any], wanted: str) -> bool:
    """Whether all models that read the same rows take trees. Raises ModelError where they must and don't."""
    if wanted == "masked":
        return False
    taken = [take_trees(model) for model in models]
    if all(taken):
        return True
    if wanted == "trees":
        names = ", ".join(type(m).__name__ for m, took in zip(models, taken, strict=True) if not took)
        raise ModelError(f"hardware.learner.attention: trees, but {names} attends in another way; use auto or masked")
    return False


def _compile(models: Sequence[Any], settings: Learner) -> None:
    """Raises ModelError where models must be compiled and cannot be."""
    if not settings.compile or settings.strategy != "single":
        return
    with contextlib.suppress(*((ModelError,) if settings.compile == "auto" else ())):
        for model in models:
            compile_parts(model)


def make_scorer(checked: Checked, checkpoint: Checkpoint) -> ScorerLearner:
    """A reward model from the recipe's model: its own head where it has one, a random one otherwise."""
    recipe, cell = checked.recipe, checked.algorithm.objective
    torch.manual_seed(recipe.run.seed)
    outputs = int(cell.settings.get("value_bins", cell.settings.get("heads", 1)))
    trusted = recipe.model.trust_remote_code
    sharding = companions.make_sharding(recipe, checkpoint)
    home = sharding.home(checkpoint.device)
    model = load_scorer(checkpoint.folder, outputs, checkpoint.dtype, home, trusted, "model.path")
    if "value_bins" in cell.settings:
        # Who reads the checkpoint must know that its outputs are bins, and of what.
        model.config.value_low, model.config.value_high = cell["value_low"], cell["value_high"]
    if not bool(model.score.weight.any()):
        # A head of zeros passes no gradient on, and the heads of an ensemble would stay equal.
        nn.init.normal_(model.score.weight, std=(model.score.in_features + 1) ** -0.5)
    checkpointing = recipe.hardware.learner.gradient_checkpointing
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    plain = model
    if recipe.model.lora:
        model = with_adapters(model, recipe.model.lora, checkpointing, scorer=True)
    layout: Layout = "tree" if recipe.hardware.learner.layout == "auto" else recipe.hardware.learner.layout
    decoder = getattr(plain, plain.base_model_prefix)
    if not states_agree(decoder, layout, plain.score.weight.device):
        if recipe.hardware.learner.layout != "auto":
            raise ModelError(f"hardware.learner.layout: {layout} gives this model other states than rows; use rows")
        layout = "rows"
    flat = _flat([plain], recipe.hardware.learner.attention)
    settings = replace(computation(checked, checkpoint, layout, 1.0, sharding), flat=flat)
    _compile([model], recipe.hardware.learner)
    return ScorerLearner(model, checkpoint.tokenizer, recipe.optimizer, settings, total_updates(checked))


def computation(
    checked: Checked, checkpoint: Checkpoint, layout: Layout, temperature: float, sharding: Sharding
) -> Computation:
    """The recipe's settings of the learner."""
    settings = checked.recipe.hardware.learner
    return Computation(
        layout=layout,
        micro_batch_tokens=settings.micro_batch_tokens,
        logit_chunk=settings.logit_chunk,
        skips=settings.skip_silent,
        temperature=temperature,
        sharding=sharding,
        dtype=checkpoint.dtype,
    )


def total_updates(checked: Checked) -> int:
    """Optimiser steps of the whole run."""
    optimizer = checked.recipe.optimizer
    return checked.recipe.run.steps * optimizer.epochs * optimizer.minibatches
