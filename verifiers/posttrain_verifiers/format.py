"""Is a completion written in the asked form? Says nothing about whether it is right."""

from __future__ import annotations

import re
from typing import Literal

from posttrain.types import Verdict


class Tags:
    """1 where the completion is `<think>…</think>` and `<answer>…</answer>`, each once, in this order, nothing else.

    `think` empty asks for the answer tags only, with anything before them.
    """

    version = "1"

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

    version = "1"

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
    """1 up to `target` words, then falling in a straight line to 0 at `limit` words (twice the target by default).

    Less 1, it is DAPO's overlong punishment (2503.14476, eq. 13) in words or `characters` instead of tokens; in tokens,
    write `shaping: overlong` in the recipe's algorithm. Languages that put no spaces between words need `characters`.
    """

    version = "1"

    def __init__(self, target: int, limit: int | None = None, unit: Literal["words", "characters"] = "words") -> None:
        self.target, self.limit, self.unit = target, 2 * target if limit is None else limit, unit
        if not 0 < self.target < self.limit:
            raise ValueError(f"0 < target < limit must hold; target is {self.target}, limit {self.limit}")
        if unit not in ("words", "characters"):
            raise ValueError(f"unit is 'words' or 'characters', not {unit!r}")

    def __call__(self, completion: str) -> Verdict:
        length = len(completion) if self.unit == "characters" else len(completion.split())
        score = min(1.0, max(0.0, (self.limit - length) / (self.limit - self.target)))
        return Verdict(score, parts={self.unit: float(length)}, reason=f"{length} {self.unit}")


class Regex:
    """1 where `pattern` is found in the completion; `whole` asks that it matches all of it. A dot matches new lines.

    A search that takes more than `timeout` seconds is given up: no score, status `timeout`.
    """

    version = "1"

    def __init__(self, pattern: str, whole: bool = False, timeout: float = 1.0) -> None:
        # Python's own module cannot be interrupted: `(a+)+b` on thirty letters would take the whole worker down.
        import regex  # type: ignore[import-untyped]

        if not timeout > 0:
            raise ValueError(f"timeout is in seconds and above 0, not {timeout}")
        self.pattern, self.whole, self.timeout = regex.compile(pattern, regex.DOTALL), whole, timeout

    def __call__(self, completion: str) -> Verdict:
        search = self.pattern.fullmatch if self.whole else self.pattern.search
        try:
            found = search(completion, timeout=self.timeout) is not None
        except TimeoutError:
            return Verdict(None, "timeout", reason=f"the pattern took more than {self.timeout} s")
        return Verdict(float(found), reason="" if found else f"{self.pattern.pattern!r} is not found")
