"""Everything about a recipe that can be found wrong before anything expensive starts. Imports no torch."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from posttrain.algorithms.choice import choose
from posttrain.algorithms.row import Algorithm
from posttrain.data.rows import columns_of
from posttrain.errors import PosttrainError, RecipeError
from posttrain.metrics.sinks import missing
from posttrain.models.location import Location, context_length, locate
from posttrain.recipe import Critic, Recipe, Reference
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
    if recipe.data.auxiliary:
        attempt(partial(columns_of, recipe.data.auxiliary.data, "data.auxiliary.data"))
    for key, data in (("data.train", recipe.data.train), ("data.eval", recipe.data.eval)):
        columns = attempt(partial(columns_of, data, key)) if data else None
        if columns is not None:
            mistakes += _columns(recipe, key, columns, signatures)
    if algorithm:
        mistakes += _pairwise(recipe, algorithm, signatures)
    mistakes += _machine(recipe)
    if mistakes or algorithm is None:
        raise RecipeError(list(dict.fromkeys(mistakes)), source)
    return Checked(recipe, algorithm, tuple(equations(recipe, algorithm)))


def _against_row(recipe: Recipe, algorithm: Algorithm) -> list[str]:
    size, needed, found = recipe.rollout.group_size, algorithm.needs.min_group, []
    if size < needed:
        found.append(
            f"rollout.group_size: {size}, but {algorithm.name} compares the responses of a group and needs {needed} or "
            "more"
        )
    if algorithm.needs.parts and len(recipe.rewards) < 2:
        found.append(
            f"rewards: {len(recipe.rewards)}, but credit: {algorithm.credit.kind} normalises several graders one by "
            "one; add another, or use credit: group_norm"
        )
    if size <= algorithm.credit.settings.get("pass_k", 0):
        found.append(
            f"algorithm.pass_k: {algorithm.credit['pass_k']}, but a group of {size} responses has only one subset of "
            "that size or none, so nothing would be compared; raise rollout.group_size or lower pass_k"
        )
    return found + _against_companions(recipe, algorithm)


def _against_companions(recipe: Recipe, algorithm: Algorithm) -> list[str]:
    """The critic and reference blocks must be read by the row, and be able to do what is asked of them."""
    found, critic, reference = [], recipe.critic, recipe.reference
    if not algorithm.needs.critic and critic != Critic():
        found.append(f"critic: {algorithm.name} has no critic; leave the block out, or use credit: gae")
    if not algorithm.needs.reference and reference != Reference():
        found.append(f"reference: {algorithm.name} reads no reference policy; leave the block out, or use kl: in_loss")
    if algorithm.critic.kind == "frozen" and (critic.path is None or critic.backbone == "shared"):
        found.append(
            "critic.path: missing, but critic: frozen learns nothing, so it must start from a trained value function; "
            "give its checkpoint, or use critic: squared"
        )
    if algorithm.critic.kind == "frozen" and critic.warmup_steps:
        found.append(f"critic.warmup_steps: {critic.warmup_steps}, but a frozen critic learns nothing; leave it out")
    if critic.warmup_steps >= recipe.run.steps:
        found.append(
            f"critic.warmup_steps: {critic.warmup_steps}, but the run has {recipe.run.steps} steps, so the policy "
            "would never be trained; lower it or raise run.steps"
        )
    if critic.backbone == "shared" and not critic.stop_gradient and critic.warmup_steps:
        found.append(
            f"critic.warmup_steps: {critic.warmup_steps}, but with critic.stop_gradient: false the value loss trains "
            "the policy's own backbone, which a warm-up leaves as it is; use stop_gradient: true or no warm-up"
        )
    if reference.refresh != "never" and reference.policies[0].path is None and recipe.model.lora is not None:
        found.append(
            f"reference.refresh: {reference.refresh}, but the reference is the frozen base of model.lora; use never"
        )
    return found


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


def _pairwise(recipe: Recipe, algorithm: Algorithm, signatures: Sequence[VerifierSignature | None]) -> list[str]:
    """A row that learns from win rates needs graders that compare; a win rate needs somebody to win against."""
    weighed = [s for s, r in zip(signatures, recipe.rewards, strict=True) if s is not None and r.weight]
    found = []
    for signature in weighed if algorithm.needs.preference else ():
        if signature.kind != "pair":
            found.append(
                f"rewards: {signature.name} scores responses one by one, but credit: {algorithm.credit.kind} needs win "
                "rates; name a function of (completion, other, **columns) that gives the probability that completion "
                "is the better one, or use credit: group_mean"
            )
    if any(s.kind == "pair" for s in weighed) and recipe.data.eval and recipe.evaluation.greedy:
        found.append(
            "evaluation.greedy: true, but a grader that compares has nothing to say of a single response; set "
            "evaluation.greedy: false"
        )
    return found


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
    if "max_rounds" in algorithm.selection.settings:
        rounds = int(algorithm.selection["max_rounds"])
        lines.append(f"prompts x rounds = {prompts} x {rounds} = at most {prompts * rounds} prompts drawn for a step")
    if algorithm.needs.critic and recipe.critic.warmup_steps:
        warm = recipe.critic.warmup_steps
        lines.append(f"steps - critic.warmup_steps = {run.steps} - {warm} = {run.steps - warm} steps move the policy")
    if algorithm.kl.kind == "in_reward" and algorithm.kl["kl_estimator"] != "k1":
        lines.append(
            f"kl_estimator {algorithm.kl['kl_estimator']} in the reward scarcely pulls near the reference: only k1 has "
            "the gradient of KL(policy || reference) there"
        )
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
