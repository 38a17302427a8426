"""Whether a recipe trains or only evaluates, and what it must have for that. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.recipe import Critic, Optimizer, Recipe, Reference
from posttrain.rewards import VerifierSignature


def trains(recipe: Recipe) -> list[str]:
    """What a recipe that trains must have beside its algorithm."""
    found = []
    if recipe.data.train is None:
        found.append("data.train: missing; add it, or leave algorithm out to evaluate only")
    if not recipe.run.steps:
        found.append("run.steps: 0 or missing; set it, or leave algorithm out to evaluate only")
    return found


def only_evaluates(recipe: Recipe) -> list[str]:
    """Without an algorithm a recipe measures what a model says to held-out prompts: what that needs, and what it reads
    not.
    """
    if recipe.data.train is not None or recipe.run.steps:
        key = "data.train" if recipe.data.train is not None else "run.steps"
        return [f"algorithm: missing, but {key} is there; add it, or leave {key} out to evaluate only"]
    if recipe.data.eval is None or not recipe.rewards:
        key = "rewards" if recipe.data.eval else "data.eval"
        return [
            f"algorithm: missing; add it to train. To evaluate only, data.eval and rewards are needed: {key} is missing"
        ]
    unread = [
        name
        for name, there in (
            ("optimizer", recipe.optimizer != Optimizer()),
            ("critic", recipe.critic != Critic()),
            ("reference", recipe.reference != Reference()),
            ("data.auxiliary", recipe.data.auxiliary),
            ("data.conditioning", recipe.data.conditioning),
            ("data.contrast", recipe.data.contrast),
        )
        if there
    ]
    return [f"{name}: nothing is trained without an algorithm; leave it out, or add algorithm" for name in unread]


def time_limits(recipe: Recipe, signatures: Sequence[VerifierSignature | None]) -> list[str]:
    """A verifier that gives up by itself must get to say so before it is killed."""
    limit = recipe.grading.timeout
    return [
        f"grading.timeout: {limit:g}, but {s.name} takes up to {s.timeout:g} s for one verdict (rewards[{i}].settings."
        f"timeout) and would be killed before it can say that it gave up; raise grading.timeout, or lower that one"
        for i, s in enumerate(signatures)
        if s is not None and s.timeout is not None and limit <= s.timeout
    ]


def greedy_pairs(recipe: Recipe, signatures: Sequence[VerifierSignature | None]) -> list[str]:
    """A win rate needs somebody to win against."""
    compares = any(
        s is not None and s.kind == "pair" and r.weight for s, r in zip(signatures, recipe.rewards, strict=True)
    )
    if not (compares and recipe.data.eval and recipe.evaluation.greedy):
        return []
    return [
        "evaluation.greedy: true, but a grader that compares has nothing to say of a single response; set "
        "evaluation.greedy: false"
    ]
