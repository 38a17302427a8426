"""The table in words: what each row and cell is, and the recipe lines that change it. Imports no torch."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from posttrain.algorithms.catalogue import CATALOGUE
from posttrain.algorithms.cells import Kind
from posttrain.algorithms.replacing import line, replacing
from posttrain.algorithms.row import DEFAULTS, Algorithm
from posttrain.algorithms.table import ALGORITHMS
from posttrain.algorithms.variants import VARIANTS
from posttrain.algorithms.words import COLUMNS, NEEDS, bounds, differs, inside, needs, paper, sentence, text
from posttrain.errors import PosttrainError

LISTED = ("lists", "unpaired")
"""Formulas of ranked lists, and of single answers with a thumb."""


def _given(row: Algorithm) -> bool:
    """Whether a policy learns from given answers alone, whoever said them."""
    needs = row.needs
    return needs.given and not (needs.scorer or needs.refresh or needs.opponent)


def _listed(row: Algorithm) -> bool:
    return (row.objective.entry.function or "").startswith(LISTED)


FAMILIES: tuple[tuple[str, Callable[[Algorithm], bool]], ...] = (
    ("Supervised", lambda r: _given(r) and r.credit.kind == "ones"),
    ("Lists, and single answers with a thumb", lambda r: _given(r) and _listed(r)),
    ("Pairs against a reference", lambda r: _given(r) and r.needs.pairs and r.needs.reference),
    ("Pairs without a reference", lambda r: _given(r) and r.needs.pairs),
    ("Responses that come with scores", _given),
    ("Played against an earlier policy", lambda r: r.needs.refresh or r.needs.opponent),
    ("Reward models", lambda r: r.needs.scorer),
    ("With a critic", lambda r: r.needs.critic),
    ("A group learnt as a set", lambda r: r.objective.entry.level == "set"),
    ("What was right, learnt like a text", lambda r: r.keep.kind != "all"),
    ("The policy gradient without a ratio", lambda r: not r.objective.entry.asks),
    ("PPO's clip without a critic", lambda r: r.objective.kind == "clip" and r.ratio.kind == "token"),
    ("Other objectives and ratios", lambda r: True),
)
"""A row belongs to the first family that is true of it."""


class Section(NamedTuple):
    """A heading and the lines under it."""

    heading: str
    lines: list[str]


def find(name: str) -> Algorithm:
    """The row of a name. Raises PosttrainError with the nearest one."""
    if name in ALGORITHMS:
        return ALGORITHMS[name]
    near = difflib.get_close_matches(name, ALGORITHMS, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"the table has {', '.join(ALGORITHMS)}"
    raise PosttrainError(f"unknown algorithm {name!r}; {hint}")


def overview() -> list[tuple[str, str, str, str]]:
    """Every row as (name, paper, what makes it, needs)."""
    return [
        (r.name, paper(r)[0], "; ".join(f"{c}: {v}" for c, v in differs(r).items()), ", ".join(needs(r)))
        for r in ALGORITHMS.values()
    ]


def page(row: Algorithm) -> list[Section]:
    """One row: its paper and needs, then each cell with its sentence, its parameters, and what else may stand there."""
    head = [
        "paper   " + "  ".join(paper(row)),
        f"needs   {'; '.join(needs(row).values()) or 'nothing beside scores'}",
        f"recipe  {line(row)}",
    ]
    return [Section(row.name, head), *(_column(row, column) for column in CATALOGUE)]


def _column(row: Algorithm, column: str) -> Section:
    own = row.cells[column]
    lines = [sentence(own.entry)]
    for name, p in own.entry.parameters.items():
        usual = "" if own[name] == p.default else f" ({text(p.default)} by default)"
        lines.append(_two(f"{name} = {text(own[name])}{usual}, {bounds(p)}", line(row, **{name: own[name]})))
    refused = []
    for kind, entry in CATALOGUE[column].items():
        changes = replacing(row, column, kind) if kind != own.kind else {}
        if changes is None:
            refused.append(kind)
        elif changes:
            lines.append(_two(f"or {kind}{_defaults(entry)}", line(row, **changes)))
    if refused:
        lines.append(f"not beside this row's other cells: {', '.join(refused)}")
    return Section(f"{column}: {own.kind}", lines)


def _two(left: str, right: str) -> str:
    return f"{left:<56}  {right}"


def _defaults(entry: Kind) -> str:
    return inside({name: p.default for name, p in entry.parameters.items()})


INTRODUCTION = """# Algorithms

Made by `make docs` from `posttrain/algorithms`; a test fails where it is out of date. `posttrain algorithms NAME`
prints one row with every line that changes it.

An algorithm is a row: one cell in each column. In a recipe, `algorithm: NAME` takes a row as it is. A column's name
replaces a cell and a parameter's name sets a number, as in `algorithm: {name: NAME, reduction: token_mean}`. What
cannot stand together is refused with a way out. A column that a row leaves out has its default cell, which is bold
under [Cells](#cells).

What a row or a cell may need of the run:"""


def markdown() -> str:
    """docs/algorithms.md."""
    words = "\n".join(f"- {name}: {text}" for name, text in NEEDS.items())
    parts = [INTRODUCTION, words, "## Rows", *_families(), "## Row by row", *map(_row, ALGORITHMS.values())]
    parts += ["## Cells", "In the order in which a step meets them.", *_catalogue(), "## Variants without a row"]
    parts += ["Lines of a recipe: put them over a complete one."]
    for title, variants in VARIANTS.items():
        parts.append(f"### {title}")
        parts += [f"**{v.title}.** {v.about}\n\n```yaml\n{v.recipe}\n```" for v in variants]
    return "\n\n".join(parts) + "\n"


def _families() -> Iterator[str]:
    rest = list(ALGORITHMS.values())
    for title, belongs in FAMILIES:
        mine = [row for row in rest if belongs(row)]
        rest = [row for row in rest if row not in mine]
        lines = [
            (
                f"[{row.name}](#{row.name})",
                "[{}]({})".format(*paper(row)),
                "; ".join(f"{c}: {v}" for c, v in differs(row).items()),
                ", ".join(needs(row)),
            )
            for row in mine
        ]
        yield f"### {title}\n\n" + _table(("row", "paper", "what makes it", "needs"), lines)


def _row(row: Algorithm) -> str:
    own = differs(row)
    cells = [f"- {column}: **{text}**. {_escaped(sentence(row.cells[column].entry))}" for column, text in own.items()]
    usual = "; ".join(f"{c}: {v.kind}" for c, v in row.cells.items() if c not in own)
    about = "Paper: [{}]({}). ".format(*paper(row)) + f"Needs {', '.join(needs(row).values()) or 'nothing but scores'}."
    return "\n\n".join([f"### {row.name}", about, "\n".join(cells), f"As by default: {usual}.", f"`{line(row)}`"])


def _catalogue() -> Iterator[str]:
    for column, kinds in CATALOGUE.items():
        lines = []
        for kind, entry in kinds.items():
            values = [f"`{n}` = {text(p.default)} ({bounds(p)})" for n, p in entry.parameters.items()]
            name = f"**{kind}**" if DEFAULTS.get(column) == kind else kind
            lines.append((name, sentence(entry), "<br>".join(values), ", ".join(sorted(entry.asks))))
        heads = ("cell", "what it does", "parameters", "asks for")
        yield f"### {column}\n\n{COLUMNS[column]}\n\n" + _table(heads, lines)


def _table(heads: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [heads, ["---"] * len(heads), *([_escaped(x).replace("|", "\\|") for x in row] for row in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _escaped(text: str) -> str:
    """Markdown that shows the text: a `<` outside code would open a tag."""
    return re.sub(r"(`[^`]*`|<br>)|<", lambda found: found[1] or "\\<", text)
