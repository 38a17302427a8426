"""Commands that read a recipe or a run folder: check, train, evaluate, inspect."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from posttrain.build.check import check
from posttrain.build.launch import run_ranks
from posttrain.build.pipeline import check_pipeline
from posttrain.build.pipeline import train as train_pipeline
from posttrain.cli.screen import (
    Overrides,
    RecipeFile,
    complain,
    console,
    figures,
    outcomes,
    results,
    show,
    show_pipeline,
)
from posttrain.errors import PosttrainError
from posttrain.metrics import RunFolder
from posttrain.metrics.inspection import View, render
from posttrain.metrics.timetable import as_json as times
from posttrain.metrics.timetable import render_time
from posttrain.recipe import load, parse
from posttrain.recipe.load import apply_overrides
from posttrain.recipe.pipeline import is_pipeline, read_pipeline
from posttrain.world import launched, main_process


def check_command(recipes: Annotated[list[str], typer.Argument(metavar="RECIPE... [KEY=VALUE...]")]) -> None:
    """Show whole recipes with every default, what follows from their numbers, and every mistake.

    Of a pipeline: every stage, and which artefact goes where.
    """
    files = [text for text in recipes if "=" not in text]
    overrides = [text for text in recipes if "=" in text]
    wrong = 0
    for file in files:
        try:
            if is_pipeline(file):
                pipeline = read_pipeline(file, overrides)
                show_pipeline(pipeline, check_pipeline(pipeline))
            else:
                show(check(load(file, overrides), file), file)
        except PosttrainError as error:
            wrong += 1
            complain(error)
    if wrong or not files:
        raise typer.Exit(1)


def train(
    recipe: RecipeFile,
    overrides: Overrides = None,
    force: Annotated[bool, typer.Option(help="Continue a folder that holds a different recipe.")] = False,
    quiet: Annotated[bool, typer.Option(help="Do not print the recipe first.")] = False,
) -> None:
    """Run a recipe, or continue it where its run folder stopped; of a pipeline, every stage that is not finished."""
    started = time.perf_counter()
    if is_pipeline(recipe):
        pipeline = read_pipeline(recipe, overrides or [])
        stages = check_pipeline(pipeline)
        if not quiet:
            show_pipeline(pipeline, stages)
        console.print(outcomes(train_pipeline(pipeline, stages, force)))
        return
    checked = check(load(recipe, overrides or []), str(recipe))
    if not quiet and main_process():
        show(checked, str(recipe))
    processes = checked.recipe.hardware.learner.processes
    if processes > 1 and not launched():
        flags = ["--quiet", *(["--force"] if force else [])]
        code = run_ranks(["train", str(recipe), *flags, *(overrides or [])], processes)
        raise typer.Exit(code)
    # torch and the engines are imported only now that the recipe is known to be right.
    from posttrain.build.run import train as run

    summary = run(checked, force=force, started=started)
    if summary:
        console.print(results(summary))


def evaluate(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE|RUN", help="A recipe (its model as it comes) or a run folder (its newest checkpoint)."
        ),
    ] = None,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Where the result file is written.")] = None,
    rescored: Annotated[
        Path | None,
        typer.Option("--rescore", metavar="FILE", help="Grade the completions of a result file anew, without a model."),
    ] = None,
) -> None:
    """Measure on held-out problems, with intervals; every prompt, completion and verdict goes into a result file."""
    found = _rescored(rescored, out, target, overrides or []) if rescored else _evaluated(target, out, overrides or [])
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        console.print(figures(found))


def _evaluated(target: str | None, out: Path | None, overrides: list[str]) -> dict[str, Any]:
    if target is None:
        raise PosttrainError("evaluate: nothing to evaluate; give a recipe, a run folder, or --rescore FILE")
    folder = RunFolder(target) if Path(target).is_dir() else None
    tree = folder.recipe() if folder else None
    recipe = load(target, overrides) if tree is None else parse(apply_overrides(tree, overrides), target)
    checked = check(recipe, target)
    # torch and the engines are imported only now that the recipe is known to be right.
    from posttrain.build.run import evaluate as run

    return run(checked, folder, out)


def _rescored(file: Path, out: Path | None, target: str | None, overrides: list[str]) -> dict[str, Any]:
    # A file with its recipe inside needs no other, so the first word is an override already.
    over = [target, *overrides] if target else overrides
    recipe = next((text for text in over if "=" not in text), None)
    if recipe is not None:
        raise PosttrainError(f"--rescore {file}: reads no recipe and no run; leave {recipe!r} out")
    from posttrain.build.rescore import rescore

    return rescore(file, out, over)


def inspect(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    step: Annotated[
        int | None, typer.Option(help="Show this step's roll-outs; all steps in a table otherwise.")
    ] = None,
    count: Annotated[int, typer.Option(help="How many groups to show.")] = 4,
    rollout: Annotated[str | None, typer.Option(help="GROUP.INDEX: this roll-out, token by token.")] = None,
    timed: Annotated[bool, typer.Option("--time", help="Show where each step's seconds went, by phase.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --time: print the figures as JSON.")] = False,
) -> None:
    """Look at a run: its steps or their seconds, or a step's roll-outs with text, rewards by part and tokens."""
    if timed and (step is not None or rollout is not None):
        raise PosttrainError("--time: is of all steps; leave --step and --rollout out")
    if as_json and not timed:
        raise PosttrainError("--json: goes with --time; the roll-outs themselves are JSON, in the folder rollouts")
    if as_json:
        print(json.dumps(times(RunFolder(run)), indent=1))
        return
    if timed:
        console.print(render_time(RunFolder(run)))
        return
    console.print(render(RunFolder(run), step, View(count=count, rollout=rollout)))
