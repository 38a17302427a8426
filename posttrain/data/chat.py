"""Messages to the exact token ids a model sees, and a mask of exactly what the assistant said in them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

from jinja2 import TemplateError

from posttrain.errors import DataError
from posttrain.types import Message

Masked = tuple[tuple[int, ...], tuple[bool, ...]]
"""Token ids and, for each, whether the policy said it: both `[T]`."""

Parted = tuple[tuple[int, ...], tuple[int, ...]]
"""Token ids `[T]`, and the index at which each part begins, then where the last one ends."""

PROBE = "posttrain"


class Chat:
    """A Hugging Face tokenizer with its chat template.

    The engine, the trainer, reward models and evaluation all get their ids here, so they agree by construction.
    A tokenizer without a template belongs to a base model: its prompts are plain text.
    """

    def __init__(self, tokenizer: Any, stop_ids: Iterable[int] = ()) -> None:
        """`stop_ids`: further ids at which the engine stops, as from the model's generation config."""
        self.tokenizer = tokenizer
        self.has_template: bool = bool(tokenizer.chat_template)
        self._given_stops = tuple(stop_ids)
        added = {token_id: token for token_id, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special_ids = {*added, *tokenizer.all_special_ids}
        self._special_texts = tuple({*(token.content for token in added.values()), *tokenizer.all_special_tokens})
        # Read off a letter, not an empty text: some tokenizers append an EOS, and bos may be eos.
        first = tokenizer("a").input_ids[:1]
        adds_bos = tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id]
        self._bos: tuple[int, ...] = tuple(first) if adds_bos else ()

    @cached_property
    def stop_ids(self) -> tuple[int, ...]:
        """Every id that ends the assistant's turn, ascending: eos, those given, and the one the template writes."""
        found = {*self._given_stops}
        if self.tokenizer.eos_token_id is not None:
            found.add(self.tokenizer.eos_token_id)
        if self.has_template and self._closing:
            found.add(self._raw(self._closing[0])[-1])
        return tuple(sorted(found))

    def is_rendered(self, text: str) -> bool:
        """Whether a text already went through a template: it starts with a special token."""
        starts = self._special_texts if self.has_template else (self.tokenizer.bos_token,)
        return text.startswith(tuple(start for start in starts if start))

    def render(self, messages: str | Sequence[Message]) -> str:
        """The text of a prompt, ending where the assistant begins to speak. A str is a prompt already rendered.

        Raises DataError where the template refuses the messages, or where there is none and they are not one user turn.
        """
        if isinstance(messages, str):
            return messages
        if self.has_template:
            return self._apply(messages, generation=True)
        if [m["role"] for m in messages] != ["user"]:
            roles = ", ".join(m["role"] for m in messages) or "none"
            raise DataError(
                f"the tokenizer has no chat template, so a prompt is the text of one user turn, not of ({roles}); "
                "use an instruct model, or leave the system message and earlier turns out"
            )
        return messages[0]["content"]

    def encode(self, text: str) -> tuple[int, ...]:
        """A rendered prompt to ids. Special tokens are added only to a base model's plain text, and only its BOS.

        Raises DataError on two BOS at the start.
        """
        plain = not self.has_template and not self.is_rendered(text)
        ids = (self._bos if plain else ()) + self._raw(text)
        bos = self.tokenizer.bos_token_id
        if bos is not None and ids[:2] == (bos, bos):
            raise DataError(
                f"the prompt starts with {self.tokenizer.bos_token!r} twice: {text[:60]!r}; "
                "the template writes one itself, so take it out of the data"
            )
        return ids

    def prompt(self, messages: str | Sequence[Message]) -> tuple[int, ...]:
        """The ids the engine sees `[T]`, up to where the assistant speaks. Raises DataError as render and encode do."""
        return self.encode(self.render(messages))

    def conversation(self, messages: Sequence[Message], given: int = 0) -> Masked:
        """A conversation up to its last stop token, masked True on what the assistant said, stop tokens included.

        The first `given` messages are context: what the assistant said there is False. What the template writes
        behind the last stop token, and messages after it, are left out, as in a roll-out of the engine. Without an
        assistant's message the mask is all False. Raises DataError for a template that renders earlier turns
        differently once later ones follow, because its ids would not be those the policy saw.
        """
        turns = [i for i, m in enumerate(messages) if m["role"] == "assistant" and i >= given]
        if not turns:
            ids = self.encode(self._apply(messages, generation=False)) if self.has_template else self.prompt(messages)
            return ids, (False,) * len(ids)
        if not self.has_template:
            if turns != [len(messages) - 1]:
                raise DataError("the tokenizer has no chat template, so a row is one user turn and one assistant turn")
            return self.continuation(self.render(messages[:-1]), messages[-1]["content"])
        tokens: tuple[int, ...] = ()
        mask: list[bool] = []
        text = turn_end = ""
        for i in turns:
            before, words, rest = self._turn(messages, i, turn_end)
            for longer, learnt in ((before, False), (before + words, True)):
                tokens = self._extend(tokens, text, longer)
                mask += [learnt] * (len(tokens) - len(mask))
                text = longer
            turn_end = text + rest
        return tokens, tuple(mask)

    def continuation(self, prompt: str, completion: str) -> Masked:
        """A rendered (or a base model's plain) prompt and the text that follows it, closed with one stop token."""
        start = self.encode(prompt)
        ids = self._extend(start, prompt, prompt + self._closed(completion))
        return ids, (False,) * len(start) + (True,) * (len(ids) - len(start))

    def in_parts(self, context: str | Sequence[Message], parts: Sequence[str]) -> Parted:
        """One turn of the assistant, said in parts that follow each other: P parts to P + 1 borders.

        Where a token would reach across a border, what is behind it is encoded by itself, so every token belongs to one
        part. What the template writes before the first part belongs to that one, and the stop token to the last.
        Raises DataError as `conversation` does, and for a template that does not write the words as they stand.
        """
        whole = "".join(parts)
        if isinstance(context, str) or not self.has_template:
            before, words, at, end = self.render(context), self._closed(whole), 0, len(whole)
        else:
            before, words, _ = self._turn([*context, {"role": "assistant", "content": whole}], len(context), "")
            at, end = self._place(whole, words)
        cuts = [min(max(at + length, 0), end) for length in accumulate(map(len, parts[:-1]))]
        ids, text = self.encode(before), before
        found = [len(ids)]
        for cut in (*cuts, len(words)):
            longer = before + words[:cut]
            ids, text = self._extend(ids, text, longer), longer
            found.append(len(ids))
        return ids, tuple(found)

    def completion_text(self, ids: Sequence[int]) -> str:
        """What verifiers read: the words without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def _raw(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False))

    def _apply(self, messages: Sequence[Message], generation: bool) -> str:
        try:
            return self.tokenizer.apply_chat_template(
                [dict(m) for m in messages], add_generation_prompt=generation, tokenize=False
            )
        except (TemplateError, TypeError, KeyError, IndexError, ValueError) as error:
            roles = ", ".join(m["role"] for m in messages) or "none"
            raise DataError(f"the chat template refuses messages of roles ({roles}): {error}") from error

    def _turn(self, messages: Sequence[Message], i: int, turn_end: str) -> tuple[str, str, str]:
        """Where message `i` is the assistant's: the text before it, its words up to the stop token, and what follows.

        `turn_end` is the text up to the last turn that was read: a template that has changed it since is refused.
        """
        stop, rest = self._require_closing()
        before = self._apply(messages[:i], generation=True)
        after = self._apply(messages[: i + 1], generation=False)
        if not before.startswith(turn_end):
            raise DataError(self._not_preserving(turn_end, before, f"message {i}"))
        if not after.startswith(before) or not after.endswith(stop + rest):
            raise DataError(self._not_preserving(before, after, f"the assistant's message {i}"))
        return before, after[len(before) : len(after) - len(rest)], rest

    def _place(self, said: str, words: str) -> tuple[int, int]:
        """Where in the words that the template writes an answer begins and ends; before 0 where it was trimmed."""
        at = words.rfind(said)
        if at >= 0:
            return at, at + len(said)
        trimmed = said.strip()
        at = words.rfind(trimmed)
        if at < 0 or not trimmed:
            raise DataError(
                "the chat template does not write an answer's words as they stand, so where its parts end is not "
                "known; use a template that does, or take out what it rewrites (as thinking between tags)"
            )
        return at - (len(said) - len(said.lstrip())), at + len(trimmed)

    def _closed(self, completion: str) -> str:
        """The text that follows a rendered prompt, with its one stop token."""
        stop, rest = self._require_closing() if self.has_template else (self.tokenizer.eos_token or "", "")
        if rest and completion.endswith(stop + rest):
            return completion.removesuffix(rest)
        return completion if completion.endswith(stop) else completion + stop

    def _extend(self, ids: tuple[int, ...], text: str, longer: str) -> tuple[int, ...]:
        """The ids of `longer`, which starts with `text`, such that they start with `ids`.

        Where a token would reach across the border the rest is encoded by itself: the policy never sees such a token.
        """
        whole = self.encode(longer)
        return whole if whole[: len(ids)] == ids else ids + self._raw(longer[len(text) :])

    @cached_property
    def _closing(self) -> tuple[str, str] | None:
        """What the template writes after the assistant's words: up to its stop token and behind. None without one."""
        turns = [{"role": "user", "content": PROBE}, {"role": "assistant", "content": PROBE}]
        try:
            tail = self._apply(turns, generation=False).rpartition(PROBE)[2]
        except DataError:
            return None
        ends = {*self._special_ids, *self._given_stops}
        stop = next((token_id for token_id in self._raw(tail) if token_id in ends), None)
        if stop is None:
            return None
        word = self.tokenizer.convert_ids_to_tokens(stop)
        before, found, behind = tail.partition(word)
        return (before + found, behind) if found else None

    def _require_closing(self) -> tuple[str, str]:
        if self._closing is None:
            raise DataError(
                "the chat template ends an assistant's turn without a special token, so a model trained on it "
                "would never learn to stop; use a template that writes one"
            )
        return self._closing

    def _not_preserving(self, expected: str, found: str, where: str) -> str:
        same = next((i for i, (a, b) in enumerate(zip(expected, found, strict=False)) if a != b), len(found))
        same = min(same, len(expected))
        return (
            f"the chat template is not prefix-preserving: with {where} it writes {found[same : same + 40]!r} where "
            f"it had written {expected[same : same + 40]!r} (as templates do that delete earlier thinking), so the "
            "ids would not be those the policy saw; use rows of one assistant turn, or a template that keeps all turns"
        )
