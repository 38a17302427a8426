"""The table in words: what each row and cell is, and the recipe lines that change it. Imports no torch.

A cell's sentence is the first paragraph of its formula's docstring, read from the source without importing it.
"""

from __future__ import annotations

import ast
import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from posttrain.algorithms.catalogue import CATALOGUE, cell
from posttrain.algorithms.cells import Kind, Parameter
from posttrain.algorithms.contradictions import contradictions
from posttrain.algorithms.row import DEFAULTS, Algorithm
from posttrain.algorithms.table import ALGORITHMS
from posttrain.algorithms.variants import VARIANTS
from posttrain.errors import PosttrainError

COLUMNS = {
    "source": "Where responses come from.",
    "opponent": "Whose responses stand beside the policy's.",
    "selection": "Which groups are learnt from.",
    "shaping": "What a response's length adds to its score.",
    "truncated": "What becomes of a response that was cut at the token limit.",
    "scaling": "Scores brought to one scale, before credit.",
    "credit": "From scores or rewards to advantages.",
    "whitening": "Advantages brought to one scale over the step.",
    "keep": "Which responses of a group are learnt from, after credit.",
    "anchor": "What log-ratios are taken to.",
    "ratio": "The level of the log-ratio.",
    "divergence": "What a log-ratio becomes under another divergence than the reverse KL.",
    "objective": "From log-ratios and advantages to losses.",
    "weighting": "How much a group's loss counts.",
    "correction": "Weights for the gap between the engine that sampled and the trainer.",
    "reduction": "From losses to the step's loss.",
    "cloning": "What is learnt by likelihood beside a loss of groups.",
    "contrast": "What a reward model learns of its states beside its scores.",
    "kl": "The penalty towards the reference policies.",
    "entropy": "The bonus for entropy.",
    "critic": "The loss of the value function.",
    "trust": "How far a step's updates may carry the policy.",
}
NEEDS = {
    "reference": "log-probabilities of the reference policy",
    "behaviour": "log-probabilities of the engine that sampled",
    "previous": "log-probabilities from before a step's first update, where it has several",
    "trainer": "log-probabilities from before a step's first update",
    "critic": "a value function",
    "greedy": "one graded greedy response to each prompt",
    "preference": "a grader that compares two responses",
    "parts": "several graders",
    "uniform": "log-probabilities averaged over the vocabulary",
    "collision": "log-probabilities that two draws are the same token",
    "given": "answers that come with the data",
    "sampler": "an engine that responds while the run lasts",
    "opponent": "responses of another policy",
    "refresh": "a reference that follows the policy (reference.refresh: copy)",
    "mismatched": "the log-ratio of other prompts' responses",
    "shift": "the mean log-ratio of the run so far",
    "pairs": "responses to a prompt of which one is better",
    "margins": "scores or margins in the data",
    "ties": "pairs, ties among them",
    "steps": "responses cut into labelled steps",
    "in_context": "each response of a pair read with the other one before it",
    "conditioning": "texts that say what an answer is worth (data.conditioning)",
    "scorer": "a reward model in the policy's place",
    "states": "the reward model's last hidden states",
}
MENDS = (
    {"critic": "squared"},
    {"critic": "none"},
    {"correction": "none"},
    {"anchor": "previous"},
    {"ratio": "token"},
    {"ratio": "sequence_sum"},
    {"reduction": "token_mean"},
    {"reduction": "group_mean"},
    {"credit": "score", "keep": "all"},
    {"credit": "gae"},
)
"""Changes that a new cell may ask for."""
FAMILIES: tuple[tuple[str, Callable[[Algorithm], bool]], ...] = (
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


@cache
def _docstrings(module: str) -> dict[str, str]:
    """Each function's docstring in a module of posttrain.objectives, which is read and not imported."""
    package = find_spec("posttrain")
    assert package is not None
    assert package.submodule_search_locations is not None
    file = Path(next(iter(package.submodule_search_locations)), "objectives", f"{module}.py")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {n.name: ast.get_docstring(n) or "" for n in tree.body if isinstance(n, ast.FunctionDef)}


def sentence(entry: Kind) -> str:
    """What a cell does: the first paragraph of its formula's docstring, or what the catalogue says."""
    if entry.function is None:
        return entry.about
    module, _, name = entry.function.partition(".")
    return " ".join(_docstrings(module)[name].split("\n\n")[0].split())


def bounds(parameter: Parameter) -> str:
    """What a parameter's value may be."""
    if parameter.choices:
        return f"one of {', '.join(parameter.choices)}"
    found = ["whole"] if isinstance(parameter.default, int) else []
    found += [f"> {parameter.low:g}"] if parameter.low is not None else []
    found += [f">= {parameter.least:g}"] if parameter.least is not None else []
    found += [f"<= {parameter.high:g}"] if parameter.high is not None else []
    return ", ".join(found + (["or null"] if parameter.optional else [])) or "any number"


def paper(row: Algorithm) -> tuple[str, str]:
    """A row's paper as (text, address)."""
    if re.fullmatch(r"\d{4}\.\d{4,5}", row.paper):
        return f"arXiv:{row.paper}", f"https://arxiv.org/abs/{row.paper}"
    return f"doi:{row.paper}", f"https://doi.org/{row.paper}"


def needs(row: Algorithm) -> dict[str, str]:
    """What a row asks of the run: a word for it, and a sentence."""
    found = vars(row.needs)
    size = found["min_group"]
    group = {f"groups of {size}": f"groups of {size} or more"} if size > 1 else {}
    return group | {name: words for name, words in NEEDS.items() if found[name]}


def differs(row: Algorithm) -> dict[str, str]:
    """The cells that make the row: those other than the default ones, with the values that it sets."""
    own = {c: v for c, v in row.cells.items() if v.values or v.kind != DEFAULTS.get(c)}
    return {c: v.kind + _inside(v.values) for c, v in own.items()}


def line(row: Algorithm, **changes: Any) -> str:
    """The line of a recipe that asks for a row with some cells or parameters replaced."""
    tree = {"name": row.name, **changes}
    written = yaml.safe_dump(tree, default_flow_style=True, sort_keys=False, width=10**6).strip()
    return f"algorithm: {written if changes else row.name}"


def replacing(row: Algorithm, column: str, kind: str) -> dict[str, Any] | None:
    """The changes that put a kind into a column, with those that it asks for; None where the other cells refuse it."""
    changes = {column: kind}
    changed = row.replaced(cell(column, kind))
    while wrong := contradictions(changed):
        for mend in MENDS:
            more = {c: k for c, k in mend.items() if changed.cells[c].kind != k}
            better = _with(changed, more)
            if column not in more and len(contradictions(better)) < len(wrong):
                changes |= more
                changed = better
                break
        else:
            return None
    return changes


def _with(row: Algorithm, changes: Mapping[str, str]) -> Algorithm:
    for column, kind in changes.items():
        row = row.replaced(cell(column, kind))
    return row


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
        usual = "" if own[name] == p.default else f" ({_text(p.default)} by default)"
        lines.append(_two(f"{name} = {_text(own[name])}{usual}, {bounds(p)}", line(row, **{name: own[name]})))
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


def _text(value: Any) -> str:
    return "null" if value is None else str(value)


def _inside(values: Mapping[str, Any]) -> str:
    inside = ", ".join(f"{k}={_text(v)}" for k, v in values.items())
    return f"({inside})" if inside else ""


def _defaults(entry: Kind) -> str:
    return _inside({name: p.default for name, p in entry.parameters.items()})


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
            values = [f"`{n}` = {_text(p.default)} ({bounds(p)})" for n, p in entry.parameters.items()]
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
