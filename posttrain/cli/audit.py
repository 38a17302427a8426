"""`posttrain audit`: a verifier's error rates on rows whose verdict is known."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.progress import track
from rich.table import Column, Table

from posttrain.cli.screen import console
from posttrain.errors import PosttrainError
from posttrain.recipe import Grading
from posttrain.recipe.load import apply_overrides
from posttrain.rewards.audit import Auditor
from posttrain.rewards.audit_report import AuditReport, Judged
from posttrain.rewards.shipped import AuditSet, set_names, sets_called, sets_of

SHOWN = 90
"""Characters of a completion or a reason in the table of wrong cases."""


def audit(
    verifier: Annotated[
        str, typer.Argument(help="package.module:Name, or the name of a set that ships with one, as in math.")
    ],
    rest: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE.jsonl] [KEY=VALUE...]",
            help="Rows with completion, expect, kind and columns (the shipped ones where left out), and settings.",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Settings of the verifier's class.")
    ] = None,
    threshold: Annotated[float | None, typer.Option(help="A score from here on is accepted; 1 by default.")] = None,
    max_false_positives: Annotated[float, typer.Option(min=0, max=1, help="Exit with 1 above this rate.")] = 1.0,
    max_false_negatives: Annotated[float, typer.Option(min=0, max=1, help="Exit with 1 above this rate.")] = 1.0,
    workers: Annotated[int, typer.Option(min=1, help="Processes that grade.")] = 2,
    timeout: Annotated[float, typer.Option(help="Seconds for one verdict.")] = 10.0,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Tell how often a verifier accepts what is wrong and refuses what is right, with intervals and every wrong case.

    Graded in the processes that training grades in; kept verdicts are not read, so that times are times.
    """
    words = rest or []
    files = [word for word in words if "=" not in word]
    if len(files) > 1:
        raise PosttrainError(f"audit: one file of rows at a time, not {' and '.join(files)}")
    given = apply_overrides({}, [*(settings or []), *(word for word in words if "=" in word)])
    chosen = _chosen(verifier, files[0] if files else None, given)
    if threshold is not None:
        chosen = AuditSet(chosen.rows, chosen.verifier, chosen.settings, threshold)
    if timeout <= 0:
        raise PosttrainError(f"--timeout: {timeout:g} is not above 0")
    report = Auditor(Grading(workers=workers, timeout=timeout), watch=_watched).audit(chosen)
    if as_json:
        print(json.dumps(report.as_json(), indent=1))
    else:
        console.print(_shown(report))
    if too_many := _too_many(report, {False: max_false_positives, True: max_false_negatives}):
        print("\n".join(too_many), file=sys.stderr)
        raise typer.Exit(1)


def _chosen(verifier: str, file: str | None, settings: Mapping[str, Any]) -> AuditSet:
    """The set that the command line means. Raises PosttrainError naming what there is instead."""
    if ":" not in verifier:
        found = sets_called(verifier)
        if not found:
            there = ", ".join(set_names()) or "none"
            raise PosttrainError(f"audit: no set called {verifier!r} ships with a verifier; there is: {there}")
        where = f"the name {verifier!r}"
    elif file is not None:
        return AuditSet(Path(file), verifier, settings)
    else:
        found = sets_of(verifier)
        found = [one for one in found if one.settings == settings] or found
        where = verifier
    if not found:
        raise PosttrainError(f"audit: no set ships for {verifier}; give a file of rows")
    if len(found) > 1:
        names = ", ".join(f"{one.name} ({one.verifier})" for one in found)
        raise PosttrainError(f"audit: several sets ship for {where}: {names}; name one of them, or give a file")
    (one,) = found
    return AuditSet(Path(file) if file else one.rows, one.verifier, {**one.settings, **settings}, one.threshold)


def _too_many(report: AuditReport, maxima: Mapping[bool, float]) -> list[str]:
    """What is above its maximum. A rate of which nothing could be graded is not known to be below one."""
    found = []
    for expect, most in maxima.items():
        rate, name = report.rate(expect), "negatives" if expect else "positives"
        if (1.0 if rate.share is None else rate.share) > most:
            found.append(f"false {name}: {rate}, above the maximum of {most:g}")
    return found


def _watched(things: Iterable[Judged | None], count: int) -> Iterable[Judged | None]:
    screen = Console(stderr=True)
    return track(things, "auditing", total=count, console=screen, transient=True, disable=not screen.is_terminal)


def _shown(report: AuditReport) -> RenderableType:
    source = report.source
    title = f"{source.verifier} on {source.rows}, a score of {source.threshold:g} and more accepted"
    matrix = Table("expected", "accepted", "refused", "not graded", title=escape(title), title_justify="left")
    for expect, name in ((True, "right"), (False, "wrong")):
        matrix.add_row(name, *(str(report.count(expect, accepted)) for accepted in (True, False, None)))
    lines = [f"false positives  {report.rate(False)}", f"false negatives  {report.rate(True)}"]
    spent = report.seconds_per_verdict()
    if spent is not None:
        each = ", ".join(f"{name} {1000 * value:.3g} ms" for name, value in spent.items())
        lines.append(f"a verdict takes  {each}; {report.timeouts} timeouts; {report.seconds:.1f} s in all")
    return Group(matrix, escape("\n".join(lines)), *_kinds(report), *_wrong(report))


def _kinds(report: AuditReport) -> list[RenderableType]:
    if report.kinds == ("",):
        return []
    table = Table("kind", "rows", "false positives", "false negatives", "not graded", box=None)
    for kind in report.kinds:
        false = [report.rate(expect, kind).wrong for expect in (False, True)]
        ungraded = [report.count(expect, None, kind) for expect in (False, True)]
        rows = sum(one.row.kind == kind for one in report.judged)
        table.add_row(escape(kind), *map(str, (rows, *false, sum(ungraded))))
    return [table]


def _wrong(report: AuditReport) -> list[RenderableType]:
    tables: list[RenderableType] = []
    for name, found in (
        ("accepted, but wrong", report.false_positives),
        ("refused, but right", report.false_negatives),
        ("not graded", report.ungraded),
    ):
        if found:
            tables.append(_cases(name, found))
    return tables


def _cases(name: str, found: Sequence[Judged]) -> Table:
    table = Table("line", "kind", Column("completion", overflow="fold"), "score", Column("reason", overflow="fold"))
    table.title, table.title_justify = name, "left"
    for one in found:
        score = one.part.status if one.part.score is None else f"{one.part.score:.3g}"
        texts = (str(one.row.line), one.row.kind, _cut(one.row.completion), score, _cut(one.part.reason))
        table.add_row(*map(escape, texts))
    return table


def _cut(text: str) -> str:
    """One line of a text; the end of a long one, where an answer stands."""
    plain = " ".join(text.split())
    return plain if len(plain) <= SHOWN else f"… {plain[-SHOWN:]}"
