"""From a question and an answer to the exact tokens of a roll-out, masked True on what is learnt."""

from __future__ import annotations

from itertools import pairwise

from posttrain.data.answers import STEP_END, Answer, Answered
from posttrain.data.chat import Chat
from posttrain.data.faults import FaultyRowError
from posttrain.data.formats import Turns, only_text
from posttrain.errors import DataError
from posttrain.types import Message, Rollout, Verdict

BETTER = "Write a better response."
"""What the user says between the other answer and the one that is read beside it (2310.00898). Models that were
trained on it are asked with the same words.
"""


def responses(row: Answered, chat: Chat, in_context: bool = False) -> tuple[tuple[Rollout, ...], tuple[Verdict, ...]]:
    """A row's answers as roll-outs, and their worth. Raises FaultyRowError for answers that teach nothing, DataError.

    A roll-out starts with the question's tokens and ends with the last stop token; what the assistant said is learnt,
    except the prefix that all answers begin with. `in_context`: the question goes on with the other of two answers
    and the wish for a better one.
    """
    made = []
    for i, answer in enumerate(row.answers):
        context = _beside(row.context, row.answers[1 - i].said) if in_context else row.context
        made.append(_response(context, answer, row.prefix, chat))
    if not all(rollout.text.strip() for rollout, _ in made):
        raise FaultyRowError("empty response", "the assistant says nothing")
    worth: dict[tuple[int, ...], set[float]] = {}
    for rollout, verdict in made:
        worth.setdefault(rollout.tokens, set()).add(verdict.score or 0.0)
    if len(made) > 1 and (len(worth) == 1 or any(len(scores) > 1 for scores in worth.values())):
        raise FaultyRowError("equal answers", "two of its answers are equal")
    return tuple(rollout for rollout, _ in made), tuple(verdict for _, verdict in made)


def _response(context: Turns, answer: Answer, prefix: str, chat: Chat) -> tuple[Rollout, Verdict]:
    if answer.steps:
        *earlier, (last, _) = answer.steps
        ids, borders = chat.in_parts(context, [*(step + STEP_END for step, _ in earlier), last])
        said_from = borders[0]
        if any(begin == end for begin, end in pairwise(borders)):
            raise FaultyRowError("step without tokens", "a step has no token of its own")
        labels = tuple((end - said_from - 1, label) for end, (_, label) in zip(borders[1:], answer.steps, strict=True))
        return _rollout(ids, said_from, chat), Verdict(answer.score, steps=labels)
    if prefix:
        text = only_text(answer.said)
        ids, borders = chat.in_parts(context, [prefix, text[len(prefix) :]])
        return _rollout(ids, borders[1], chat), Verdict(answer.score, offset=answer.offset)
    if isinstance(context, str):
        ids, mask = chat.continuation(context, only_text(answer.said))
    else:
        ids, mask = chat.conversation([*context, *_messages(answer.said)], given=len(context))
    words = chat.completion_text([token for token, learnt in zip(ids, mask, strict=True) if learnt])
    return Rollout(ids, mask, words, "given", author="data"), Verdict(answer.score, offset=answer.offset)


def _rollout(ids: tuple[int, ...], said_from: int, chat: Chat) -> Rollout:
    mask = (False,) * said_from + (True,) * (len(ids) - said_from)
    return Rollout(ids, mask, chat.completion_text(ids[said_from:]), "given", author="data")


def _beside(context: Turns, other: Turns) -> list[Message]:
    if isinstance(context, str):
        raise DataError("the prompt is rendered already, so no other answer can be put behind it; give it as messages")
    return [*context, *_messages(other), {"role": "user", "content": BETTER}]


def _messages(answer: Turns) -> list[Message]:
    return [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer
