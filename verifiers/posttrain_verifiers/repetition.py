"""Does a completion say the same thing over and over?"""

from __future__ import annotations

import re
from collections import Counter

from posttrain.types import Verdict

LONGEST = 200_000
"""Tokens that are read, from the end: where a loop stands."""
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff"
"""Thai, Lao, Burmese, Khmer, kana and Han: no spaces between words, so a token is a character."""
_TOKEN = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")
_WORD = 40
"""Letters; a longer word counts letter by letter, so a loop without spaces is seen."""


class Repetition:
    """The share of a completion's n-grams that say something new: 1 without repetition, towards 0 in a loop.

    distinct n-grams / all n-grams, in words and marks, letter case aside. Up to `allowed`, the repeated share costs
    nothing: the score falls in a straight line from 1 there to 0 where all is repeated. A completion of n tokens or
    fewer repeats nothing and scores 1; that it is empty is another verifier's business. Parts: `distinct`, the plain
    share, and `loop`, the share of the tokens that the most frequent n-gram covers.
    """

    version = "1"

    def __init__(self, n: int = 4, allowed: float = 0.1) -> None:
        if n < 1:
            raise ValueError(f"n is how many tokens a gram has, at least 1, not {n}")
        if not 0 <= allowed < 1:
            raise ValueError(f"allowed is a share of the n-grams, 0 <= allowed < 1, not {allowed}")
        self.n, self.allowed = n, allowed

    def __call__(self, completion: str) -> Verdict:
        words = tokens(completion)
        count = len(words) - self.n + 1
        if count < 2:
            return Verdict(1.0, parts={"distinct": 1.0, "loop": 0.0}, reason=f"{len(words)} tokens")
        grams = Counter(zip(*(words[i:] for i in range(self.n)), strict=False))
        distinct = len(grams) / count
        gram, times = grams.most_common(1)[0]
        loop = min(1.0, times * self.n / len(words)) if times > 1 else 0.0
        score = min(1.0, distinct / (1 - self.allowed))
        reason = f"{len(grams)} of {count} {self.n}-grams are new; {' '.join(gram)!r:.80} stands {times} times"
        return Verdict(score, parts={"distinct": distinct, "loop": loop}, reason=reason)


def tokens(text: str) -> list[str]:
    """Words and marks in small letters, the last LONGEST of them."""
    found: list[str] = []
    for word in _TOKEN.findall(text.lower()):
        found.extend(word if len(word) > _WORD else (word,))
    return found[-LONGEST:]
