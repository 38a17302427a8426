"""Commands that need no recipe: the table of algorithms, and the version."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from posttrain import __version__
from posttrain.algorithms.describe import find, markdown, overview, page
from posttrain.algorithms.table import ALGORITHMS
from posttrain.cli.screen import console
from posttrain.errors import PosttrainError


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


def version() -> None:
    """Print the version."""
    print(__version__)
