"""Does a completion's final answer equal the known one? Exact arithmetic first, Math-Verify for what is left."""

from __future__ import annotations

import re
from typing import Any

from posttrain.types import Verdict
from posttrain_verifiers.mathematics.answers import Answer, Group, Named, Unread
from posttrain_verifiers.mathematics.exact import EXACT, Comparison, Tolerance
from posttrain_verifiers.mathematics.expressions import WORDS
from posttrain_verifiers.mathematics.extraction import Mode, extract, marked
from posttrain_verifiers.mathematics.reading import LONGEST, read
from posttrain_verifiers.mathematics.symbolic import agree

__all__ = ["Math", "compare", "extract"]

_SEVERAL = re.compile(r"\bor\b|\band\b|;")


class Math:
    """1 where the completion's final answer equals the column `answer`, else 0.

    The answer is looked for in the last `\\boxed{}`, after `####`, after "answer is" or "answer:", and, when `lenient`,
    in the last number or formula. `strict` takes a box, `####`, or a completion that is nothing but the answer. Nothing
    before `</think>` counts. `answer` may be a bare answer or a worked solution that ends in one of the first two forms
    (GSM8K, MATH).

    Equal is exactly equal: 0.333 is not 1/3. `decimals` n lets real numbers differ by half a unit of the nth decimal,
    `relative_tolerance` by that share of the larger one.
    """

    version = "2"

    def __init__(self, mode: Mode = "lenient", decimals: int | None = None, relative_tolerance: float = 0.0) -> None:
        if mode not in ("lenient", "strict"):
            raise ValueError(f"mode is 'lenient' or 'strict', not {mode!r}")
        if decimals is not None and not 0 <= decimals <= 100:
            raise ValueError(f"decimals is a number of places from 0 to 100, or none, not {decimals!r}")
        if not 0 <= relative_tolerance < 1:
            raise ValueError(f"relative_tolerance is a share from 0 to below 1, not {relative_tolerance!r}")
        self.mode = mode
        self.tolerance = Tolerance(decimals, relative_tolerance)

    def prepare(self) -> None:
        """Compile Math-Verify's grammar before a verdict's clock starts."""
        agree("x^2", "x*x")

    def __call__(self, completion: str, *, answer: Any) -> Verdict:
        """Score 0 and `unparsable` where the completion holds no answer; no score where `answer` cannot be read."""
        gold = marked(str(answer)) if answer is not None else None
        if gold is None and answer is not None:
            gold = str(answer).strip()
        if not gold or len(gold) > LONGEST:
            return Verdict(None, "unparsable", reason=f"the known answer cannot be read: {str(answer)[-80:]!r}")
        found = extract(completion, self.mode)
        if found is None:
            return Verdict(0.0, "unparsable", reason=f"no answer found, {gold!r} expected")
        ours, theirs = read(found), read(gold)
        equal = _compare((found, ours), (gold, theirs), self.tolerance)
        if equal is None:
            return Verdict(None, "unparsable", reason=f"the known answer cannot be read: {gold!r}")
        return Verdict(float(equal), reason=f"extracted {found!r}, compared with {gold!r}", answer=ours.text)


def compare(found: str, gold: str, tolerance: Tolerance = EXACT) -> bool | None:
    """Whether two written answers are equal, the same in both orders; None where `gold` is not one."""
    return _compare((found, read(found)), (gold, read(gold)), tolerance)


def _compare(found: tuple[str, Answer], gold: tuple[str, Answer], tolerance: Tolerance) -> bool | None:
    if not gold[1].text:
        return None
    exact = Comparison(tolerance).equal(found[1], gold[1])
    if exact is not None:
        return exact
    # A list of candidates is no answer to a question that has one, and a sentence is no formula.
    if _many(*found) != _many(*gold) or _is_prose(*found) or _is_prose(*gold):
        return False
    opinion = agree(found[0], gold[0])
    return False if opinion is None and not isinstance(gold[1], Unread) else opinion


def _is_prose(text: str, answer: Answer) -> bool:
    bare = re.sub(r"\\(?:begin|end|operatorname|mathrm|mathbb)\s*\{\w*\*?\}|\\[A-Za-z]+", " ", text)
    words = set(re.findall(r"[A-Za-z]{3,}", bare))
    return isinstance(answer, Unread) and not words <= WORDS | {
        "mod",
        "lim",
        "sum",
        "max",
        "min",
        "gcd",
        "lcm",
        "abc",
        "xyz",
    }


def _many(text: str, answer: Answer) -> bool:
    if isinstance(answer, Named):
        answer = answer.answer
    if isinstance(answer, Unread):
        return bool(_SEVERAL.search(text))
    return isinstance(answer, Group) and answer.kind == "list"
