"""From a recipe's source to Prompts (for roll-outs) and Groups (of answers that it brings), with a report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from posttrain.data.chat import Chat
from posttrain.data.formats import Turns, answered, question
from posttrain.data.rows import Row, columns_of, name_of, read_rows, track
from posttrain.errors import DataError
from posttrain.recipe import Source
from posttrain.types import Group, Prompt, Rollout, Verdict

__all__ = ["SourceReport", "columns_of", "distinct", "groups", "hold_out", "prompts", "read_rows"]

MAX_EMPTY_SHARE = 0.01
EXAMPLES = 3

Meaning = TypeVar("Meaning")


@dataclass(frozen=True, slots=True)
class SourceReport:
    """What became of a source's rows: counts of rows, and a few of those left out."""

    kept: int
    too_long: int = 0
    empty: int = 0
    """Rows in which nothing can be learnt."""
    duplicates: int = 0
    """Set by who calls `distinct`."""
    held_out: int = 0
    """Set by who calls `hold_out`."""
    examples: tuple[str, ...] = ()

    def __str__(self) -> str:
        reasons = {
            "too long": self.too_long,
            "nothing to learn": self.empty,
            "duplicates": self.duplicates,
            "also held out": self.held_out,
        }
        total = self.kept + sum(reasons.values())
        left = ", ".join(f"{count} {reason}" for reason, count in reasons.items() if count)
        shown = f" ({'; '.join(self.examples)})" if self.examples else ""
        return f"kept {self.kept} of {total}" + (f": {left}{shown}" if left else "")


def prompts(
    source: Source, chat: Chat, key: str, max_prompt_tokens: int | None = None
) -> tuple[list[Prompt], SourceReport]:
    """Every row's prompt as the ids the engine will see, in the source's order, with the whole row beside it.

    Ids are "name/index". Prompts of more than `max_prompt_tokens` are left out and counted. Raises DataError naming
    row and column where one cannot be rendered, and where none is left.
    """
    kept: list[Prompt] = []
    long: list[str] = []
    for prompt_id, row, asked in _meanings(source, chat, key, question):
        prompt = _prompt(asked, chat, prompt_id, row, source, key)
        if max_prompt_tokens is not None and len(prompt.tokens) > max_prompt_tokens:
            long.append(f"{prompt_id}: {len(prompt.tokens)} > {max_prompt_tokens} tokens")
        else:
            kept.append(prompt)
    report = SourceReport(len(kept), too_long=len(long), examples=tuple(long[:EXAMPLES]))
    if not kept:
        raise DataError(f"{key}: {report}; raise data.max_prompt_tokens")
    return kept, report


def groups(source: Source, chat: Chat, key: str, max_length: int | None = None) -> tuple[list[Group], SourceReport]:
    """Every row's answers as a group: one of a completion or messages (worth 1, or its label), two of a preference.

    Roll-outs start with the prompt's tokens, end with the last stop token, and are masked True on what was said. Rows
    with a roll-out of more than `max_length` tokens are left out and counted, as are rows in which the assistant says
    nothing (only to stop at once could be learnt) or whose answers are equal. Raises DataError naming row and column,
    where more than 1 % teach nothing, and where none is left.
    """
    kept: list[Group] = []
    long: list[str] = []
    empty: list[str] = []
    for row_id, row, meant in _meanings(source, chat, key, answered):
        with _row_named(key, row_id):
            rollouts = tuple(_rollout(meant.context, answer, chat) for answer in meant.answers)
        longest = max(len(r.tokens) for r in rollouts)
        if max_length is not None and longest > max_length:
            long.append(f"{row_id}: {longest} > {max_length} tokens")
        elif not all(r.text.strip() for r in rollouts):
            empty.append(f"{row_id}: the assistant says nothing")
        elif len({r.tokens for r in rollouts}) < len(rollouts):
            empty.append(f"{row_id}: chosen and rejected are equal")
        else:
            prompt = _prompt(meant.context, chat, row_id, row, source, key)
            kept.append(Group(prompt, rollouts, tuple(Verdict(score) for score in meant.scores)))
    examples = (*empty[:EXAMPLES], *long[:EXAMPLES])
    report = SourceReport(len(kept), too_long=len(long), empty=len(empty), examples=examples)
    total = len(kept) + len(long) + len(empty)
    if len(empty) > MAX_EMPTY_SHARE * total:
        raise DataError(f"{key}: more than {MAX_EMPTY_SHARE:.0%} of the rows teach nothing; {report}")
    if not kept:
        raise DataError(f"{key}: {report}; raise model.max_length")
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


def _meanings(
    source: Source, chat: Chat, key: str, meaning: Callable[[Row, Source, Chat], Meaning]
) -> Iterator[tuple[str, Row, Meaning]]:
    """Each row's id, its columns, and what it means."""
    name = name_of(source)
    for index, row in enumerate(track(read_rows(source, key), f"{key}: tokens")):
        row_id = f"{name}/{index}"
        with _row_named(key, row_id):
            meant = meaning(row, source, chat)
        yield row_id, row, meant


def _prompt(asked: Turns, chat: Chat, prompt_id: str, row: Row, source: Source, key: str) -> Prompt:
    with _row_named(key, prompt_id):
        text = chat.render(asked)
        tokens = chat.encode(text)
        if not tokens:
            raise DataError("the prompt has no tokens")
    return Prompt(prompt_id, tokens, text, row, name_of(source))


def _rollout(context: Turns, answer: Turns, chat: Chat) -> Rollout:
    if isinstance(context, str):
        ids, mask = chat.continuation(context, _only_text(answer))
    else:
        said = [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
        ids, mask = chat.conversation([*context, *said], given=len(context))
    words = chat.completion_text([token for token, learnt in zip(ids, mask, strict=True) if learnt])
    return Rollout(ids, mask, words, "given")


def _only_text(answer: Turns) -> str:
    if isinstance(answer, str):
        return answer
    if len(answer) != 1:
        raise DataError("the prompt is text but its answer has several messages; give the prompt as messages")
    return answer[0]["content"]
