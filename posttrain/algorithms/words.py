"""The vocabulary of the table: what columns, needs, cells, parameters and papers are called. Imports no torch.

A cell's sentence is the first paragraph of its formula's docstring, read from the source without importing it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from posttrain.algorithms.cells import Kind, Parameter
from posttrain.algorithms.row import DEFAULTS, Algorithm

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
    return {c: v.kind + inside(v.values) for c, v in own.items()}


def text(value: Any) -> str:
    """A value as YAML has it."""
    return "null" if value is None else str(value)


def inside(values: Mapping[str, Any]) -> str:
    """Values by name, in brackets; nothing where there are none."""
    found = ", ".join(f"{k}={text(v)}" for k, v in values.items())
    return f"({found})" if found else ""
