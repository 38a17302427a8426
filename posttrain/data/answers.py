"""The answers that a row brings, and what each is worth."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from posttrain.data.chat import Chat
from posttrain.data.faults import FaultyRowError
from posttrain.data.formats import (
    Turns,
    conditioned,
    has_question,
    only_text,
    question,
    said,
    shared_prompt,
    turns,
    with_system,
)
from posttrain.data.rows import Row
from posttrain.data.shapes import CONVERSATIONS, MARGIN, Shape, Wanted
from posttrain.errors import DataError
from posttrain.recipe import Source

STEP_END = "\n"
"""What stands between the steps of an answer, and belongs to the one before it."""
TIE = "tie"
"""The label of a pair whose answers are worth the same."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What is said, what it is worth, where it is made of steps each with its label, and its part of a margin."""

    said: Turns
    score: float
    steps: tuple[tuple[str, float], ...] = ()
    offset: float | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """A question with its answers, and the text that all of them begin with and that is not learnt."""

    context: Turns
    answers: tuple[Answer, ...]
    prefix: str = ""


def answered(row: Row, source: Source, chat: Chat, shape: Shape, wanted: Wanted) -> Answered:
    """A row's answers in its own order; chosen is first. Raises FaultyRowError, and DataError naming the column.

    Without scores chosen is worth 1 and rejected 0, whatever their margin, and a single answer 1. Ranks 1 to K are
    worth K - 1 to 0, and an answer of steps its last label. Of that a step's share is by how much its label differs
    from the one before, except where labels themselves are learnt.
    """
    if shape.form == "pairs":
        return _pair(row, source, chat, shape, wanted)
    if shape.form == "lists":
        return _list(row, source, chat, shape, wanted)
    if shape.form == "steps":
        context, answer = question(row, source, chat), _steps(row)
        if not wanted.steps:
            answer = replace(answer, steps=_shares(answer.steps))
    elif shape.form == "completion":
        context, answer = question(row, source, chat), Answer(turns(row, "completion", chat), _score(row, shape))
    else:
        talk = turns(row, next(name for name in CONVERSATIONS if name in row), chat)
        if isinstance(talk, str):
            raise DataError("column 'messages' is text, not a list of messages")
        start = next((i for i, m in enumerate(talk) if m["role"] == "assistant"), len(talk))
        context, answer = with_system(talk[:start], source.system), Answer(talk[start:], _score(row, shape))
    if wanted.conditioning is not None:
        texts = wanted.conditioning
        context = conditioned(context, texts.good if answer.score >= texts.right_score else texts.bad)
    return Answered(context, (answer,))


def number(value: Any, what: str) -> float:
    """A finite number. Raises FaultyRowError for anything else, truth values too."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            read = float(value)
        except OverflowError:
            read = math.inf
        if math.isfinite(read):
            return read
    raise FaultyRowError("score not a number", f"{what} is {value!r:.60}")


def _pair(row: Row, source: Source, chat: Chat, shape: Shape, wanted: Wanted) -> Answered:
    chosen, rejected = turns(row, "chosen", chat), turns(row, "rejected", chat)
    inside = isinstance(chosen, list) and chosen[0]["role"] != "assistant"
    if inside or not has_question(row, source):
        shared, chosen, rejected = shared_prompt(chosen, rejected, chat)
        context = with_system(shared, source.system)
    else:
        context = question(row, source, chat)
    scores = _pair_scores(row, shape)
    if scores[0] == scores[1] and not wanted.ties:
        raise FaultyRowError("tie", f"chosen and rejected are both worth {scores[0]:g}")
    if scores[0] < scores[1]:
        raise FaultyRowError("rejected scored higher", f"chosen is worth {scores[0]:g}, rejected {scores[1]:g}")
    found = _with_prefix(row, context, [chosen, rejected], scores)
    if shape.numbers != MARGIN or scores[0] == scores[1]:
        return found
    # What is preferred and what the margin is, two objectives may say: a margin can be negative (2310.03708).
    margin = number(row[MARGIN[0]], f"column {MARGIN[0]!r}")
    better, worse = found.answers
    return replace(found, answers=(replace(better, offset=margin), replace(worse, offset=0.0)))


def _pair_scores(row: Row, shape: Shape) -> tuple[float, float]:
    tie = str(row.get("label")).lower() == TIE
    if shape.numbers in ((), MARGIN) or (tie and row[shape.numbers[0]] is None):
        chosen, rejected = 1.0, 0.0
    else:
        chosen, rejected = (number(row[name], f"column {name!r}") for name in shape.numbers)
    return ((chosen + rejected) / 2,) * 2 if tie else (chosen, rejected)


def _list(row: Row, source: Source, chat: Chat, shape: Shape, wanted: Wanted) -> Answered:
    (column,) = shape.numbers
    given, worth = _listed(row, "completions"), _listed(row, column)
    if len(given) != len(worth):
        raise FaultyRowError("lengths differ", f"{len(given)} completions with {len(worth)} {column}")
    if len(given) < (2 if wanted.pairs or wanted.in_context else 1):
        raise FaultyRowError("too few answers", f"column 'completions' has {len(given)}")
    scores = [number(value, f"{column}[{i}]") for i, value in enumerate(worth)]
    if column == "ranks":
        scores = _of_ranks(scores)
    if wanted.pairs and not wanted.ties and len(set(scores)) == 1:
        raise FaultyRowError("tie", f"all {len(scores)} completions are worth {scores[0]:g}")
    if wanted.in_context and len(given) != 2:
        raise DataError(f"column 'completions' has {len(given)}, but answers are read beside each other in twos")
    answers = [said(value, "completions", chat) for value in given]
    return _with_prefix(row, question(row, source, chat), answers, scores)


def _of_ranks(ranks: Sequence[float]) -> list[float]:
    """K - rank. Equal ranks are ties, and the next one counts on by one or by as many as share it."""
    better = [sum(other < rank for other in ranks) for rank in ranks]
    kinds = [len({other for other in ranks if other < rank}) for rank in ranks]
    if list(ranks) not in ([1.0 + n for n in better], [1.0 + n for n in kinds]):
        raise FaultyRowError("ranks that are no ranking", f"column 'ranks' is {[f'{rank:g}' for rank in ranks]!r:.60}")
    return [len(ranks) - rank for rank in ranks]


def _steps(row: Row) -> Answer:
    steps, labels = _listed(row, "completions"), _listed(row, "labels")
    if len(steps) != len(labels):
        raise FaultyRowError("lengths differ", f"{len(steps)} steps with {len(labels)} labels")
    if not steps:
        raise FaultyRowError("empty response", "column 'completions' has no step")
    read = []
    for i, (step, label) in enumerate(zip(steps, labels, strict=True)):
        if not isinstance(step, str):
            raise DataError(f"completions[{i}] is {step!r:.60}, not the text of a step")
        if not step.strip():
            raise FaultyRowError("step without tokens", f"completions[{i}] is {step!r}")
        worth = float(label) if isinstance(label, bool) else number(label, f"labels[{i}]")
        if not 0 <= worth <= 1:
            raise FaultyRowError("label out of range", f"labels[{i}] is {worth:g}")
        read.append((step, worth))
    # What an answer is worth is whether its last step is right: a sum would grow with the number of steps.
    return Answer(STEP_END.join(steps), read[-1][1], tuple(read))


def _shares(steps: Sequence[tuple[str, float]]) -> tuple[tuple[str, float], ...]:
    """Differences, whose sum is the last label."""
    before = [0.0, *(label for _, label in steps)]
    return tuple((step, label - earlier) for (step, label), earlier in zip(steps, before, strict=False))


def _score(row: Row, shape: Shape) -> float:
    if not shape.numbers:
        return 1.0
    (column,) = shape.numbers
    if column == "label" and isinstance(row[column], bool):
        return float(row[column])
    return number(row[column], f"column {column!r}")


def _listed(row: Row, column: str) -> list[Any]:
    if row[column] is None:
        raise FaultyRowError("missing side", f"column {column!r} is None")
    if not isinstance(row[column], list):
        raise DataError(f"column {column!r} is {row[column]!r:.60}, not a list")
    return row[column]


def _with_prefix(row: Row, context: Turns, answers: Sequence[Turns], scores: Sequence[float]) -> Answered:
    """The answers, each beginning with the row's prefix where it has one: its own, or put before (2406.18629)."""
    own, before = row.get("prefix") or "", row.get("initial_reason_steps") or ""
    for column, value in (("prefix", own), ("initial_reason_steps", before)):
        if not isinstance(value, str):
            raise DataError(f"column {column!r} is {value!r:.60}, not text")
    if own and not all(only_text(answer).startswith(own) for answer in answers):
        raise FaultyRowError("do not share the prefix", f"an answer does not begin with {own!r:.60}")
    if before and not own:
        answers = [before + only_text(answer) for answer in answers]
    made = [Answer(answer, score) for answer, score in zip(answers, scores, strict=True)]
    # A space belongs to the word behind it in most vocabularies.
    return Answered(context, tuple(made), (own or before).removesuffix(" "))
