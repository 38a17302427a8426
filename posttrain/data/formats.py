"""What a row asks, and its columns as messages or text. TRL's formats, and the usual columns beside them.

A text is what the user says, except where it starts with a special token: then it went through a template already.
Texts of "\\n\\nHuman:" and "\\n\\nAssistant:" become messages where the tokenizer has a chat template.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from posttrain.data.chat import Chat
from posttrain.data.faults import FaultyRowError
from posttrain.data.rows import Row, nearest
from posttrain.data.shapes import CONVERSATIONS
from posttrain.errors import DataError
from posttrain.recipe import Shot, Source
from posttrain.types import Message

Turns = str | list[Message]
"""Messages, or text that is rendered already (a base model's text always is)."""

QUESTIONS = ("question", "problem")
ROLES = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant", "system": "system"}
"""How the from/value format calls the roles."""

NOTHING_SAID = {"role": "assistant", "content": ""}
PLACEHOLDER = re.compile(r"\{\{|\}\}|(?P<command>\\[A-Za-z]+)?\{(?P<name>[A-Za-z_]\w*)\}")
SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def question(row: Row, source: Source, chat: Chat) -> Turns:
    """What is asked: from the recipe's template, else prompt, messages (less the last answer), the prompt that chosen
    and rejected share, question or problem. Raises DataError naming the column."""
    if source.prompt is not None:
        asked: Turns = fill(source.prompt, row)
    elif "prompt" in row:
        asked = turns(row, "prompt", chat)
        if isinstance(asked, list) and asked[-1] == NOTHING_SAID:
            asked = asked[:-1]
    elif column := _first(CONVERSATIONS, row):
        asked = turns(row, column, chat)
        if isinstance(asked, list) and asked[-1]["role"] == "assistant" and "chosen" not in row:
            asked = asked[:-1]
    elif "chosen" in row and "rejected" in row:
        asked = shared_prompt(turns(row, "chosen", chat), turns(row, "rejected", chat), chat)[0]
    elif column := _first(QUESTIONS, row):
        asked = turns(row, column, chat)
    else:
        raise DataError(
            "no prompt, messages, chosen and rejected, question or problem among the columns "
            f"({', '.join(row)}); set `prompt`, as in prompt: '{{{next(iter(row), 'text')}}}', or rename with `columns`"
        )
    asked = with_shots(_as_asked(asked, chat), source.shots, chat)
    return with_system(asked, source.system)


def conditioned(asked: Turns, text: str) -> Turns:
    """The question with `text` put before the user's last words. Raises DataError where these are not known."""
    if isinstance(asked, str):
        raise DataError("the prompt is rendered already, so data.conditioning cannot be put before its question")
    last = next((i for i in reversed(range(len(asked))) if asked[i]["role"] == "user"), None)
    if last is None:
        raise DataError("the row has no message of a user, before whose words data.conditioning would be put")
    return [*asked[:last], {**asked[last], "content": text + asked[last]["content"]}, *asked[last + 1 :]]


def fill(template: str, row: Row) -> str:
    """A template with its {column} placeholders filled, a list of texts by one a line; {{ and }} are braces, and
    other braces stay as they are.

    Raises FaultyRowError for a column that is empty, DataError for one that the row lacks, and for LaTeX as in
    \\boxed{answer}, which would show the answer.
    """

    def value(match: re.Match[str]) -> str:
        name = match["name"]
        if name is None:
            return match[0][0]
        if match["command"]:
            raise DataError(
                f"the prompt template has {match[0]}: write {match['command']}{{{{{name}}}}} for braces that stay"
            )
        if name not in row:
            raise DataError(
                f"the prompt template names {{{name}}}, which is none of the columns ({', '.join(row)}); "
                f"{nearest(name, row)}"
            )
        if row[name] is None:
            raise FaultyRowError("missing side", f"column {name!r}, which the prompt template names, is empty")
        found = row[name]
        lines = isinstance(found, Sequence) and not isinstance(found, str) and all(isinstance(v, str) for v in found)
        return "\n".join(found) if lines else str(found)

    return PLACEHOLDER.sub(value, template)


def dialogue(text: str) -> list[Message]:
    """Messages of a text with "\\n\\nHuman:" and "\\n\\nAssistant:"."""
    parts = SPEAKER.split(text.lstrip())[1:]
    return [
        {"role": "user" if speaker == "Human" else "assistant", "content": words.strip()}
        for speaker, words in zip(parts[::2], parts[1::2], strict=True)
    ]


def has_question(row: Row, source: Source) -> bool:
    """Whether a row's question stands beside its answers, rather than inside them."""
    return source.prompt is not None or _first(("prompt", *CONVERSATIONS), row) is not None


def turns(row: Row, column: str, chat: Chat) -> Turns:
    """A column as messages, or as the text it is. Raises FaultyRowError where it is empty, DataError where neither."""
    return said(row[column], column, chat)


def said(value: Any, column: str, chat: Chat) -> Turns:
    """A value of `column` as messages, or as the text it is. Raises as `turns` does."""
    if isinstance(value, str):
        speaks = chat.has_template and value.lstrip().startswith("Human:")
        return dialogue(value) if speaks else value
    if value is None or value == []:
        raise FaultyRowError("missing side", f"column {column!r} is {value}")
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, Sequence):
        raise DataError(f"column {column!r} is {value!r:.60}, neither text nor messages")
    return [_message(item, column) for item in value]


def with_system(asked: Turns, system: str | None) -> Turns:
    """The question with the recipe's system message before it. Raises DataError where there is no place for it."""
    if system is None:
        return asked
    if isinstance(asked, str):
        raise DataError("the prompt is rendered already, so `system` cannot be put before it; leave one of them out")
    if asked and asked[0]["role"] == "system":
        raise DataError("the row has a system message of its own; leave `system` out")
    return [{"role": "system", "content": system}, *asked]


def with_shots(asked: Turns, shots: Sequence[Shot], chat: Chat) -> Turns:
    """The question with the recipe's solved examples before it: earlier turns, or the text of a base model's prompt.

    Raises DataError where there is no place for them.
    """
    if not shots:
        return asked
    if isinstance(asked, str):
        raise DataError("the prompt is rendered already, so `shots` cannot be put before it; leave them out")
    if not chat.has_template and len(asked) == 1:
        before = "".join(f"{shot.asked}\n{shot.said}\n\n" for shot in shots)
        return [{**asked[0], "content": f"{before}{asked[0]['content']}\n"}]
    turns: list[Message] = []
    for shot in shots:
        turns += [{"role": "user", "content": shot.asked}, {"role": "assistant", "content": shot.said}]
    after = 1 if asked[0]["role"] == "system" else 0
    return [*asked[:after], *turns, *asked[after:]]


def shared_prompt(chosen: Turns, rejected: Turns, chat: Chat) -> tuple[Turns, Turns, Turns]:
    """The prompt that chosen and rejected begin with, and what each goes on with.

    Raises FaultyRowError where they begin differently, DataError where they cannot hold a prompt.
    """
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise DataError("columns 'chosen' and 'rejected' are of two kinds: one is text, the other messages")
    if isinstance(chosen, str) and chat.has_template and not chat.is_rendered(chosen):
        raise DataError("columns 'chosen' and 'rejected' are plain text without a prompt: add a column 'prompt'")
    shorter = min(len(chosen), len(rejected))
    length = next((i for i in range(shorter) if chosen[i] != rejected[i]), shorter)
    if isinstance(chosen, list):
        longer: list[Message] = max(chosen, rejected, key=len)  # type: ignore[arg-type]
        while length and (length == len(longer) or longer[length]["role"] != "assistant"):
            length -= 1
    elif length and chosen[length - 1] == " ":
        length -= 1  # A space belongs to the word behind it in most vocabularies.
    if not length:
        raise FaultyRowError("no common prompt", "columns 'chosen' and 'rejected' begin with no common prompt")
    return chosen[:length], chosen[length:], rejected[length:]


def only_text(answer: Turns) -> str:
    """The text of an answer that goes on from text. Raises DataError where it has several messages."""
    if isinstance(answer, str):
        return answer
    if len(answer) != 1:
        raise DataError(
            f"the answer goes on from text, but has {len(answer)} messages; give the prompt as messages, and no prefix"
        )
    return answer[0]["content"]


def _first(names: Sequence[str], row: Row) -> str | None:
    return next((name for name in names if name in row), None)


def _message(item: Any, column: str) -> Message:
    if isinstance(item, Mapping) and "from" in item and "value" in item:
        item = {"role": ROLES.get(item["from"], item["from"]), "content": item["value"]}
    if not isinstance(item, Mapping) or "role" not in item:
        raise DataError(f"column {column!r} holds {item!r:.60}, not a message with role and content")
    if item.get("content") is None:
        raise FaultyRowError("missing side", f"column {column!r} has a message of {item['role']!r} without content")
    if not isinstance(item["content"], str):
        raise DataError(f"column {column!r} has a message of {item['role']!r} whose content is no text")
    # Columnar files fill the keys that other messages have with None.
    return {name: value for name, value in item.items() if value is not None}


def _as_asked(asked: Turns, chat: Chat) -> Turns:
    """A text that is not rendered yet is what the user says."""
    return [{"role": "user", "content": asked}] if isinstance(asked, str) and not chat.is_rendered(asked) else asked
