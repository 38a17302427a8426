"""From a recipe's source to Prompts (for roll-outs) and Groups (of answers that it brings), with a report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from posttrain.data.answers import answered
from posttrain.data.chat import Chat
from posttrain.data.faults import EXAMPLES, Faults, FaultyRowError
from posttrain.data.formats import Turns, conditioned, question
from posttrain.data.responses import responses
from posttrain.data.rows import Row, columns_of, name_of, read_rows, track
from posttrain.data.shapes import Shape, Wanted, shape_of
from posttrain.errors import DataError
from posttrain.recipe import Conditioning, Source
from posttrain.types import Group, Prompt

__all__ = ["SourceReport", "Wanted", "columns_of", "distinct", "groups", "hold_out", "prompts", "read_rows"]


@dataclass(frozen=True, slots=True)
class SourceReport:
    """What became of a source's rows: counts of rows, and a few of those left out."""

    kept: int
    too_long: int = 0
    duplicates: int = 0
    """Set by who calls `distinct`."""
    held_out: int = 0
    """Set by who calls `hold_out`."""
    faults: Mapping[str, int] = field(default_factory=dict)
    """Rows that cannot be learnt from, by kind."""
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        reasons = {
            **self.faults,
            "too long": self.too_long,
            "duplicates": self.duplicates,
            "also held out": self.held_out,
        }
        total = self.kept + sum(reasons.values())
        left = ", ".join(f"{count} {reason}" for reason, count in reasons.items() if count)
        shown = f" ({'; '.join(self.examples)})" if self.examples else ""
        return f"kept {self.kept} of {total}" + (f": {left}{shown}" if left else "")


def prompts(
    source: Source,
    chat: Chat,
    key: str,
    max_prompt_tokens: int | None = None,
    *,
    conditioning: Conditioning | None = None,
) -> tuple[list[Prompt], SourceReport]:
    """Every row's prompt as the ids the engine will see, in the source's order, with the whole row beside it.

    Ids are "name/index". Prompts of more than `max_prompt_tokens` are left out and counted. With `conditioning` every
    question asks for a good answer. Raises DataError naming row and column where one cannot be rendered, and where
    none is left.
    """
    kept: list[Prompt] = []
    long: list[str] = []
    for prompt_id, row in _numbered(source, key, read_rows(source, key)):
        with _row_named(key, prompt_id):
            asked = question(row, source, chat)
            if conditioning is not None:
                asked = conditioned(asked, conditioning.good)
            prompt = _prompt(asked, chat, prompt_id, row, source)
        if max_prompt_tokens is not None and len(prompt.tokens) > max_prompt_tokens:
            long.append(f"{prompt_id}: {len(prompt.tokens)} > {max_prompt_tokens} tokens")
        else:
            kept.append(prompt)
    report = SourceReport(len(kept), too_long=len(long), examples=tuple(long[:EXAMPLES]))
    if not kept:
        raise DataError(f"{key}: {report}; raise data.max_prompt_tokens")
    return kept, report


def groups(source: Source, chat: Chat, key: str, wanted: Wanted) -> tuple[list[Group], SourceReport]:
    """Every row's answers as a group, whatever the columns: pairs, lists, steps, a completion, or messages.

    Roll-outs are whole, whatever their length: a row with one of more than `wanted.max_length` tokens is left out and
    counted, and so is one that cannot be learnt from, by the kind of its fault. Raises DataError where the columns do
    not bring what is wanted, naming row and column where one cannot be rendered, where more than
    `wanted.max_faulty_share` of the rows are faulty, and where none is left.
    """
    rows = read_rows(source, key)
    shape = shape_of(rows, wanted, key)
    kept: list[Group] = []
    long: list[str] = []
    faults = Faults()
    for row_id, row in _numbered(source, key, rows):
        with _row_named(key, row_id):
            try:
                group = _group(row, row_id, source, chat, shape, wanted)
            except FaultyRowError as fault:
                faults.add(row_id, fault)
                continue
        longest = max(len(rollout.tokens) for rollout in group.rollouts)
        if wanted.max_length is not None and longest > wanted.max_length:
            long.append(f"{row_id}: {longest} > {wanted.max_length} tokens")
        else:
            kept.append(group)
    besides = f"; {len(long)} more are too long ({'; '.join(long[:EXAMPLES])})" if long else ""
    faults.refuse(len(rows), wanted.max_faulty_share, key, besides)
    examples = (*faults.examples(), *long[:EXAMPLES])
    report = SourceReport(len(kept), too_long=len(long), faults=faults.counts(), examples=examples)
    if not kept:
        raise DataError(f"{key}: {report}; {'raise model.max_length' if long else 'no row can be learnt from'}")
    return kept, report


def distinct(evaluation: Sequence[Prompt]) -> tuple[list[Prompt], int]:
    """The prompts without later ones of the same tokens, and how many those were.

    Held-out problems must differ, or an interval over them is too narrow. Training prompts may repeat.
    """
    first: dict[tuple[int, ...], Prompt] = {}
    for prompt in evaluation:
        first.setdefault(prompt.tokens, prompt)
    return list(first.values()), len(evaluation) - len(first)


def hold_out(train: Sequence[Prompt], evaluation: Sequence[Prompt]) -> tuple[list[Prompt], int]:
    """The training prompts whose tokens are those of no held-out prompt, and how many were taken out.

    Raises DataError where none is left.
    """
    held = {prompt.tokens for prompt in evaluation}
    kept = [prompt for prompt in train if prompt.tokens not in held]
    if train and not kept:
        raise DataError("data: every training prompt also stands in data.eval; use another split, file or seed for it")
    return kept, len(train) - len(kept)


@contextmanager
def _row_named(key: str, row_id: str) -> Iterator[None]:
    """DataErrors inside name the row."""
    try:
        yield
    except DataError as error:
        raise DataError(f"{key}: row {row_id}: {error}") from error


def _numbered(source: Source, key: str, rows: Sequence[Row]) -> Iterator[tuple[str, Row]]:
    """Each row with its id, which counts over the whole source, rows that `skip` leaves out too."""
    name = name_of(source)
    for index, row in enumerate(track(rows, f"{key}: tokens"), start=source.skip):
        yield f"{name}/{index}", row


def _prompt(asked: Turns, chat: Chat, prompt_id: str, row: Row, source: Source) -> Prompt:
    text = chat.render(asked)
    tokens = chat.encode(text)
    if not tokens:
        raise DataError("the prompt has no tokens")
    return Prompt(prompt_id, tokens, text, row, name_of(source))


def _group(row: Row, row_id: str, source: Source, chat: Chat, shape: Shape, wanted: Wanted) -> Group:
    meant = answered(row, source, chat, shape, wanted)
    rollouts, verdicts = responses(meant, chat, wanted.in_context)
    return Group(_prompt(meant.context, chat, row_id, row, source), rollouts, verdicts)
