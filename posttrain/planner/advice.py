"""Changes of a recipe under which it would fit: each alone where one is enough, else added up until it does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from posttrain.algorithms.row import Algorithm
from posttrain.errors import PosttrainError
from posttrain.planner.estimate import Estimate, estimate
from posttrain.planner.machine import Machine
from posttrain.planner.shape import Shape
from posttrain.recipe import Lora, Recipe

SMALLEST_CHUNK = 64
Change = tuple[str, Any]
"""A key of the recipe, and what it should be."""


def advised(recipe: Recipe, row: Algorithm | None, shape: Shape, machine: Machine) -> Estimate:
    """The estimate, with advice where something does not fit."""
    found = estimate(recipe, row, shape, machine)
    if found.fits:
        return found
    alone: list[str] = []
    together: list[str] = []
    so_far = recipe
    # Each ladder is climbed on its own from the recipe as it is, and further on from what the ladders before it made.
    for ladder in LADDERS:
        for change in ladder(recipe, found, machine):
            changed = _tried(with_changes(recipe, change), row, shape, machine)
            if changed is not None and changed.fits:
                alone.append(f"{_words(change)}: {_totals(changed)}")
                break
        best = _best(so_far, row, shape, machine, list(ladder(so_far, found, machine)))
        if best is not None and not (together and _fits(so_far, row, shape, machine)):
            so_far = with_changes(so_far, best)
            together.append(_words(best))
    if alone:
        return replace(found, advice=tuple(alone))
    final = _tried(so_far, row, shape, machine)
    if final is not None and final.fits:
        return replace(found, advice=(f"{' '.join(together)}: {_totals(final)}",))
    tried = f"even {' '.join(together)} does not fit" if together else "no change of this recipe fits"
    return replace(found, advice=(f"{tried}: it needs a smaller model, or more or larger devices",))


def with_changes(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with other values of dotted keys."""
    out = recipe
    for key, value in changes.items():
        out = _with(out, key.split("."), value)
    return out


def _with(block: Any, keys: list[str], value: Any) -> Any:
    first, *rest = keys
    return block.model_copy(update={first: _with(getattr(block, first), rest, value) if rest else value})


def _words(change: Mapping[str, Any]) -> str:
    """As overrides of the command line."""
    return " ".join(
        f"{key}={'{rank: ' + str(value.rank) + '}' if isinstance(value, Lora) else str(value).lower()}"
        for key, value in change.items()
    )


def _totals(found: Estimate) -> str:
    return ", ".join(f"{p.name} {p.total / 1e9:.1f} of {p.room / 1e9:.1f} GB" for p in found.phases)


def _tried(recipe: Recipe, row: Algorithm | None, shape: Shape, machine: Machine) -> Estimate | None:
    try:
        return estimate(recipe, row, shape, machine)
    except PosttrainError:
        return None


def _fits(recipe: Recipe, row: Algorithm | None, shape: Shape, machine: Machine) -> bool:
    found = _tried(recipe, row, shape, machine)
    return found is not None and found.fits


def _over(found: Estimate | None) -> float:
    """Bytes by which the phases do not fit, and something that cannot be as more than any."""
    if found is None:
        return float("inf")
    return sum(max(0.0, p.total - p.room) for p in found.phases) + 1e15 * len(found.mistakes)


def _best(
    recipe: Recipe, row: Algorithm | None, shape: Shape, machine: Machine, changes: list[Mapping[str, Any]]
) -> Mapping[str, Any] | None:
    """The first of a ladder's changes that fits, else the one that comes nearest, if it comes nearer at all."""
    tried = [(_over(_tried(with_changes(recipe, change), row, shape, machine)), change) for change in changes]
    for over, change in tried:
        if over == 0.0:
            return change
    nearest = min(tried, key=lambda item: item[0], default=None)
    now = _over(_tried(recipe, row, shape, machine))
    return nearest[1] if nearest is not None and nearest[0] < now * 0.98 else None


def _micro_batches(recipe: Recipe, found: Estimate, _: Machine) -> Iterator[Mapping[str, Any]]:
    """Halved, down to a row of one prompt and one response."""
    tokens, least = recipe.hardware.learner.micro_batch_tokens, found.work.prompt + found.work.response
    while tokens // 2 >= least:
        tokens //= 2
        yield {"hardware.learner.micro_batch_tokens": tokens}


def _chunks(recipe: Recipe, *_: Any) -> Iterator[Mapping[str, Any]]:
    chunk = recipe.hardware.learner.logit_chunk
    while chunk // 2 >= SMALLEST_CHUNK:
        chunk //= 2
        yield {"hardware.learner.logit_chunk": chunk}


def _checkpointing(recipe: Recipe, *_: Any) -> Iterator[Mapping[str, Any]]:
    if recipe.algorithm is not None and not recipe.hardware.learner.gradient_checkpointing:
        yield {"hardware.learner.gradient_checkpointing": True}


def _cache(recipe: Recipe, found: Estimate, machine: Machine) -> Iterator[Mapping[str, Any]]:
    """Less for keys and values, or more where not one sequence has room."""
    memory = recipe.hardware.sampler.memory
    most = 0.9 if machine.device == "cuda" else 0.5 * machine.memory / 2**30
    if found.engine is None:
        return
    steps = [memory * 0.8**n for n in range(1, 8)] + [memory * 1.25**n for n in range(1, 9) if memory * 1.25**n <= most]
    yield from ({"hardware.sampler.memory": float(f"{size:.2g}")} for size in steps)


def _ranks(recipe: Recipe, found: Estimate, machine: Machine) -> Iterator[Mapping[str, Any]]:
    """Rows over more devices, as many as divide among the engines."""
    ranks, span = 2, found.placement.span
    while recipe.algorithm is not None and not machine.shared and ranks <= machine.devices:
        if ranks % span == 0 and (ranks > found.placement.ranks or not found.placement.sharded):
            yield {"hardware.learner.strategy": "fsdp2", "hardware.learner.processes": ranks}
        ranks *= 2


def _span(recipe: Recipe, found: Estimate, machine: Machine) -> Iterator[Mapping[str, Any]]:
    """Engines over more devices of one machine, as far as heads divide."""
    shape, ranks = found.shape, recipe.hardware.learner.processes
    for span in (2, 4, 8):
        divides = shape.heads % span == 0 and (shape.kv_heads % span == 0 or span % shape.kv_heads == 0)
        if (
            found.engine
            and span > found.placement.span
            and divides
            and ranks % span == 0
            and span <= machine.per_machine
        ):
            yield {"hardware.sampler.tensor_parallel": span}


def _adapters(recipe: Recipe, found: Estimate, _: Machine) -> Iterator[Mapping[str, Any]]:
    if recipe.algorithm is not None and recipe.model.lora is None:
        yield {"model.lora": Lora()}


def _fewer_processes(recipe: Recipe, found: Estimate, machine: Machine) -> Iterator[Mapping[str, Any]]:
    """No more than there are devices."""
    if found.placement.ranks > machine.devices and not machine.shared:
        yield {"hardware.learner.processes": machine.devices}


LADDERS = (_fewer_processes, _micro_batches, _chunks, _checkpointing, _cache, _ranks, _span, _adapters)
"""From what costs no accuracy and little time to what changes the run."""
