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
    plan: Annotated[
        str | None,
        typer.Option(
            metavar="KEY=VALUE,...", help="Of the tests: level, power, smallest (difference), per_look, looks."
        ),
    ] = None,
    picture: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it into this .png.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Compare evaluations on the same problems: paired per problem, and across seeds, with intervals.

    The plan is by default level=.05, power=.8, per_look=5, looks=4, and the difference that was seen for the smallest
    that is worth finding. The test over seeds holds its level only where the plan was made before the first look.
    """
    from posttrain.metrics import comparison
    from posttrain.metrics.seeds import Plan

    found = comparison.compare(systems, metric, Plan.of(plan or ""))
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        console.print(comparison.render(found))
    if picture is not None:
        comparison.picture(found, picture)
        if not as_json:
            console.print(f"drawn into {escape(str(picture))}")
