"""What follows from a recipe's numbers, each value as the equation it comes from. Imports no torch."""

from __future__ import annotations

import math

from posttrain.algorithms.row import Algorithm
from posttrain.recipe import Recipe


def equations(recipe: Recipe, algorithm: Algorithm) -> list[str]:
    """Derived values, each as the equation it comes from."""
    optimizer, run = recipe.optimizer, recipe.run
    prompts = optimizer.prompts_per_step
    updates = optimizer.epochs * optimizer.minibatches
    lines = _sampled(recipe) if algorithm.source.kind in ("sampled", "joined") else []
    lines += [
        f"epochs x minibatches = {optimizer.epochs} x {optimizer.minibatches} = {updates} optimiser steps a step",
        f"steps x optimiser steps = {run.steps} x {updates} = {run.steps * updates} optimiser steps in all",
        f"steps x prompts = {run.steps} x {prompts} = {run.steps * prompts} prompts in all",
    ]
    if algorithm.kl.kind == "online":
        size = int(algorithm.kl["kl_responses"])
        lines.append(f"prompts x kl_responses = {prompts} x {size} = {prompts * size} sampled responses a step")
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


def _sampled(recipe: Recipe) -> list[str]:
    """What is sampled for a step."""
    rollout, optimizer = recipe.rollout, recipe.optimizer
    prompts, size = optimizer.prompts_per_step, rollout.group_size
    sequences = prompts * size
    return [
        f"prompts x samples = {prompts} x {size} = {sequences} sequences a step",
        f"sequences x new tokens = {sequences} x {rollout.max_tokens} = at most {sequences * rollout.max_tokens} "
        "sampled tokens a step",
        f"sequences / minibatches = {sequences} / {optimizer.minibatches} = {sequences / optimizer.minibatches:g} "
        "sequences an optimiser step",
        _micro_batches(recipe, sequences / optimizer.minibatches),
    ]


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
