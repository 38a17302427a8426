"""Who generates: an engine in each process, one over several of them, or servers apart."""

from __future__ import annotations

import json
import os
from pathlib import Path

from posttrain.build.companions import Checkpoint
from posttrain.build.layouts import heads_mistakes
from posttrain.data.chat import Chat
from posttrain.errors import ModelError, RecipeError
from posttrain.hybrid import Hybrid
from posttrain.hybrid.publishing import choose
from posttrain.learner import Learner
from posttrain.models.adapters import Form, expected_adapter
from posttrain.models.checkpoint import load_policy, stop_tokens
from posttrain.recipe import Recipe, merged_because
from posttrain.rollout import Sampler
from posttrain.rollout.first import FirstRankSampler
from posttrain.rollout.shared import SharedSampler
from posttrain.world import World


def make_sampler(recipe: Recipe, checkpoint: Checkpoint, max_length: int, logs: Path | None = None) -> Sampler:
    """The engine of `rollout.engine`, holding no weights yet that it would generate from: on several ranks one for
    every `sampler.tensor_parallel` of them, or servers that the first rank speaks with. `logs` is where servers started
    here say what they do.

    Raises RecipeError for heads that do not go round, ModelError for servers that cannot be had.
    """
    settings, world = recipe.hardware.sampler, checkpoint.world
    span = settings.tensor_parallel
    if span > 1 and (wrong := heads_mistakes(json.loads((checkpoint.folder / "config.json").read_text()), span)):
        raise RecipeError(wrong)
    if recipe.rollout.engine == "transformers":
        own: Sampler = _local(recipe, checkpoint)
    elif settings.placement == "servers":
        first = _servers(recipe, checkpoint, max_length, logs) if world.rank == 0 else None
        return first if first is not None and world.size == 1 else FirstRankSampler(first, world)
    else:
        own = _vllm(recipe, checkpoint, max_length)
    return own if world.size == 1 else SharedSampler(own, world, span)


def make_hybrid(recipe: Recipe, learner: Learner, sampler: Sampler, world: World) -> Hybrid:
    """Both on the same devices, with the way that weights take from one to the other. Raises ModelError where
    `sampler.sync` asks for a plan that there cannot be.
    """
    settings = recipe.hardware.sampler
    adapters = settings.adapters if recipe.model.lora is not None else None
    return Hybrid(learner, sampler, choose(settings.sync, learner, sampler, world, adapters))


def _adapter(recipe: Recipe, checkpoint: Checkpoint) -> Form | str:
    """The adapter that the engine is to make room for, or why there is none."""
    lora, asked = recipe.model.lora, recipe.hardware.sampler.adapters
    config = json.loads((checkpoint.folder / "config.json").read_text())
    reason = merged_because(recipe, config, checkpoint.device)
    if lora is None or asked == "merged" or reason is not None:
        return reason or f"hardware.sampler.adapters: {asked}"
    try:
        return expected_adapter(checkpoint.folder, lora, recipe.model.trust_remote_code)
    except ModelError as error:
        return str(error)


def _stops(checkpoint: Checkpoint) -> tuple[int, ...]:
    """Also what the template writes at the end of a turn: a base model learns to end there, and names another."""
    return Chat(checkpoint.tokenizer, stop_tokens(checkpoint.folder, checkpoint.tokenizer)).stop_ids


def _vllm(recipe: Recipe, checkpoint: Checkpoint, max_length: int) -> Sampler:
    from posttrain.rollout.vllm import EngineOptions, VllmSampler

    options = EngineOptions(
        device=checkpoint.device,
        dtype=recipe.hardware.dtype,
        max_length=max_length,
        hardware=recipe.hardware,
        trust_remote_code=recipe.model.trust_remote_code,
        stops=_stops(checkpoint),
        ranks=checkpoint.world.size,
        adapter=_adapter(recipe, checkpoint),
    )
    return VllmSampler(checkpoint.folder, checkpoint.tokenizer, options)


def _servers(recipe: Recipe, checkpoint: Checkpoint, max_length: int, logs: Path | None) -> Sampler:
    from posttrain.rollout.server import ServerOptions
    from posttrain.rollout.server.sampler import ServerSampler
    from posttrain.rollout.vllm import EngineOptions

    settings = recipe.hardware.sampler.servers
    engine = EngineOptions(
        device=checkpoint.device,
        dtype=recipe.hardware.dtype,
        max_length=max_length,
        hardware=recipe.hardware,
        trust_remote_code=recipe.model.trust_remote_code,
        stops=_stops(checkpoint),
    )
    token = None
    if settings.token_from is not None:
        token = os.environ.get(settings.token_from)
        if not token:
            key, name = "hardware.sampler.servers.token_from", settings.token_from
            raise RecipeError([f"{key}: the environment has no {name}; set it to what the proxies ask for"])
    options = ServerOptions(
        urls=settings.addresses,
        token=token,
        replicas=settings.replicas,
        logs=logs,
        start_timeout=settings.start_timeout,
        answer_timeout=settings.answer_timeout,
        restarts=settings.restarts,
        # Where a server is lost between two steps, none of several ranks can bring weights together again on its own;
        # one that is lost while a step is drawn ahead needs those that the learner is leaving.
        keep=checkpoint.world.size > 1 or recipe.rollout.max_lag > 0,
        sleeps=checkpoint.device == "cuda" and not settings.addresses,
    )
    return ServerSampler(checkpoint.folder, checkpoint.tokenizer, engine, options)


def _local(recipe: Recipe, checkpoint: Checkpoint) -> Sampler:
    from posttrain.rollout.local import LocalSampler

    plain = recipe.model.model_copy(update={"lora": None})
    model = load_policy(checkpoint.folder, plain, checkpoint.dtype, checkpoint.device)
    return LocalSampler(model, checkpoint.tokenizer, _stops(checkpoint), recipe.hardware.sampler.max_sequences)
