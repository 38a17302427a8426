"""Where a completion gives its final answer."""

from __future__ import annotations

import re
from typing import Literal

from posttrain_verifiers.mathematics.reading import LONGEST

Mode = Literal["lenient", "strict"]

_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = rf"(?:(?<![\w)\]}}])[-−+]\s?)?\\?\$?(?:{_DIGITS})(?:\s?/\s?\d+)?(?:\s?\\?%)?"
_ANNOUNCED = re.compile(
    r"\banswer\**\s*(?:is|would be|should be|equals|[:=])\s*[:=]?(?:\s*(?:therefore|thus|simply|just|indeed|then)\b)?"
    r"\s*:?\s*\**",
    re.IGNORECASE,
)
_LAST = re.compile(rf"\$([^$\n]+)\$|\\\((.+?)\\\)|(?<![\w.])({_NUMBER})")
_MATHS_WORDS = {"sqrt", "sin", "cos", "tan", "log", "pmatrix", "bmatrix", "matrix", "cases"}
"""That a formula may hold without a backslash before them."""
_SHORT_WORDS = re.compile("a[mnst]|b[ey]|do|go|he|i[fnst]|m[ey]|no|o[fnr]|so|to|u[ps]|we", re.IGNORECASE)
_WORD = re.compile(r"\(?[A-Za-z]{1,20}\)?\.?")
_BETWEEN_BOXES = re.compile(r"[\s$,;.]*(?:\b(?:or|and)\b|\\text\{\s*(?:or|and)\s*\})?[\s$]*")
_REASONS = re.compile(r",?\s+(?:because|since|as|so|which|where|making|giving|when|given)\b.*", re.DOTALL)
_END = re.compile(r"\.\s|\.$")


def extract(text: str, mode: str = "lenient") -> str | None:
    """The final answer as the text writes it, or None. What stands before `</think>` is not looked at.

    It is looked for in the last `\\boxed{}`, after the last `####`, after "answer is" or "answer:", and, when
    `lenient`, in the last number or formula. `strict` takes a box, `####`, or a text that is nothing but the answer.
    """
    text = after_thinking(text)
    found = marked(text)
    if found is None and mode == "lenient" and (announced := list(_ANNOUNCED.finditer(text))):
        found = _phrase(text[announced[-1].end() :].strip().split("\n")[0])
    if found is None and _is_formula(text):
        found = text.strip()
    if found is None and mode == "lenient":
        found = _last(text)
    return found if found and len(found) <= LONGEST else None


def after_thinking(text: str) -> str:
    """What was said behind the reasoning; nothing where that was never closed."""
    said = text.rpartition("</think>")[2]
    return "" if "<think>" in said else said


def marked(text: str) -> str | None:
    """What stands in the last box or after the last ####; empty where a box was opened and never closed.

    Boxes side by side ("\\boxed{1} or \\boxed{2}") are one answer of several parts.
    """
    start = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    if start < 0:
        _, mark, rest = text.rpartition("####")
        return _phrase(rest.strip().split("\n")[0]) if mark else None
    boxes: list[str] = []
    last = len(text)
    while start >= 0 and len(boxes) < 20:
        content, end = _box(text, start)
        if not boxes:
            boxes.append(content)
        elif end < 0 or not _BETWEEN_BOXES.fullmatch(text, end, last) or "\n" in text[end:last].strip(" "):
            break
        elif content not in boxes:
            boxes.insert(0, content)
        last = start
        window = text[max(0, start - LONGEST) : start]
        before = max(window.rfind("\\boxed"), window.rfind("\\fbox"))
        start = max(0, start - LONGEST) + before if before >= 0 else -1
    return " or ".join(boxes)


def _box(text: str, start: int) -> tuple[str, int]:
    """The content of the box that begins at `start` and where it ends; -1 where it does not."""
    bare = re.compile(r"\\(?:boxed|fbox)(?:\s*(\{)|\s+(\w+))").match(text, start)
    if bare is None:
        return "", -1
    if bare.group(2):
        return bare.group(2), bare.end()
    depth = 1
    for i in range(bare.end(), len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[bare.end() : i].strip().strip("*").rstrip(".").strip(), i + 1
    return "", -1


def _phrase(text: str) -> str:
    """An answer without the sentence around it."""
    text = text.strip().strip("*").strip()
    if formula := re.match(r"\$([^$]+)\$|\\\((.+?)\\\)", text):
        rest = text[formula.end() :]
        if not re.search(r"\b(?:or|and)\b|[\d$]", rest):
            unit = re.match(r"\s*(?:%|[A-Za-z]+(?:\s(?:per|an?)\s[A-Za-z]+)?)", rest)
            inside = (formula.group(1) or formula.group(2)).strip()
            return f"{inside} {unit.group().strip()}" if unit and not _REASONS.match(rest) else inside
    text = re.split(r"\*\*", text, maxsplit=1)[0]
    return _REASONS.sub("", _END.split(text, maxsplit=1)[0]).strip().strip("*").rstrip("!").strip()


def _is_formula(text: str) -> bool:
    """One line of mathematics and no prose, or one word."""
    text = text.strip()
    if _WORD.fullmatch(text):
        return True
    words = re.findall(r"[A-Za-z]{2,}", re.sub(r"\\(?:text|mbox|mathrm)\s*\{[^}]*\}", "", text))
    return (
        0 < len(text) <= 80
        and "\n" not in text
        and all(w in _MATHS_WORDS or "\\" + w in text or (len(w) == 2 and not _SHORT_WORDS.fullmatch(w)) for w in words)
    )


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
