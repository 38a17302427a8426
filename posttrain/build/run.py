"""Start, continue and end runs: the folder, the parts, the loop, and the summary."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from posttrain.build import companions, wire
from posttrain.build.check import Checked
from posttrain.build.companions import Checkpoint
from posttrain.build.engines import make_sampler
from posttrain.build.heading import drawing, header, refuse_other
from posttrain.build.machine import device_of, resolved
from posttrain.build.measure import figures
from posttrain.build.measure import measure as measure_scorer
from posttrain.build.process import stopping
from posttrain.build.reading import Read, read, read_held
from posttrain.errors import RecipeError
from posttrain.evaluation import evaluate as measure
from posttrain.evaluation import items
from posttrain.evaluation import summary as summarise
from posttrain.learner.checkpoint import restore
from posttrain.loops.held_out import HeldOutAnswers
from posttrain.loops.offline import offline
from posttrain.loops.online import online
from posttrain.metrics import RunFolder, open_sinks
from posttrain.metrics.curves import draw
from posttrain.metrics.durable import to_json, write_atomically
from posttrain.metrics.results import Results, results_path, write
from posttrain.metrics.unfinished import unfinished, unfinished_path
from posttrain.models.checkpoint import load_policy, merged_weights
from posttrain.ranks import connected
from posttrain.recipe import Recipe, dump
from posttrain.rewards import Grader
from posttrain.rewards.audit import auditing
from posttrain.world import ALONE, World, main_process

console = Console(soft_wrap=True, highlight=False)
notes = Console(stderr=True, soft_wrap=True, highlight=False)
"""What is said beside figures that may be read by a program."""


def train(checked: Checked, force: bool, started: float) -> dict[str, Any]:
    """Run a recipe to its last step and return its summary, which also stands in `summary.json`.

    Of several ranks the first one speaks and writes; the others return nothing.
    """
    hardware = checked.recipe.hardware
    folder = RunFolder(checked.recipe.run.folder)
    disable_progress_bar()
    console.quiet = notes.quiet = not main_process()
    with folder.lock() if main_process() else contextlib.nullcontext():
        with connected(device_of(checked.recipe), hardware.patience) as world, stopping() as told_to_stop:
            refuse_other_world(checked.recipe, world)
            checked, line = resolved(checked, world, folder)
            if line:
                console.print(line)
            data = _trained(checked, folder, force, world, told_to_stop)
        if world.rank:
            return {}
        if checked.algorithm.needs.scorer and data.held:
            console.print("measuring the reward model")
            measured(checked, folder, data)
        return finish(checked, folder, time.perf_counter() - started)


def _trained(checked: Checked, folder: RunFolder, force: bool, world: World, told_to_stop: Callable[[], bool]) -> Read:
    """All steps of a run, by all ranks together; the data it was trained and is measured on."""
    recipe, algorithm = checked.recipe, checked.algorithm
    console.print(f"model: {recipe.model.path} (a .gguf file is dequantised the first time)")
    checkpoint = wire.open_checkpoint(recipe, world=world)
    resumed = world.shared(lambda: folder.open(dump(recipe), override=force, device=checkpoint.device))
    steps = folder.checkpoints()
    if resumed and steps:
        console.print(f"continuing {folder.path} after step {steps[-1]}")
    data = read(checked, checkpoint)
    for key, report in data.reports.items():
        console.print(f"{key}: {report}")
    if data.contamination is not None and world.rank == 0:
        console.print(data.contamination.report(), markup=False)
        write_atomically(
            folder.path / "contamination.json", [to_json(data.contamination.as_json(), "contamination"), "\n"]
        )
    sinks = open_sinks(recipe.run.sinks, folder, recipe) if world.rank == 0 else []
    try:
        console.print(f"starting the learner on {checkpoint.device}" + (f", {world.size} ranks" * (world.size > 1)))
        if algorithm.source.kind in ("given", "conditioned"):
            with _audited(recipe, world) as say, wire.wired_offline(checked, folder, sinks, data, checkpoint) as given:
                say()
                if given.engine is not None:
                    console.print(given.engine.publishing.words, markup=False)
                given.progress.told_to_stop = told_to_stop
                offline(given)
            # The learner's memory is wanted by what measures it.
            del given
        else:
            with _audited(recipe, world) as say, wire.wired_online(checked, folder, sinks, data, checkpoint) as sampled:
                say()
                console.print(sampled.engine.publishing.words, markup=False)
                sampled.progress.told_to_stop = told_to_stop
                online(sampled)
    finally:
        for sink in sinks:
            sink.close()
    return data


@contextlib.contextmanager
def _audited(recipe: Recipe, world: World) -> Iterator[Callable[[], None]]:
    """Audits of the recipe's verifiers, by the first rank, while engine and learner are loaded: say what they found."""
    if world.rank:
        yield lambda: None
        return
    with auditing(recipe.rewards, recipe.grading) as lines:

        def say() -> None:
            for line in lines():
                console.print(line, markup=False)

        yield say


def refuse_other_world(recipe: Recipe, world: World) -> None:
    """Raises RecipeError where the launcher's processes are not what the recipe is written for."""
    learner, sampler = recipe.hardware.learner, recipe.hardware.sampler
    span = sampler.tensor_parallel if sampler.placement == "colocated" else 1
    if world.size > 1 and learner.strategy == "single":
        raise RecipeError(
            [f"hardware.learner.strategy: single, but {world.size} processes were started; use ddp or fsdp2"]
        )
    if world.size == 1 and learner.offload != "none":
        raise RecipeError([f"hardware.learner.offload: {learner.offload}, but one process has no engine; use none"])
    if world.size % span:
        raise RecipeError([f"hardware.sampler.tensor_parallel: {span} does not divide the {world.size} processes"])


def measured(checked: Checked, folder: RunFolder, data: Read | None = None) -> dict[str, Any]:
    """The figures of a run's newest reward model, also written on its card, in the run and beside the weights."""
    step, place = wire.newest_policy(folder)
    checkpoint = wire.open_checkpoint(checked.recipe, place)
    data = read_held(checked, checkpoint) if data is None and checked.recipe.data.eval else data
    if data is None or not data.held:
        raise RecipeError(["data.eval: missing, so there is nothing to measure a reward model on; add it"])
    card = measure_scorer(checked, checkpoint, data, [place, folder.path])
    return {"model": str(folder.path), "step": step, **figures(card)}


def finish(checked: Checked, folder: RunFolder, seconds: float) -> dict[str, Any]:
    """Write `summary.json` and draw `curves.png` from what the run wrote down."""
    lines = folder.read_metrics()
    evaluated = [line for line in lines if any(name.startswith("eval/") for name in line)]
    summary: dict[str, Any] = summarise(evaluated[0], evaluated[-1]) if evaluated else {}
    stepping = sum(line.get("step/seconds", 0.0) for line in lines)
    summary |= {
        "steps": lines[-1]["step"],
        "seconds": max(seconds, stepping),
        "algorithm": checked.algorithm.name,
        "folder": str(folder.path),
    }
    folder.write_summary(summary)
    draw(lines, folder.path / "curves.png", f"{checked.algorithm.name}, {folder.path.name}")
    return summary


def evaluate(checked: Checked, folder: RunFolder | None, out: Path | None = None) -> dict[str, Any]:
    """Figures of the recipe's model as it comes, or of a run's newest checkpoint: accuracy on what it says to held-out
    prompts, what it makes of held-out answers, or a reward model's card. RecipeError without data.eval.

    What it says is written down as results: in `out`, else in the run folder (the recipe's own where none is given).
    """
    checked, line = resolved(checked, ALONE)
    if line:
        notes.print(line)
    recipe = checked.recipe
    if recipe.data.eval is None:
        raise RecipeError(["data.eval: missing, so there is nothing to evaluate on; add it"])
    disable_progress_bar()
    if checked.scores:
        if folder is None:
            raise RecipeError(["algorithm: it trains a reward model; evaluate the folder of its run"])
        return measured(checked, folder)
    step, policy = wire.newest_policy(folder) if folder else (0, None)
    checkpoint = wire.open_checkpoint(recipe, policy)
    data = read_held(checked, checkpoint)
    for key, report in data.reports.items():
        notes.print(f"{key}: {report}")
    found: dict[str, Any] = {}
    if data.held_prompts and recipe.rewards:
        path = out or results_path(folder.path if folder else recipe.run.folder, step)
        found |= _responses(recipe, checkpoint, data, step, path)
    if data.held:
        learner = wire.make_learner(checked, wire.open_checkpoint(recipe))
        if folder:
            restore(folder.checkpoint_path(step), learner)
        shares = companions.shares(recipe.reference)
        found |= HeldOutAnswers(learner, checked.algorithm, data.held, shares)()[0].values()
    return {"model": str(folder.path if folder else recipe.model.path), "step": step, **found}


def _of_one_process(recipe: Recipe) -> Recipe:
    """The recipe with an engine that one process holds: an evaluation has no ranks that an engine could span."""
    sampler = recipe.hardware.sampler
    if sampler.placement == "servers" or sampler.tensor_parallel == 1:
        return recipe
    notes.print(f"hardware.sampler.tensor_parallel: {sampler.tensor_parallel} is for a run's ranks; here it is 1")
    alone = sampler.model_copy(update={"tensor_parallel": 1})
    return recipe.model_copy(update={"hardware": recipe.hardware.model_copy(update={"sampler": alone})})


def _responses(recipe: Recipe, checkpoint: Checkpoint, data: Read, step: int, path: Path) -> dict[str, Any]:
    """What the model in a checkpoint says to held-out prompts, graded, and written down in `path`. What was killed goes
    on where it was, and writes the same bytes.
    """
    plain = recipe.model.model_copy(update={"lora": None})
    heading = header(recipe, checkpoint, data.held_prompts, step)
    refuse_other(path, heading)
    partial = unfinished_path(path)
    with Grader(recipe.rewards, recipe.grading) as grader:
        benchmark = wire.make_benchmark(recipe, data.held_prompts, grader)
        assert benchmark is not None
        with unfinished(partial, drawing(heading, checkpoint.folder, benchmark.at_once)) as kept:
            if kept.responses:
                notes.print(f"{kept.responses} responses were drawn before, and are read from {partial}", markup=False)
            # A checkpoint's policy is whole: its adapter has been merged.
            whole = _of_one_process(recipe).model_copy(update={"model": plain})
            sampler = make_sampler(whole, checkpoint, data.max_length)
            model = load_policy(checkpoint.folder, plain, checkpoint.dtype, checkpoint.device)
            sampler.load(merged_weights(model), step)
            result = measure(sampler, benchmark, kept)
            write(path, Results(heading, items(benchmark, result.groups)))
    return {**result.metrics, "results": str(path)}
