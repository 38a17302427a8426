"""Everything about a recipe that can be found wrong before anything expensive starts. Imports no torch."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from posttrain.algorithms.table import Algorithm, choose
from posttrain.data.rows import columns_of
from posttrain.errors import PosttrainError, RecipeError
from posttrain.metrics.sinks import missing
from posttrain.models.location import Location, context_length, locate
from posttrain.recipe import Recipe
from posttrain.rewards import VerifierSignature, signature_of

Value = TypeVar("Value")


@dataclass(frozen=True)
class Checked:
    """A recipe without known mistakes: its row of the table, and what follows from its numbers."""

    recipe: Recipe
    algorithm: Algorithm
    equations: tuple[str, ...]


def check(recipe: Recipe, source: str = "recipe") -> Checked:
    """Hold a recipe against the table, the data, the verifiers and this machine.

    Raises RecipeError with every mistake found, each with its key, its value and a way out.
    """
    mistakes: list[str] = []

    def attempt(find: Callable[[], Value]) -> Value | None:
        try:
            return find()
        except RecipeError as error:
            mistakes.extend(error.mistakes)
        except PosttrainError as error:
            mistakes.append(str(error))
        return None

    algorithm = attempt(lambda: choose(recipe.algorithm.name, recipe.algorithm.overrides))
    if algorithm:
        mistakes += _against_row(recipe, algorithm)
    location = attempt(lambda: locate(recipe.model.path))
    if location:
        mistakes += _lengths(recipe, location)
    # Verifiers are loaded whatever is known of the data: a hub data set's columns are not.
    signatures = [attempt(partial(signature_of, r, f"rewards[{i}]")) for i, r in enumerate(recipe.rewards)]
    for key, data in (("data.train", recipe.data.train), ("data.eval", recipe.data.eval)):
        columns = attempt(partial(columns_of, data, key)) if data else None
        if columns is not None:
            mistakes += _columns(recipe, key, columns, signatures)
    mistakes += _machine(recipe)
    if mistakes or algorithm is None:
        raise RecipeError(list(dict.fromkeys(mistakes)), source)
    return Checked(recipe, algorithm, tuple(equations(recipe, algorithm)))


def _against_row(recipe: Recipe, algorithm: Algorithm) -> list[str]:
    size, needed = recipe.rollout.group_size, algorithm.needs.min_group
    if size >= needed:
        return []
    return [
        f"rollout.group_size: {size}, but {algorithm.name} compares the responses of a group and needs {needed} or more"
    ]


def _lengths(recipe: Recipe, location: Location) -> list[str]:
    own = context_length(location)
    asked, longest = recipe.model.max_length, recipe.rollout.max_tokens
    if own is not None and asked is not None and asked > own:
        return [f"model.max_length: {asked}, but the model's context is {own}"]
    room = asked or own
    if room is not None and longest + (recipe.data.max_prompt_tokens or 1) > room:
        prompt = (
            f" and data.max_prompt_tokens: {recipe.data.max_prompt_tokens}" if recipe.data.max_prompt_tokens else ""
        )
        return [f"rollout.max_tokens: {longest}{prompt} leave no room in a context of {room} tokens; lower them"]
    return []


def _columns(recipe: Recipe, key: str, columns: list[str], signatures: Sequence[VerifierSignature | None]) -> list[str]:
    """Every column a verifier needs must be in the data."""
    return [
        f"rewards[{index}].verifier: {reward.verifier} needs the column {name!r}, which {key} has not; it has "
        f"{', '.join(columns)}. Map one with {key}.columns: {{{name}: ...}}"
        for index, (reward, signature) in enumerate(zip(recipe.rewards, signatures, strict=True))
        for name in (signature.required if signature else ())
        if name not in columns
    ]


def _machine(recipe: Recipe) -> list[str]:
    mistakes = []
    if recipe.rollout.engine == "vllm" and importlib.util.find_spec("vllm") is None:
        mistakes.append(
            'rollout.engine: vllm is not installed; pip install "posttrain[vllm]" on a GPU machine, run `make install` '
            "on a CPU, or set rollout.engine: transformers"
        )
    parallel = recipe.hardware.sampler.tensor_parallel
    if parallel > 1:
        mistakes.append(f"hardware.sampler.tensor_parallel: {parallel}, but only 1 works yet")
    return mistakes + missing(recipe.run.sinks)


def equations(recipe: Recipe, algorithm: Algorithm) -> list[str]:
    """Derived values, each as the equation it comes from."""
    rollout, optimizer, run = recipe.rollout, recipe.optimizer, recipe.run
    prompts, size = optimizer.prompts_per_step, rollout.group_size
    sequences = prompts * size
    updates = optimizer.epochs * optimizer.minibatches
    lines = [
        f"prompts x samples = {prompts} x {size} = {sequences} sequences a step",
        f"sequences x new tokens = {sequences} x {rollout.max_tokens} = at most {sequences * rollout.max_tokens} "
        "sampled tokens a step",
        f"epochs x minibatches = {optimizer.epochs} x {optimizer.minibatches} = {updates} optimiser steps a step",
        f"steps x optimiser steps = {run.steps} x {updates} = {run.steps * updates} optimiser steps in all",
        f"steps x prompts = {run.steps} x {prompts} = {run.steps * prompts} prompts in all",
        f"sequences / minibatches = {sequences} / {optimizer.minibatches} = {sequences / optimizer.minibatches:g} "
        "sequences an optimiser step",
        _micro_batches(recipe, sequences / optimizer.minibatches),
    ]
    if algorithm.selection.kind == "dynamic":
        rounds = int(algorithm.selection["max_rounds"])
        lines.append(f"prompts x rounds = {prompts} x {rounds} = at most {prompts * rounds} prompts drawn for a step")
    if recipe.data.eval:
        every = run.evaluate_every or run.steps
        times = 1 + -(-run.steps // every)
        lines.append(f"1 + steps / evaluate_every = 1 + {run.steps} / {every} = {times} evaluations")
    return lines


def _micro_batches(recipe: Recipe, sequences: float) -> str:
    """How many forward passes an optimiser step takes at most; P stands for the prompt's length where it is open."""
    learner, longest = recipe.hardware.learner, recipe.rollout.max_tokens
    prompt, budget = recipe.data.max_prompt_tokens, learner.micro_batch_tokens
    shared = learner.layout in ("auto", "tree")
    prompts = sequences / recipe.rollout.group_size if shared else sequences
    text = f"({prompts:g} x P + {sequences:g} x {longest}) / {budget}"
    if prompt is None:
        return f"prompts x prompt + sequences x new tokens, / budget = {text} micro-batches an optimiser step, P long"
    count = math.ceil((prompts * prompt + sequences * longest) / budget)
    return f"positions / budget = {text.replace('P', str(prompt))} = about {count} micro-batches an optimiser step"
