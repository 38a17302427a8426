"""Is a completion written in the asked form? Says nothing about whether it is right."""

from __future__ import annotations

import re

from posttrain.types import Verdict


class Tags:
    """1 where the completion is `<think>…</think>` and `<answer>…</answer>`, each once, in this order, nothing else.

    `think` empty asks for the answer tags only, with anything before them.
    """

    def __init__(self, think: str = "think", answer: str = "answer") -> None:
        if not answer:
            raise ValueError("answer names the tag around the answer; it cannot be empty")
        self.tags = [tag for tag in (think, answer) if tag]
        body = r"\s*".join(rf"<{re.escape(tag)}>(.*?)</{re.escape(tag)}>" for tag in self.tags)
        self.pattern = re.compile(rf"\s*{body}\s*" if think else rf".*?{body}\s*", re.DOTALL)

    def __call__(self, completion: str) -> Verdict:
        for tag in self.tags:
            for mark in (f"<{tag}>", f"</{tag}>"):
                if completion.count(mark) != 1:
                    return Verdict(0.0, reason=f"{mark} stands {completion.count(mark)} times")
        match = self.pattern.fullmatch(completion)
        if match is None:
            return Verdict(0.0, reason="text outside the tags, or tags out of order")
        empty = [tag for tag, body in zip(self.tags, match.groups(), strict=True) if not body.strip()]
        return Verdict(float(not empty), reason=f"empty: {', '.join(empty)}" if empty else "")


class Boxed:
    """1 where exactly one `\\boxed{…}` stands in the completion, closed and not empty."""

    def __call__(self, completion: str) -> Verdict:
        count = completion.count("\\boxed{")
        if count != 1:
            return Verdict(0.0, reason=f"{count} boxes")
        depth, body = 1, ""
        for character in completion.partition("\\boxed{")[2]:
            depth += {"{": 1, "}": -1}.get(character, 0)
            if depth == 0:
                return Verdict(float(bool(body.strip())), reason="" if body.strip() else "the box is empty")
            body += character
        return Verdict(0.0, reason="the box is never closed")


class Length:
    """1 up to `target` words, then falling in a straight line to 0 at `limit` words (twice the target by default)."""

    def __init__(self, target: int, limit: int | None = None) -> None:
        self.target, self.limit = target, 2 * target if limit is None else limit
        if not 0 < self.target < self.limit:
            raise ValueError(f"0 < target < limit must hold; target is {self.target}, limit {self.limit}")

    def __call__(self, completion: str) -> float:
        words = len(completion.split())
        return min(1.0, max(0.0, (self.limit - words) / (self.limit - self.target)))


class Regex:
    """1 where `pattern` is found in the completion; `whole` asks that it matches all of it. A dot matches new lines."""

    def __init__(self, pattern: str, whole: bool = False) -> None:
        self.pattern, self.whole = re.compile(pattern, re.DOTALL), whole

    def __call__(self, completion: str) -> float:
        match = self.pattern.fullmatch(completion) if self.whole else self.pattern.search(completion)
        return float(match is not None)
