"""A graded response as the token ids that a model reads: those that were sampled, or its own where it has others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

Messages = Sequence[Mapping[str, str]]

PROBE = "posttrain"


class Read(NamedTuple):
    """What a model reads of one response."""

    ids: tuple[int, ...]
    start: int
    """Where the response begins."""
    sampled: bool
    """The ids are the policy's own, so a position among them is one among the tokens it said."""


class Response(NamedTuple):
    """One response as the Grader gives it: `prompt` is text or messages, `text` the rendered prompt."""

    prompt: Any
    text: str
    prompt_ids: Sequence[int] | None
    ids: Sequence[int]
    completion: str


def responses(
    prompts: Sequence[Any],
    completions: Sequence[Any],
    completion_ids: Sequence[Sequence[int]],
    prompt_ids: Sequence[Sequence[int] | None],
    prompt_texts: Sequence[str] | None,
) -> list[Response]:
    """TRL's parallel lists as one entry per response. Without `prompt_texts` a prompt that is text is what was read."""
    texts = prompt_texts or [p if isinstance(p, str) else "" for p in prompts]
    words = [c if isinstance(c, str) else c[-1]["content"] for c in completions]
    return [Response(*row) for row in zip(prompts, texts, prompt_ids, completion_ids, words, strict=True)]


class Reader:
    """A model's tokenizer. Ids are taken as they were sampled wherever they mean the same to it."""

    def __init__(self, tokenizer: Any, name: str) -> None:
        """`name`: what messages call the model."""
        self.tokenizer, self.name = tokenizer, name

    def read(self, response: Response) -> Read:
        """The sampled ids, else the row's messages and the response in the model's own template.

        Raises ValueError where neither can be had.
        """
        if self.shares(response):
            assert response.prompt_ids is not None
            return Read((*response.prompt_ids, *response.ids), len(response.prompt_ids), True)
        if isinstance(response.prompt, str) or not response.prompt:
            raise ValueError(f"{self._mismatch(response)}; give the row messages as `prompt` or `messages`")
        return self.render(response.prompt, response.completion)

    def sampled(self, response: Response) -> Read:
        """The sampled ids. Raises ValueError where they mean something else to this model."""
        if not self.shares(response):
            raise ValueError(f"{self._mismatch(response)}; use a model with the policy's tokenizer")
        return self.read(response)

    def shares(self, response: Response) -> bool:
        """Whether the sampled ids are this tokenizer's: they decode to the prompt's text and to the response's.

        Exact for the tokens that are there, whatever else two vocabularies differ in.
        """
        if response.prompt_ids is None:
            return False
        asked, said = list(response.prompt_ids), list(response.ids)
        # A base model's beginning of a text is no part of the text.
        plain = asked[1:] if asked[:1] == [self.tokenizer.bos_token_id] else asked
        same = response.text in (self._decode(asked), self._decode(plain)) or self._encode(response.text) in (
            asked,
            plain,
        )
        spoken = self.tokenizer.decode(said, skip_special_tokens=True)
        return same and spoken == response.completion

    def render(self, messages: Messages, completion: str) -> Read:
        """Messages and an answer to them, up to the token that ends it: what a conversation is in training.

        Raises ValueError without a chat template, or where the template rewrites what was there.
        """
        if not self.tokenizer.chat_template:
            raise ValueError(f"{self.name}: its tokenizer has no chat template for messages")
        before = self._apply(messages, generation=True)
        after = self._apply([*messages, {"role": "assistant", "content": completion}], generation=False)
        if not after.startswith(before):
            raise ValueError(f"{self.name}: its chat template writes a prompt differently once an answer follows")
        said = after.removesuffix(self._behind_stop)
        ids, whole = self._encode(before), self._encode(said)
        if whole[: len(ids)] != ids:
            # A token would reach across the border, which a policy never samples.
            whole = ids + self._encode(said[len(before) :])
        return Read(tuple(whole), len(ids), False)

    @cached_property
    def _behind_stop(self) -> str:
        """What the template writes behind the token that ends the assistant's turn."""
        turns = [{"role": "user", "content": PROBE}, {"role": "assistant", "content": PROBE}]
        tail = self._apply(turns, generation=False).rpartition(PROBE)[2]
        added = self.tokenizer.added_tokens_decoder.items()
        ends = {*self.tokenizer.all_special_ids, *(token_id for token_id, token in added if token.special)}
        stop = next((token_id for token_id in self._encode(tail) if token_id in ends), None)
        return "" if stop is None else tail.partition(self.tokenizer.convert_ids_to_tokens(stop))[2]

    def _apply(self, messages: Messages, generation: bool) -> str:
        turns = [dict(m) for m in messages]
        return self.tokenizer.apply_chat_template(turns, add_generation_prompt=generation, tokenize=False)

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _decode(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    def _mismatch(self, response: Response) -> str:
        if response.prompt_ids is None:
            return f"{self.name}: the response is not the prompt's tokens followed by what was said"
        return f"{self.name}: its tokenizer reads the sampled ids as other words than were said"
