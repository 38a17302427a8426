"""What a prompt asks, apart from how it is asked, written so that equal questions are equal texts."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from posttrain.types import Prompt

Asked = Sequence[Prompt] | Sequence[str]
"""Prompts, or questions as texts."""

UNIT = re.compile(r"\d+(?:[.:]\d+)*|[^\W\d_]+|[^\w\s]|_")
"""A number, a run of letters, or a sign by itself: what spaces do not change."""
SENTENCE = frozenset('.,;:?"“”„…')
"""Signs that are dropped; others (operators, brackets) tell problems apart, as 12 + 5 and 12 - 5."""

USERS = ("user", "human")
SAMPLE = 200
"""Prompts of a source by which its question's columns are told."""
MOST = 0.9
"""A column of the question stands in so many prompts of its source; a template may change a few values."""


def questions(rows: Asked) -> list[str]:
    """The text of each question. Of a Prompt, the values of the columns that its source's prompts are made of, so that
    chat templates, system prompts and worked examples are left out; the whole prompt where no column can be told.
    Texts are questions already.
    """
    by_source: dict[str, list[Prompt]] = {}
    for row in rows:
        if isinstance(row, Prompt):
            by_source.setdefault(row.source, []).append(row)
    columns = {source: _question_columns(of[:SAMPLE]) for source, of in by_source.items()}
    return [_question(row, columns[row.source]) if isinstance(row, Prompt) else row for row in rows]


def normalised(text: str) -> str:
    """A text of which case, spaces and the punctuation of sentences are gone; signs that make a problem another one
    (operators, brackets, a decimal point) stay."""
    return " ".join(units_of(text))


def units_of(text: str) -> list[str]:
    """The numbers, runs of letters and signs of a text, normalised."""
    return [unit for unit in UNIT.findall(unicodedata.normalize("NFKC", text).casefold()) if unit not in SENTENCE]


def _question(prompt: Prompt, columns: Sequence[str]) -> str:
    return "\n".join(filter(None, (_text(prompt.columns.get(name)) for name in columns))) or prompt.text


def _question_columns(prompts: Sequence[Prompt]) -> list[str]:
    """The columns whose values stand in the prompts, less those that say nothing or stand in another column's value."""
    asked = [f" {normalised(prompt.text)} " for prompt in prompts]
    found: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for prompt in prompts for name in prompt.columns):
        values = [f" {normalised(_text(prompt.columns.get(name)))} " for prompt in prompts]
        there = [value in text for value, text in zip(values, asked, strict=True) if value.strip()]
        if there and sum(there) >= MOST * len(prompts):
            found[name] = values
    if len(prompts) > 1:
        varied = {name: values for name, values in found.items() if len(set(values)) > 1}
        found = varied or dict(islice(found.items(), 1))
    kept: list[str] = []
    for name in sorted(found, key=lambda name: -sum(map(len, found[name]))):
        if not any(_mostly_inside(found[name], found[other]) for other in kept):
            kept.append(name)
    return [name for name in found if name in kept]


def _mostly_inside(values: Sequence[str], others: Sequence[str]) -> bool:
    """Whether more than half of a column's values stand in another's of the same row."""
    return 2 * sum(value in other for value, other in zip(values, others, strict=True)) > len(values)


def _text(value: Any) -> str:
    """A column's value as a prompt shows it: what the user says in a list of messages, else the value itself."""
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, list) or not all(isinstance(turn, Mapping) for turn in value):
        return ""
    said = [turn for turn in value if turn.get("role", turn.get("from")) in USERS]
    return "\n".join(str(turn.get("content", turn.get("value"))) for turn in said)
