"""`posttrain plan`: memory, traffic and time of each phase on a machine, before anything is started."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from posttrain.algorithms.row import Algorithm
from posttrain.build.check import check
from posttrain.build.pipeline import check_pipeline
from posttrain.cli.screen import Overrides, RecipeFile, console
from posttrain.errors import RecipeError
from posttrain.planner import (
    Estimate,
    Machine,
    Shape,
    advised,
    config_at,
    describe_machine,
    read_config,
    read_machine,
    this_machine,
)
from posttrain.recipe import Recipe, load
from posttrain.recipe.pipeline import is_pipeline, read_pipeline


def plan(
    recipe: RecipeFile,
    overrides: Overrides = None,
    machine: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A machine, as in configs/machine; this one's CPU otherwise.")
    ] = None,
    shape: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The model's config.json, where the model is not here.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Show what a recipe takes of memory, links and time in each phase, and what would make it fit."""
    described = read_machine(machine) if machine else None
    found = {
        name: advised(one, row, _shape(one, shape), described or _default(one))
        for name, one, row in _recipes(recipe, overrides or [])
    }
    if as_json:
        trees = {name: estimate.tree() for name, estimate in found.items()}
        print(json.dumps(trees if is_pipeline(recipe) else next(iter(trees.values())), indent=1))
    else:
        for name, estimate in found.items():
            show(name, estimate)
    if not all(estimate.fits for estimate in found.values()):
        raise typer.Exit(1)


def _recipes(file: Path, overrides: Sequence[str]) -> list[tuple[str, Recipe, Algorithm | None]]:
    """The recipe by its file, or every stage, whose model is the one that it came from at first; with the row that it
    learns by.
    """
    if not is_pipeline(file):
        checked = check(load(file, overrides), str(file))
        return [(str(file), checked.recipe, checked.row)]
    pipeline = read_pipeline(file, overrides)
    found = check_pipeline(pipeline)
    return [
        (f"stage {stage.name}", found[stage.name].recipe, None if stage.evaluates else found[stage.name].row)
        for stage in pipeline.stages
    ]


def _shape(recipe: Recipe, file: Path | None) -> Shape:
    return Shape.of(read_config(file) if file else config_at(recipe.model.path, recipe.model.revision))


def _default(recipe: Recipe) -> Machine:
    if recipe.hardware.device == "cuda":
        raise RecipeError(
            [
                "hardware.device: cuda, but no machine is described; give --machine FILE: "
                "configs/machine/8xh200.yaml, configs/machine/64xh100.yaml, or your own with the same keys"
            ]
        )
    return this_machine()


def show(name: str, found: Estimate) -> None:
    """The estimate as tables."""
    console.print(f"[bold]{escape(name)}[/bold]")
    for line in _heading(found):
        console.print(f"  {escape(line)}", highlight=False)
    console.print(_memory(found))
    console.print(_time(found))
    for phase in found.phases:
        if phase.note:
            console.print(f"  {escape(phase.name)}: {escape(phase.note)}", highlight=False)
    for line in found.misfits:
        console.print(f"[red]does not fit:[/red] {escape(line)}", highlight=False)
    for line in found.advice:
        console.print(f"[yellow]would fit:[/yellow] {escape(line)}", highlight=False)


def _heading(found: Estimate) -> list[str]:
    shape, work, placement = found.shape, found.work, found.placement
    trains = f", of which {_count(found.trained)} learn" if found.trained else ""
    return [
        describe_machine(found.machine),
        f"{shape.family}: {_count(shape.parameters)} parameters{trains}; {placement.strategy} over {placement.ranks} "
        f"ranks, engines over {placement.span}, {8 * placement.itemsize} bits",
        f"a step: {work.prompts} prompts of {work.prompt} tokens x {work.group} = {work.sequences} responses of "
        f"{work.response} tokens = {work.learnt} response tokens; {work.positions} positions learnt from",
        *(f"assumed: {text}" for text in work.assumed),
    ]


def _memory(found: Estimate) -> Table:
    names = dict.fromkeys(name for phase in found.phases for name, size in phase.memory.items() if size)
    table = Table("GB on each device", *(phase.name for phase in found.phases))
    for name in names:
        table.add_row(name, *(_gigabytes(phase.memory.get(name, 0.0)) for phase in found.phases))
    table.add_section()
    table.add_row("in all", *(f"[{_colour(p.fits)}]{_gigabytes(p.total)}[/]" for p in found.phases))
    table.add_row("room", *(_gigabytes(phase.room) for phase in found.phases))
    return table


def _time(found: Estimate) -> Table:
    seconds = found.seconds
    whole = sum(seconds.values())
    table = Table("a step", "seconds", "share")
    for name, each in seconds.items():
        style = "bold" if name == found.largest else ""
        table.add_row(name, f"{each:.3g}", f"{each / whole:.0%}" if whole else "", style=style)
    table.add_section()
    table.add_row("in all", f"{whole:.3g}", "")
    moved = ", ".join(f"{p.name} {p.moved / 1e9:.3g} GB" for p in found.phases if p.moved)
    table.caption = f"received from other ranks: {moved or 'nothing'}; grading and evaluation are not counted"
    return table


def _colour(fits: bool) -> str:
    return "green" if fits else "red"


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.2f}" if size else ""


def _count(number: int) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.4g}{unit}"
    return str(number)
