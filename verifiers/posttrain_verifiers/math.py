"""Does a completion's final answer equal the known one? Exact arithmetic first, Math-Verify for what is left."""

from __future__ import annotations

import logging
import re
from fractions import Fraction
from typing import Any, Literal

# 0.3 s to import: cheap enough for `posttrain check`.
from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

from posttrain.types import Verdict

# Math-Verify warns that it runs without a timeout. It must: its own needs the main thread's alarm, and the grading pool
# ends a worker that takes too long.
for _name in ("math_verify.parser", "math_verify.grader"):
    logging.getLogger(_name).setLevel(logging.ERROR)

LONGEST = 400
"""Characters of an answer; more is a text, not an answer."""
TOLERANCE = 1e-6
"""Relative. Math-Verify's own is absolute, so to it all tiny numbers are equal."""

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = rf"(?:(?<![\w)\]}}])[-−+]\s?)?\\?\$?(?:{_DIGITS})(?:\s?/\s?\d+)?(?:\s?\\?%)?"
_EXACT = re.compile(rf"([-+]?)((?:{_DIGITS})(?:[eE][-+]?\d{{1,2}})?|\d+\.)(?:/(-?)(\d+))?")
_FRACTION = re.compile(r"\\[dt]?frac\s*(?:\{\s*(-?\d+)\s*\}|(\d))\s*(?:\{\s*(-?\d+)\s*\}|(\d))")
_ANNOUNCED = re.compile(r"\banswer\**\s*(?:is|[:=])\s*[:=]?\s*\**", re.IGNORECASE)
_LAST = re.compile(rf"\$([^$\n]+)\$|\\\((.+?)\\\)|(?<![\w.])({_NUMBER})")
_UNIT = re.compile(r"\s+(?!(?:or|and|pi|sqrt|sin|cos|tan|log|ln|hundred|thousand|[mbtr]+illion|dozen)\b)[A-Za-z]{2,}")
_MATHS_WORDS = {"sqrt", "sin", "cos", "tan", "log", "pmatrix", "bmatrix", "matrix", "cases"}
"""That a formula may hold without a backslash before them."""
_SEVERAL = re.compile(r"\bor\b|\band\b|;|,(?!\d{3}(?!\d))|\\(?:text|mathrm)\{\s*(?:or|and)\s*\}")
_DOTS = re.compile(r"\\[lc]?dots|\.\.\.|…")


class Math:
    """1 where the completion's final answer equals the column `answer`, else 0.

    The answer is looked for in the last `\\boxed{}`, after `####`, after "answer is" or "answer:", and, when `lenient`,
    in the last number or formula. `strict` takes a box, `####`, or a completion that is nothing but the answer.
    `answer` may be a bare answer or a worked solution that ends in one of the first two forms (GSM8K, MATH).
    """

    def __init__(self, mode: Literal["lenient", "strict"] = "lenient") -> None:
        if mode not in ("lenient", "strict"):
            raise ValueError(f"mode is 'lenient' or 'strict', not {mode!r}")
        self.mode = mode

    def prepare(self) -> None:
        """Compile Math-Verify's grammar before a verdict's clock starts."""
        _agree("x^2", "x*x")

    def __call__(self, completion: str, *, answer: Any) -> Verdict:
        """Score 0 and `unparsable` where the completion holds no answer; no score where `answer` cannot be read."""
        gold = _marked(str(answer)) if answer is not None else None
        if gold is None and answer is not None:
            gold = str(answer).strip()
        if not gold or len(gold) > LONGEST:
            return Verdict(None, "unparsable", reason=f"the known answer cannot be read: {str(answer)[-80:]!r}")
        found = extract(completion, self.mode)
        if found is None:
            return Verdict(0.0, "unparsable", reason=f"no answer found, {gold!r} expected")
        if self.mode == "lenient" and "=" in found and "=" not in gold:
            # "4 + 8 = 12" was asked for 12: an equation's last side is the answer.
            found = found.rpartition("=")[2].strip()
        equal = compare(found, gold)
        if equal is None:
            return Verdict(None, "unparsable", reason=f"the known answer cannot be read: {gold!r}")
        return Verdict(float(equal), reason=f"extracted {found!r}, compared with {gold!r}")


def extract(text: str, mode: str = "lenient") -> str | None:
    """The final answer as the text writes it, or None."""
    marked = _marked(text)
    if marked is None and mode == "lenient" and (announced := list(_ANNOUNCED.finditer(text))):
        marked = _phrase(text[announced[-1].end() :].strip().split("\n")[0])
    if marked is None and _is_formula(text):
        marked = text.strip()
    if marked is None and mode == "lenient":
        marked = _last(text)
    return marked if marked and len(marked) <= LONGEST else None


def _marked(text: str) -> str | None:
    """What stands in the last box or after the last ####; empty where a box was opened and never closed."""
    start = max(text.rfind("\\boxed{"), text.rfind("\\fbox{"))
    if start >= 0:
        first = text.index("{", start) + 1
        depth = 1
        for i in range(first, len(text)):
            depth += {"{": 1, "}": -1}.get(text[i], 0)
            if depth == 0:
                return _phrase(text[first:i])
        return ""
    _, mark, rest = text.rpartition("####")
    return _phrase(rest.strip().split("\n")[0]) if mark else None


def _phrase(text: str) -> str:
    """An answer without the words behind it: '18 dollars.' is 18, but '18 or 20' stays what it is."""
    text = text.strip().strip("*").strip()
    number = re.match(_NUMBER, text)
    if number:
        tail = text[number.end() :]
        hedged = re.search(r"\b(?:or|and)\b.*\d", tail)
        if not hedged and (not tail.strip(" .!*") or _UNIT.match(tail) or re.match(r"[.!]?\*\*|[.!]\s", tail)):
            return number.group()
    if formula := re.match(r"\$([^$]+)\$|\\\((.+?)\\\)", text):
        rest = text[formula.end() :]
        if not re.search(r"\b(?:or|and)\b|[\d$]", rest):
            return (formula.group(1) or formula.group(2)).strip()
    return re.split(r"\.\s|\.$", text, maxsplit=1)[0].strip().strip("*").strip()


def _is_formula(text: str) -> bool:
    """One line of mathematics and no prose."""
    text = text.strip()
    words = re.findall(r"[A-Za-z]{3,}", re.sub(r"\\(?:text|mbox|mathrm)\s*\{[^}]*\}", "", text))
    return 0 < len(text) <= 80 and "\n" not in text and all(w in _MATHS_WORDS or "\\" + w in text for w in words)


def _last(text: str) -> str | None:
    """The last number or formula, unless it is the end of a list of candidates."""
    text = text[-5 * LONGEST :]  # the pattern is quadratic in hostile texts
    found = list(_LAST.finditer(text))
    if not found:
        return None
    before = text[: found[-1].start()]
    if re.search(r"\d[%$)]*\s*(?:,\s*)?(?:\bor|\band|,|;)\s*$", before):
        return None
    return next(group for group in found[-1].groups() if group).strip()


def compare(found: str, gold: str) -> bool | None:
    """Whether two written answers are equal; None where `gold` is not one."""
    ours, theirs = _exact(found), _exact(gold)
    if ours is not None and theirs is not None:
        return bool(ours & theirs)
    plain_found, plain_gold = _plain(found), _plain(gold)
    if not plain_gold:
        return None
    if plain_found == plain_gold:
        return True
    if theirs is not None and _SEVERAL.search(found):
        return False
    if _DOTS.search(found) or _DOTS.search(gold) or _is_word(plain_found) or _is_word(plain_gold):
        return False
    return _agree(found, gold)


def _exact(text: str) -> frozenset[Fraction] | None:
    """The value of an integer, decimal or simple fraction. A percentage means itself and its hundredth."""
    if len(text) > LONGEST:
        return None
    text = re.sub(r"\\[!,;: ]|\\?\$|\\left|\\right|\s|\\\(|\\\)|\{,\}(?=\d{3})", "", text.replace("−", "-"))
    text = re.sub(r"\^\{?\\circ\}?|°", "", text).rstrip(".")
    percent = text.endswith("%")
    text = text.rstrip("%").rstrip("\\")
    sign = 1
    if text[:2] in ("-\\", "+\\"):
        sign, text = (-1 if text[0] == "-" else 1), text[1:]
    if fraction := _FRACTION.fullmatch(text):
        top, bottom = (int(a or b) for a, b in (fraction.group(1, 2), fraction.group(3, 4)))
        value = Fraction(top, bottom) if bottom else None
    elif number := _EXACT.fullmatch(text):
        minus, digits, minus_below, below = number.groups()
        value = None if below and not int(below) else Fraction(digits.replace(",", "")) / Fraction(below or 1)
        if value is not None:
            value *= (-1 if minus == "-" else 1) * (-1 if minus_below else 1)
    else:
        value = None
    if value is None:
        return None
    return frozenset({sign * value, sign * value / 100}) if percent else frozenset({sign * value})


def _plain(text: str) -> str:
    """For comparing names and choices as strings: no mark-up, no brackets around, no spaces, lower case."""
    text = re.sub(r"\\(?:text|textbf|mathrm|mathbf|operatorname)\s*\{([^{}]*)\}", r"\1", text)
    text = re.sub(r"\\[!,;: ]|\\left|\\right|[\s$]", "", text.replace("\\dfrac", "\\frac").replace("\\tfrac", "\\frac"))
    choice = re.fullmatch(r"\(([A-Za-z])\)", text)
    return (choice.group(1) if choice else text).rstrip(".").lower()


def _is_word(plain: str) -> bool:
    return bool(re.fullmatch(r"[^\W\d_]{3,}|no", plain))


def _agree(found: str, gold: str) -> bool | None:
    """Math-Verify's opinion, which must be the same in both orders; it is not symmetric. None: `gold` is unreadable."""
    theirs = _parsed(gold)
    if theirs is None:
        return None
    ours = _parsed(found)
    if ours is None:
        return False
    both = all(verify(a, b, timeout_seconds=None) for a, b in ((theirs, ours), (ours, theirs)))
    return both and _close(ours, theirs)


def _parsed(text: str) -> Any:
    # An upright e or i is lost in Math-Verify's normalisation, together with what stands behind it.
    text = re.sub(r"\\(?:mathrm|operatorname)\{([ei])\}", r"\1", text.strip().strip("$"))
    targets = [LatexExtractionConfig(), ExprExtractionConfig()]
    found = parse(f"${text}$", targets, fallback_mode="no_fallback", parsing_timeout=None)
    return found[0] if found else None


def _close(ours: Any, theirs: Any) -> bool:
    """Whether two numbers agree relatively, at two precisions; True for what is not a number."""
    if not (getattr(ours, "is_number", False) and getattr(theirs, "is_number", False)):
        return True
    for digits in (20, 50):
        difference = abs((ours - theirs).evalf(digits))
        scale = max(abs(ours.evalf(digits)), abs(theirs.evalf(digits)))
        if not difference.is_finite:
            return bool(ours == theirs)  # two infinities
        if not bool(difference <= TOLERANCE * scale):
            return False
    return True
