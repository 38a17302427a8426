"""The command line: each command reads its arguments, calls the part that knows, and prints what it did."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from posttrain import __version__
from posttrain.algorithms.describe import find, markdown, overview, page
from posttrain.algorithms.table import ALGORITHMS
from posttrain.build.check import Checked, check
from posttrain.build.outcome import Outcome, main_figures
from posttrain.build.pipeline import check_pipeline, graph
from posttrain.build.pipeline import train as train_pipeline
from posttrain.errors import PosttrainError
from posttrain.metrics import RunFolder
from posttrain.metrics.inspection import View, render
from posttrain.recipe import dump, load, parse
from posttrain.recipe.load import apply_overrides
from posttrain.recipe.pipeline import Pipeline, is_pipeline, read_pipeline

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)
console = Console(soft_wrap=True)

RecipeFile = Annotated[Path, typer.Argument(help="A recipe, as in recipes/grpo-arithmetic.yaml.", metavar="RECIPE")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="key=value pairs put over the recipe.", metavar="KEY=VALUE")
]


@app.command("check")
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
                _show_pipeline(pipeline, check_pipeline(pipeline))
            else:
                _show(check(load(file, overrides), file), file)
        except PosttrainError as error:
            wrong += 1
            _complain(error)
    if wrong or not files:
        raise typer.Exit(1)


@app.command()
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
            _show_pipeline(pipeline, stages)
        console.print(_outcomes(train_pipeline(pipeline, stages, force)))
        return
    checked = check(load(recipe, overrides or []), str(recipe))
    if not quiet:
        _show(checked, str(recipe))
    # torch and the engines are imported only now that the recipe is known to be right.
    from posttrain.build.run import train as run

    summary = run(checked, force=force, started=started)
    console.print(_results(summary))


@app.command()
def evaluate(
    target: Annotated[
        Path, typer.Argument(help="A recipe (its model as it comes) or a run folder (its newest checkpoint).")
    ],
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Measure held-out accuracy with its intervals: avg@k at the recipe's temperature, and greedy."""
    folder = RunFolder(target) if target.is_dir() else None
    tree = folder.recipe() if folder else None
    over = overrides or []
    recipe = load(target, over) if tree is None else parse(apply_overrides(tree, over), str(target))
    checked = check(recipe, str(target))
    from posttrain.build.run import evaluate as run

    figures = run(checked, folder)
    if as_json:
        print(json.dumps(figures, indent=1))
    else:
        console.print(_figures(figures))


@app.command()
def inspect(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    step: Annotated[
        int | None, typer.Option(help="Show this step's roll-outs; all steps in a table otherwise.")
    ] = None,
    count: Annotated[int, typer.Option(help="How many groups to show.")] = 4,
    rollout: Annotated[str | None, typer.Option(help="GROUP.INDEX: this roll-out, token by token.")] = None,
) -> None:
    """Look at a run: its steps, or a step's roll-outs with text, rewards by part, tokens and advantages."""
    console.print(render(RunFolder(run), step, View(count=count, rollout=rollout)))


@app.command()
def algorithms(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="One row: its formulas, and every line that changes it.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON: the table, or the row.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print docs/algorithms.md.")] = False,
) -> None:
    """Print the table of algorithms, or one of its rows."""
    if as_markdown and (name or as_json):
        raise PosttrainError("--markdown prints the whole page; leave NAME and --json out")
    row = find(name) if name else None
    if as_json:
        print(json.dumps(row.as_json() if row else [r.as_json() for r in ALGORITHMS.values()], indent=1))
    elif as_markdown:
        print(markdown(), end="")
    elif row:
        for section in page(row):
            console.print(f"[bold]{escape(section.heading)}[/bold]", highlight=False)
            for line in section.lines:
                console.print(f"  {escape(line)}", highlight=False)
    else:
        table = Table("name", "paper", "what makes it", "needs", box=None, pad_edge=False)
        for entry in overview():
            table.add_row(*map(escape, entry))
        console.print(table)


@app.command()
def version() -> None:
    """Print the version."""
    print(__version__)


def _show(checked: Checked, source: str) -> None:
    console.print(f"[bold]{escape(source)}[/bold]")
    console.print(escape(dump(checked.recipe)), highlight=False)
    _show_row(checked)


def _show_row(checked: Checked) -> None:
    row = checked.algorithm
    console.print(
        f"algorithm {row.name} ({row.paper}): " + escape("; ".join(f"{c}: {v}" for c, v in row.cells.items()))
    )
    for line in checked.equations:
        console.print(f"  {escape(line)}", highlight=False)


def _show_pipeline(pipeline: Pipeline, checked: Mapping[str, Checked]) -> None:
    console.print(f"[bold]{escape(pipeline.source)}[/bold]")
    for stage in pipeline.stages:
        console.print(f"[bold]stage {escape(stage.name)}[/bold]", highlight=False)
        if stage.evaluates:
            console.print(f"figures of stage {stage.evaluates} on data.eval", highlight=False)
        else:
            _show_row(checked[stage.name])
    console.print("[bold]artefacts[/bold]")
    for line in graph(pipeline):
        console.print(f"  {escape(line)}", highlight=False)


def _outcomes(outcomes: Sequence[Outcome]) -> Table:
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


def _results(summary: dict[str, object]) -> Table:
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


def _figures(figures: dict[str, object]) -> Table:
    table = Table("figure", "value", title=str(figures.get("model", "")))
    for name, value in figures.items():
        table.add_row(escape(name), escape(f"{value:.4g}" if isinstance(value, float) else str(value)))
    return table


def _complain(error: PosttrainError) -> None:
    Console(stderr=True, soft_wrap=True).print(f"[red]error:[/red] {escape(str(error))}", highlight=False)


def main() -> None:
    """Entry point: errors meant for people are printed without a traceback, and the exit code is not zero."""
    try:
        app()
    except PosttrainError as error:
        if os.environ.get("POSTTRAIN_TRACEBACK"):
            raise
        _complain(error)
        sys.exit(1)
    except KeyboardInterrupt:
        _complain(PosttrainError("interrupted; run the same command again to go on from the newest checkpoint"))
        sys.exit(130)
