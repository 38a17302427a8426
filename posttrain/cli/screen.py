"""What the commands print beside their own answers: recipes, tables of figures, and errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from posttrain.build.check import Checked
from posttrain.build.outcome import Outcome, main_figures
from posttrain.build.pipeline import graph
from posttrain.errors import PosttrainError
from posttrain.recipe import dump
from posttrain.recipe.pipeline import Pipeline

console = Console(soft_wrap=True)

RecipeFile = Annotated[Path, typer.Argument(help="A recipe, as in recipes/grpo-arithmetic.yaml.", metavar="RECIPE")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value pairs put over the recipe.", metavar="KEY=VALUE")
]


def show(checked: Checked, source: str) -> None:
    console.print(f"[bold]{escape(source)}[/bold]")
    console.print(escape(dump(checked.recipe)), highlight=False)
    _show_row(checked)


def _show_row(checked: Checked) -> None:
    row = checked.row
    if row is None:
        console.print("no algorithm: the recipe only evaluates")
        return
    console.print(
        f"algorithm {row.name} ({row.paper}): " + escape("; ".join(f"{c}: {v}" for c, v in row.cells.items()))
    )
    for line in checked.equations:
        console.print(f"  {escape(line)}", highlight=False)


def show_pipeline(pipeline: Pipeline, checked: Mapping[str, Checked]) -> None:
    console.print(f"[bold]{escape(pipeline.source)}[/bold]")
    for stage in pipeline.stages:
        console.print(f"[bold]stage {escape(stage.name)}[/bold]", highlight=False)
        if stage.evaluates:
            console.print(f"figures of {escape(stage.evaluates)} on data.eval", highlight=False)
        else:
            _show_row(checked[stage.name])
    console.print("[bold]artefacts[/bold]")
    for line in graph(pipeline):
        console.print(f"  {escape(line)}", highlight=False)


def outcomes(outcomes: Sequence[Outcome]) -> Table:
    table = Table("stage", Column("made", overflow="fold"), "steps", "seconds", "figures", title="stages")
    for outcome in outcomes:
        steps = "" if outcome.steps is None else str(outcome.steps)
        figures = "\n".join(main_figures(outcome.figures))
        table.add_row(*map(escape, (outcome.stage, outcome.made, steps, f"{outcome.seconds:.0f}", figures)))
    return table


RESULTS = {
    "accuracy": "avg@k, sampled",
    "greedy": "greedy",
    "preferred": "better answer preferred (implicit reward, or score)",
    "likelier": "better answer likelier per token",
    "nll": "nats a token of the better answer",
}


def results(summary: dict[str, object]) -> Table:
    table = Table("held out", "before", "after")
    for name, label in RESULTS.items():
        if summary.get(f"{name}_after") is not None:
            table.add_row(label, *(_with_interval(summary, f"{name}_{when}") for when in ("before", "after")))
    table.caption = f"{summary['steps']} steps in {summary['seconds']:.0f} s; everything is in {summary['folder']}"
    return table


def _with_interval(figures: dict[str, object], name: str) -> str:
    if figures.get(name) is None:
        return ""
    low, high = figures.get(f"{name}_low"), figures.get(f"{name}_high")
    around = f" [{low:.3f}, {high:.3f}]" if low is not None else ""
    return escape(f"{figures[name]:.3f}{around}")


def figures(figures: dict[str, object]) -> Table:
    table = Table("figure", "value", title=str(figures.get("model", "")))
    for name, value in figures.items():
        table.add_row(escape(name), escape(f"{value:.4g}" if isinstance(value, float) else str(value)))
    return table


def complain(error: PosttrainError) -> None:
    Console(stderr=True, soft_wrap=True).print(f"[red]error:[/red] {escape(str(error))}", highlight=False)
