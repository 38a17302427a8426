"""What one step of a recipe computes: sequences, positions, micro-batches. Responses are taken to be of full length."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from posttrain.algorithms.row import Algorithm
from posttrain.planner.activations import Pass
from posttrain.recipe import Recipe

ASSUMED_PROMPT = 256
"""Tokens of a prompt where a recipe has no limit."""
ASSUMED_RESPONSE = 512
"""Tokens of an answer that comes with the data, where the recipe has no limit."""


@dataclass(frozen=True)
class Work:
    """One step of the loop on all ranks together."""

    prompts: int
    group: int
    prompt: int
    """Tokens of a prompt."""
    response: int
    """Tokens of a response."""
    updates: int
    """Optimiser steps that the step's roll-outs make."""
    passes: int
    """Micro-batches of an optimiser step, on all ranks together."""
    micro_batch: Pass
    sampled: bool = True
    """Whether responses are drawn by an engine."""
    assumed: tuple[str, ...] = ()
    """What no number of the recipe says."""

    @property
    def sequences(self) -> int:
        return self.prompts * self.group

    @property
    def learnt(self) -> int:
        """Response tokens of a step."""
        return self.sequences * self.response

    @property
    def positions(self) -> int:
        """Of all forward passes with gradient of a step, padding left out."""
        return self.updates * self.passes * self.micro_batch.positions


def work_of(recipe: Recipe, row: Algorithm | None, context: int | None) -> Work:
    """The work of a step, or of measuring where nothing is trained. `context` is the model's own limit."""
    limit = recipe.model.max_length or context or 2**31
    sampled, assumed = row is None or row.needs.sampler, []
    response = recipe.rollout.max_tokens if sampled else min(ASSUMED_RESPONSE, limit // 2)
    prompt = recipe.data.max_prompt_tokens
    if prompt is None:
        prompt = max(1, min(ASSUMED_PROMPT, limit - response))
        assumed.append(f"data.max_prompt_tokens is open: prompts of {prompt} tokens")
    if not sampled:
        response = max(1, min(ASSUMED_RESPONSE, limit - prompt))
        assumed.append(f"answers come with the data: of {response} tokens")
    return laid_out(recipe, prompt, response, row, tuple(assumed))


def laid_out(
    recipe: Recipe, prompt: int, response: int, row: Algorithm | None = None, assumed: tuple[str, ...] = ()
) -> Work:
    """The work of a step whose prompts and responses have these lengths, cut as `data.packing` cuts it."""
    optimizer, learner = recipe.optimizer, recipe.hardware.learner
    sampled = row is None or row.needs.sampler
    group = recipe.rollout.group_size
    if row is not None and not sampled:
        group = 2 if row.needs.pairs or row.needs.min_group > 1 else 1
    sequences = max(1, optimizer.prompts_per_step * group // optimizer.minibatches)
    budget, together = learner.micro_batch_tokens, 1
    if learner.layout in ("auto", "tree"):
        together = max(1, min(group, (budget - prompt) // response))
    length, rows = prompt + together * response, ceil(sequences / together)
    if learner.processes > 1:
        budget = min(budget, ceil(length * rows / learner.processes))
    in_one = max(1, min(rows, budget // length))
    masked = together > 1
    size = Pass(in_one, length, in_one * together * response, masked)
    if learner.layout == "packed" and in_one > 1:
        size = Pass(1, in_one * length, in_one * response, True)
    if learner.attention != "masked":
        copied = in_one * together * (prompt + response) if together > 1 else 0
        size = Pass(1, in_one * length, size.predicted, False, copied)
    updates = optimizer.epochs * optimizer.minibatches
    passes = ceil(rows / in_one)
    return Work(optimizer.prompts_per_step, group, prompt, response, updates, passes, size, sampled, assumed)
