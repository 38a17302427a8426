"""Everything about a recipe that can be found wrong before anything expensive starts. Imports no torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from posttrain.algorithms.choice import choose
from posttrain.algorithms.row import Algorithm
from posttrain.build.equations import equations
from posttrain.build.layouts import lag_mistakes, layout_mistakes, zero_mistakes
from posttrain.build.purpose import greedy_pairs, only_evaluates, time_limits, trains
from posttrain.build.wants import new_tokens, wanted
from posttrain.data.rows import columns_of
from posttrain.data.shapes import require
from posttrain.errors import PosttrainError, RecipeError
from posttrain.metrics.sinks import missing
from posttrain.models.location import Location, config_of, context_length, locate
from posttrain.recipe import Critic, Recipe, Reference, Rollout, adapters_mistakes
from posttrain.rewards import VerifierSignature, signature_of

Value = TypeVar("Value")


@dataclass(frozen=True)
class Checked:
    """A recipe without known mistakes: its row of the table, and what follows from its numbers."""

    recipe: Recipe
    row: Algorithm | None
    """None where the recipe only evaluates."""
    equations: tuple[str, ...]
    graders: tuple[str, ...] = ()
    """The names of its rewards."""

    @property
    def algorithm(self) -> Algorithm:
        """The row that is trained by. Raises RecipeError where there is none."""
        if self.row is None:
            raise RecipeError(
                [
                    "algorithm: missing, so nothing is trained; add it with data.train and run.steps, or use "
                    "`posttrain evaluate`"
                ]
            )
        return self.row

    @property
    def scores(self) -> bool:
        """Whether a reward model is trained."""
        return self.row is not None and self.row.needs.scorer

    @property
    def reads_answers(self) -> bool:
        """Whether held-out answers that come with the rows are measured."""
        return self.row is not None and self.row.needs.given


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

    chosen = recipe.algorithm
    algorithm = attempt(lambda: choose(chosen.name, chosen.overrides)) if chosen else None
    mistakes += trains(recipe) if chosen else only_evaluates(recipe)
    if algorithm:
        mistakes += _against_row(recipe, algorithm)
    location = attempt(lambda: locate(recipe.model.path))
    if location and (algorithm or not chosen):
        mistakes += _lengths(recipe, location, algorithm)
    mistakes += _sides(recipe, algorithm) if algorithm else []
    # Verifiers are loaded whatever is known of the data: a hub data set's columns are not.
    signatures = [attempt(partial(signature_of, r, f"rewards[{i}]")) for i, r in enumerate(recipe.rewards)]
    if recipe.data.auxiliary:
        attempt(partial(columns_of, recipe.data.auxiliary.data, "data.auxiliary.data"))
    for key, data in (("data.train", recipe.data.train), ("data.eval", recipe.data.eval)):
        columns = attempt(partial(columns_of, data, key)) if data else None
        if columns is not None:
            graded = key == "data.eval" or (algorithm is not None and algorithm.needs.sampler)
            mistakes += _columns(recipe, key, columns, signatures) if graded else []
            if data and key == "data.train" and algorithm is not None and algorithm.needs.given:
                attempt(partial(require, columns, wanted(recipe, algorithm, data), key))
    if algorithm:
        mistakes += _pairwise(recipe, algorithm, signatures) + zero_mistakes(recipe, algorithm)
        mistakes += lag_mistakes(recipe, algorithm)
    mistakes += greedy_pairs(recipe, signatures) + time_limits(recipe, signatures)
    mistakes += layout_mistakes(recipe, location) + _machine(recipe, algorithm)
    config = config_of(location) if location else {}
    mistakes += adapters_mistakes(recipe, _samples(recipe, algorithm), config)
    if mistakes:
        raise RecipeError(list(dict.fromkeys(mistakes)), source)
    said = tuple(equations(recipe, algorithm)) if algorithm else ()
    return Checked(recipe, algorithm, said, tuple(s.name for s in signatures if s is not None))


def _against_row(recipe: Recipe, algorithm: Algorithm) -> list[str]:
    size, needed, found = recipe.rollout.group_size, algorithm.needs.min_group, []
    sampled = algorithm.source.kind == "sampled"
    if size < needed and sampled:
        found.append(
            f"rollout.group_size: {size}, but {algorithm.name} compares the responses of a group and needs {needed} or "
            "more"
        )
    if algorithm.needs.parts and len(recipe.rewards) < 2:
        found.append(
            f"rewards: {len(recipe.rewards)}, but credit: {algorithm.credit.kind} normalises several graders one by "
            "one; add another, or use credit: group_norm"
        )
    if sampled and size <= algorithm.credit.settings.get("pass_k", 0):
        found.append(
            f"algorithm.pass_k: {algorithm.credit['pass_k']}, but a group of {size} responses has only one subset of "
            "that size or none, so nothing would be compared; raise rollout.group_size or lower pass_k"
        )
    return found + _against_companions(recipe, algorithm)


def _sides(recipe: Recipe, algorithm: Algorithm) -> list[str]:
    """Blocks that the row's source of responses needs, or that nothing would read."""
    found, needs, rollout = [], algorithm.needs, recipe.rollout
    if algorithm.source.kind == "sampled" and not recipe.rewards:
        found.append("rewards: missing, but sampled responses must be graded; add a verifier")
    if not needs.sampler and rollout != Rollout() and not (recipe.rewards and recipe.data.eval):
        found.append(
            f"rollout: {algorithm.name} samples nothing and no rewards grade held-out responses; leave the block "
            "out, or add rewards and data.eval"
        )
    if not needs.sampler and recipe.rewards and not recipe.data.eval:
        found.append(
            f"rewards: {algorithm.name} learns from given responses, so graders only measure held-out ones; add "
            "data.eval, or leave rewards out"
        )
    if needs.scorer and recipe.data.auxiliary:
        found.append("data.auxiliary: a reward model has no likelihood of texts to learn; leave it out")
    if recipe.data.contrast and not needs.scorer:
        found.append("data.contrast: only a reward model is measured on it; leave it out")
    share = recipe.optimizer.prompts_per_step // recipe.optimizer.minibatches
    if needs.mismatched and share < 2:
        found.append(
            f"optimizer.prompts_per_step: {recipe.optimizer.prompts_per_step} in {recipe.optimizer.minibatches} "
            "minibatches leave one prompt an update, so no answer is another prompt's; raise it"
        )
    if needs.scorer and recipe.rewards:
        found.append("rewards: a reward model responds to nothing that could be graded; leave the block out")
    if needs.conditioning != (recipe.data.conditioning is not None):
        way = "add it" if needs.conditioning else "leave it out, or use source: conditioned"
        found.append(
            f"data.conditioning: {algorithm.name} {'needs' if needs.conditioning else 'reads no'} such texts; {way}"
        )
    opponents = algorithm.opponent.settings.get("opponent_responses", 0)
    if opponents > rollout.group_size:
        found.append(
            f"algorithm.opponent_responses: {opponents}, but rollout.group_size: {rollout.group_size}; raise group_size"
        )
    if needs.opponent and recipe.model.lora is not None:
        found.append("model.lora: an adapter's base is no model of its own that could be an opponent; leave lora out")
    return found


def _against_companions(recipe: Recipe, algorithm: Algorithm) -> list[str]:
    """The critic and reference blocks must be read by the row, and be able to do what is asked of them."""
    found, critic, reference = [], recipe.critic, recipe.reference
    if not algorithm.needs.critic and critic != Critic():
        found.append(f"critic: {algorithm.name} has no critic; leave the block out, or use credit: gae")
    if not algorithm.needs.reference and reference != Reference():
        found.append(f"reference: {algorithm.name} reads no reference policy; leave the block out, or use kl: in_loss")
    if algorithm.frozen_values and (critic.path is None or critic.backbone == "shared"):
        found.append(
            "critic.path: missing, but critic: frozen learns nothing, so it must start from a trained value function; "
            "give its checkpoint, or use critic: squared"
        )
    if algorithm.frozen_values and critic.warmup_steps:
        found.append(f"critic.warmup_steps: {critic.warmup_steps}, but a frozen critic learns nothing; leave it out")
    if critic.warmup_steps >= max(recipe.run.steps, 1):
        found.append(
            f"critic.warmup_steps: {critic.warmup_steps}, but the run has {recipe.run.steps} steps, so the policy "
            "would never be trained; lower it or raise run.steps"
        )
    if critic.backbone == "shared" and not critic.stop_gradient and critic.warmup_steps:
        found.append(
            f"critic.warmup_steps: {critic.warmup_steps}, but with critic.stop_gradient: false the value loss trains "
            "the policy's own backbone, which a warm-up leaves as it is; use stop_gradient: true or no warm-up"
        )
    if algorithm.needs.refresh and reference.refresh != "copy":
        found.append(
            f"reference.refresh: {reference.refresh}, but {algorithm.name} compares with the policy of the iteration "
            "before; use refresh: copy, every: STEPS"
        )
    if reference.momentum and reference.refresh != "copy":
        found.append(
            f"reference.momentum: {reference.momentum}, but only refresh: copy has a way that can go on; use it"
        )
    if reference.cache and (reference.refresh != "never" or not algorithm.needs.given or algorithm.needs.sampler):
        found.append(
            "reference.cache: true, but only given responses under a reference that stays have log-probabilities that "
            "do; use refresh: never and source: given, or leave it out"
        )
    if reference.refresh != "never" and recipe.model.lora is not None:
        found.append(
            f"reference.refresh: {reference.refresh}, but a reference cannot follow an adapter; leave model.lora out"
        )
    if critic.warmup_steps and algorithm.critic.kind == "joint":
        found.append(
            f"critic.warmup_steps: {critic.warmup_steps}, but objective: {algorithm.objective.kind} trains policy and "
            "values in one term; leave it out"
        )
    return found


def _lengths(recipe: Recipe, location: Location, algorithm: Algorithm | None) -> list[str]:
    own = context_length(location)
    asked, longest = recipe.model.max_length, new_tokens(recipe, algorithm)
    if own is not None and asked is not None and asked > own:
        return [f"model.max_length: {asked}, but the model's context is {own}"]
    room = asked or own
    if algorithm and not algorithm.needs.sampler and not recipe.rewards:
        return []
    if room is not None and longest + (recipe.data.max_prompt_tokens or 1) > room:
        prompt = (
            f" and data.max_prompt_tokens: {recipe.data.max_prompt_tokens}" if recipe.data.max_prompt_tokens else ""
        )
        key = "rollout" if longest == recipe.rollout.max_tokens else "evaluation"
        return [f"{key}.max_tokens: {longest}{prompt} leave no room in a context of {room} tokens; lower them"]
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
    """A row that learns from win rates needs graders that compare."""
    weighed = [s for s, r in zip(signatures, recipe.rewards, strict=True) if s is not None and r.weight]
    found = []
    for signature in weighed if algorithm.needs.preference else ():
        if signature.kind != "pair":
            found.append(
                f"rewards: {signature.name} scores responses one by one, but credit: {algorithm.credit.kind} needs win "
                "rates; name a function of (completion, other, **columns) that gives the probability that completion "
                "is the better one, or use credit: group_mean"
            )
    return found


def _samples(recipe: Recipe, algorithm: Algorithm | None) -> bool:
    return algorithm is None or algorithm.needs.sampler or bool(recipe.rewards and recipe.data.eval)


def _machine(recipe: Recipe, algorithm: Algorithm | None) -> list[str]:
    mistakes, samples = [], _samples(recipe, algorithm)
    if samples and recipe.rollout.engine == "vllm" and importlib.util.find_spec("vllm") is None:
        mistakes.append(
            'rollout.engine: vllm is not installed; pip install "posttrain[vllm]" on a GPU machine, run `make install` '
            "on a CPU, or set rollout.engine: transformers"
        )
    if samples and recipe.rollout.engine == "vllm" and recipe.hardware.dtype == "float64":
        mistakes.append(
            "hardware.dtype: float64 is for proofs, and vLLM cannot run it; use rollout.engine: transformers"
        )
    return mistakes + missing(recipe.run.sinks)
