"""`posttrain compare`: whether one system is better than another, and how sure that is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from posttrain.cli.screen import console


def compare(
    systems: Annotated[
        list[str],
        typer.Argument(
            metavar="A B...",
            help="Result files or run folders; NAME=A,B,... for several seeds of one.",
        ),
    ],
    metric: Annotated[str | None, typer.Option(metavar="NAME", help="What is compared.")] = None,
    level: Annotated[float, typer.Option(help="How often equal systems may be told apart, in all.")] = 0.05,
    power: Annotated[float, typer.Option(help="How often what is advised would find a difference.")] = 0.8,
    smallest: Annotated[
        float | None, typer.Option(metavar="DIFFERENCE", help="What is worth finding; else what was seen.")
    ] = None,
    per_look: Annotated[int, typer.Option(metavar="SEEDS", help="New seeds before each look of the test.")] = 5,
    looks: Annotated[int, typer.Option(help="How often the test over seeds may look.")] = 4,
    picture: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it into this .png.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Compare evaluations on the same problems: paired per problem, and across seeds, with intervals.

    The test over seeds holds its level only where level, seeds and looks were chosen before the first look.
    """
    from posttrain.metrics import comparison
    from posttrain.metrics.seeds import Plan

    found = comparison.compare(systems, metric, Plan(per_look, looks, level, power, smallest))
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        console.print(comparison.render(found))
    if picture is not None:
        comparison.picture(found, picture)
        if not as_json:
            console.print(f"drawn into {escape(str(picture))}")
