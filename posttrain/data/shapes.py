"""What rows bring, told from the names of their columns, and what an algorithm wants of them. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from posttrain.errors import DataError
from posttrain.recipe import Conditioning

Form = Literal["pairs", "lists", "steps", "completion", "messages"]

FORMS: Mapping[Form, str] = {
    "pairs": "chosen and rejected",
    "lists": "completions with scores or ranks",
    "steps": "completions with labels",
    "completion": "completion",
    "messages": "messages",
}
"""The columns of each form, in the order in which they are looked for."""

CONVERSATIONS = ("messages", "conversations")
MARGIN = ("margin",)
PAIR_SCORES = (("chosen_score", "rejected_score"), ("score_chosen", "score_rejected"))
SINGLE_SCORES = ("score", "reward", "label")


@dataclass(frozen=True)
class Wanted:
    """What must be known of each row's answers, and how they are read."""

    max_length: int | None = None
    """Tokens of the longest roll-out, prompt included."""
    margins: bool = False
    """By how much an answer is better than another is the data's own number."""
    ties: bool = False
    """Answers of equal worth are learnt from."""
    steps: bool = False
    """Every step of an answer has a label."""
    pairs: bool = False
    """A row has at least two answers of different worth."""
    scores: bool = False
    """What an answer is worth is the data's own number or thumb."""
    conditioning: Conditioning | None = None
    """The question says what its answer is worth (2403.04642)."""
    max_faulty_share: float = 0.01
    in_context: bool = False
    """Each answer of a pair is read with the other one before it (2310.00898)."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How a source's rows are read."""

    form: Form
    numbers: tuple[str, ...] = ()
    """The columns that say what the answers are worth; empty where the form alone says it."""


def brings(columns: Sequence[str]) -> frozenset[str]:
    """What rows with these columns bring: their form, and of `scores`, `margins` and `labels` what stands beside it.

    Completions with scores or ranks and with labels are lists as well as steps; else there is one form or none. A
    `label` may turn out to be a thumb, a number or something else: only the rows tell.
    """
    there = set(columns)
    found: set[str] = set()
    if {"chosen", "rejected"} <= there:
        found.add("pairs")
        if any(there.issuperset(names) for names in PAIR_SCORES):
            found |= {"scores", "margins"}
        if there.issuperset(MARGIN):
            found.add("margins")
    elif "completions" in there and there & {"scores", "ranks", "labels"}:
        if there & {"scores", "ranks"}:
            found.add("lists")
        if "scores" in there:
            found |= {"scores", "margins"}
        if "labels" in there:
            found |= {"steps", "labels"}
    elif there & {"completion", *CONVERSATIONS}:
        found.add("completion" if "completion" in there else "messages")
        if there & {"score", "reward"}:
            found.add("scores")
        if "label" in there:
            found.add("labels")
    return frozenset(found)


def require(columns: Sequence[str], wanted: Wanted, key: str) -> Form:
    """The form in which rows with these columns are read. Raises DataError where they cannot bring what is wanted,
    naming the columns that would."""
    brought = brings(columns)
    forms = [form for form in FORMS if form in brought]
    if not forms:
        *others, last = FORMS.values()
        raise DataError(
            f"{key}: no answers among the columns ({', '.join(columns)}): needs {', '.join(others)}, or {last}; rename "
            f"with {key}.columns, as in columns: {{completion: answer}}"
        )
    form: Form = "steps" if wanted.steps else forms[0]
    for lack, needed in _lacks(form, brought, wanted):
        raise DataError(
            f"{key}: {lack}, but the columns are {', '.join(columns)}: needs {needed}; rename others to these with "
            f"{key}.columns"
        )
    return form


def shape_of(rows: Sequence[Mapping[str, Any]], wanted: Wanted, key: str) -> Shape:
    """How the rows are read; all have the same columns. Raises DataError as `require` does.

    A column of numbers is read where any row has a number or a thumb in it, or where numbers are wanted: a `label`
    that is a word everywhere, as in data for classifiers, says nothing about worth.
    """
    columns = list(rows[0])
    form = require(columns, wanted, key)
    candidates = [names for names in _candidates(form, wanted) if set(names) <= set(columns)]
    for names in candidates:
        if all(any(isinstance(row[name], int | float | list) for row in rows) for name in names):
            return Shape(form, names)
    needed = form == "lists" or wanted.scores or wanted.margins or wanted.conditioning is not None
    return Shape(form, candidates[0] if candidates and needed else ())


def _candidates(form: Form, wanted: Wanted) -> Sequence[tuple[str, ...]]:
    """Columns that can say what the answers are worth, the preferred ones first."""
    if form == "pairs":
        if wanted.scores:
            return PAIR_SCORES
        # TRL's `margin` is made for it; scores often stand beside by chance.
        return (MARGIN, *PAIR_SCORES) if wanted.margins else (*PAIR_SCORES, MARGIN)
    if form == "lists":
        return (("scores",),) if wanted.scores or wanted.margins else (("scores",), ("ranks",))
    return (("labels",),) if form == "steps" else [(name,) for name in SINGLE_SCORES]


def _lacks(form: Form, brought: frozenset[str], wanted: Wanted) -> Iterator[tuple[str, str]]:
    """What is wanted and not there, and the columns that would bring it."""
    several = f"{FORMS['pairs']}, or {FORMS['lists']}"
    single = f"{FORMS['completion']} or {FORMS['messages']}"
    graded = "scores" in brought or (form not in ("pairs", "lists") and "labels" in brought)
    grades = f"{single} with score, reward or label"
    if wanted.steps and "steps" not in brought:
        yield "every step needs a label", FORMS["steps"]
    if wanted.pairs and form not in ("pairs", "lists"):
        yield "two answers of different worth are compared", several
    if wanted.in_context and form not in ("pairs", "lists"):
        yield "each answer is read with another one before it", several
    if wanted.margins and "margins" not in brought:
        yield "the margin must be the data's own", "margin, chosen_score and rejected_score, or completions with scores"
    if wanted.scores and not graded:
        more = "chosen_score and rejected_score, or completions with scores"
        yield "what an answer is worth must be the data's own number", f"{grades}, {more}"
    if wanted.conditioning is not None and form in ("pairs", "lists"):
        yield "data.conditioning says before the question what its one answer is worth", grades
    if wanted.conditioning is not None and not graded:
        yield "data.conditioning says what an answer is worth", grades
