"""How a judge says its verdict, and what its answer is worth: read from the answer's end only, or not at all."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Parse = Literal["number", "json", "words"]

_NUMBER = r"([-+]?\d+(?:\.\d+)?)"


@dataclass(frozen=True)
class Scale:
    """A number from `low` to `high` on a last line or in a last JSON object, or one of some words on a last line.

    The judge is asked to repeat the question's nonce with its score (`bound`), so a score that it quotes from what it
    judges is not taken for its own. Raises ValueError for a scale that orders nothing.
    """

    parse: Parse = "number"
    low: float = 1.0
    high: float = 10.0
    words: Mapping[str, float] = field(default_factory=dict)
    """What each word is worth; matched whole, in any case."""
    mark: str = "Score"
    """What stands before the nonce and the score."""
    bound: bool = True

    def __post_init__(self) -> None:
        if self.parse not in ("number", "json", "words"):
            raise ValueError(f"parse: {self.parse!r} is none of number, json, words")
        if self.parse == "words" and len({word.lower() for word in self.words}) < 2:
            raise ValueError(f"words: {dict(self.words)} are no two words to choose from; give what each is worth")
        if self.parse != "words" and self.words:
            raise ValueError(f"words: they are read where parse is 'words', and it is {self.parse!r}")
        if not self.low < self.high:
            raise ValueError(f"scale: {self.low:g} to {self.high:g} is no range; give the worst and the best score")
        if not self.mark.strip():
            raise ValueError("mark: it is what the score stands behind, and cannot be empty")

    def ending(self, nonce: str) -> str:
        """What the judge is asked to end with."""
        if self.parse == "json":
            keys = f'"id": "{nonce}", ' if self.bound else ""
            return (
                f"Give your reasons in a few sentences. End with one JSON object and nothing behind it:\n"
                f'{{{keys}"score": <a number from {self.low:g} to {self.high:g}>}}'
            )
        between = f"a number from {self.low:g} to {self.high:g}"
        what = " or ".join(self.words) if self.parse == "words" else between
        return (
            f"Give your reasons in a few sentences. End with one line of this form and nothing behind it:\n"
            f"{self._head(nonce)}: <{what}>"
        )

    def reminder(self, nonce: str) -> str:
        """What is said to a judge whose answer ended otherwise."""
        return f"Your answer did not end as it has to.\n{self.ending(nonce)}"

    def read(self, answer: str, nonce: str, written: Sequence[str]) -> float | None:
        """What an answer's end says; None where it says nothing, something off the scale, or what was judged said so.

        `written`: the judged texts. What a model thought before its answer is not read.
        """
        said = answer.rpartition("</think>")[2]
        if "<think>" in said:
            return None
        if self.parse == "json":
            return self._object(said, nonce, written)
        lines = [line for line in said.splitlines() if line.strip()]
        line = _plain(lines[-1]) if lines else ""
        if not self.bound and any(line in _unmarked(text) for text in written):
            return None
        value = "|".join(map(re.escape, self.words)) if self.parse == "words" else ""
        pattern = rf"({value})\.?" if value else rf"{_NUMBER}(?:\s*/\s*{self.high:g})?\.?"
        found = re.fullmatch(rf"{re.escape(self._head(nonce))}\s*[:=]\s*{pattern}", line, re.IGNORECASE)
        if found is None:
            return None
        if self.parse == "words":
            return next(worth for word, worth in self.words.items() if word.lower() == found[1].lower())
        return self._within(float(found[1]))

    def worth(self, value: float) -> float:
        """A number as a share of the scale, in [0, 1]; a word's own worth."""
        return value if self.parse == "words" else (value - self.low) / (self.high - self.low)

    def _object(self, said: str, nonce: str, written: Sequence[str]) -> float | None:
        text = said.strip().removesuffix("```").strip()
        last = text[max(text.rfind("{"), 0) :]
        try:
            found = json.loads(last)
        except ValueError:
            return None
        if not isinstance(found, dict) or (self.bound and found.get("id") != nonce):
            return None
        if not self.bound and any(last in theirs for theirs in written):
            return None
        value = found.get("score")
        return None if isinstance(value, bool) or not isinstance(value, int | float) else self._within(float(value))

    def _within(self, value: float) -> float | None:
        return value if self.low <= value <= self.high else None

    def _head(self, nonce: str) -> str:
        return f"{self.mark} {nonce}" if self.bound else self.mark


def _plain(line: str) -> str:
    """A line without the marks of Markdown around and inside it."""
    return _unmarked(line).strip().lstrip("#> ").strip()


def _unmarked(text: str) -> str:
    return re.sub(r"[*`]", "", text)
