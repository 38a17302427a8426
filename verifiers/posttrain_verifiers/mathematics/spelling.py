"""One spelling for the many ways to write mathematics: Unicode, LaTeX and plain text."""

from __future__ import annotations

import re
import unicodedata

_SYMBOLS = r"""
- − – — ﹣ －
/ ÷ ⁄ ∕
\cdot × · ⋅ ∙
\pi π
\infty ∞
\le ≤ ⩽
\ge ≥ ⩾
\ne ≠
\pm ±
\mp ∓
\cup ∪
\cap ∩
\in ∈
\sqrt √
\sqrt[3] ∛
^\circ ° º
\emptyset ∅
\mathbb{R} ℝ
\ldots …
\frac{1}{2} ½
\frac{1}{3} ⅓
\frac{2}{3} ⅔
\frac{1}{4} ¼
\frac{3}{4} ¾
\theta θ
\alpha α
\beta β
\lambda λ
\phi φ
\langle ⟨
\rangle ⟩
" “ ”
' ‘ ’
cents ¢
"""
_TABLE = {
    ord(letter): f"{plain} " if plain[-1].isalpha() else plain
    for plain, *letters in (line.split(" ") for line in _SYMBOLS.strip().split("\n"))
    for letter in letters
} | dict.fromkeys((0xA0, 0x2009, 0x202F), " ")
_SMALL = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ]+")
_LOW = re.compile("[₀₁₂₃₄₅₆₇₈₉]+")

_THOUSANDS = re.compile(r"(?<=\d)(?:\{,\}|,?\\[!,:; ]\s*|\{,\}\\!)(?=\d{3}(?!\d))")
_SPACE = re.compile(
    r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|hspace\{[^{}]*\}|phantom\{[^{}]*\})(?![A-Za-z])"
    r"|\\[()\[\]]"
)
_THIN = re.compile(r"\\[!,;: ]|\\q?quad(?![A-Za-z])|~")
_TEXT = re.compile(r"\\(?:text(?:bf|it|rm|sf|tt|normal)?|mbox|hbox|(rm|bf|it)(?=\{))\s*\{([^{}]*)\}")
_UPRIGHT = re.compile(r"\\(?:mathrm|mathbf|mathit|mathsf|operatorname|boldsymbol|bm|mathnormal)\*?\s*\{([^{}]*)\}")
_SAME = [
    (re.compile(pattern), text)
    for pattern, text in (
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\(?:leqslant|leq)(?![A-Za-z])", r"\\le"),
        (r"\\(?:geqslant|geq)(?![A-Za-z])", r"\\ge"),
        (r"\\neq(?![A-Za-z])", r"\\ne"),
        (r"\\lt(?![A-Za-z])", "<"),
        (r"\\gt(?![A-Za-z])", ">"),
        (r"\\(?:varnothing)(?![A-Za-z])", r"\\emptyset"),
        (r"\\(?:times|ast)(?![A-Za-z])", r"\\cdot"),
        (r"\\div(?![A-Za-z])", "/"),
        (r"\\langle(?![A-Za-z])", "("),
        (r"\\rangle(?![A-Za-z])", ")"),
        (r"\\lbrace(?![A-Za-z])", r"\\{"),
        (r"\\rbrace(?![A-Za-z])", r"\\}"),
        (r"\\[lr]?vert(?![A-Za-z])", "|"),
        (r"\\(?:degree|textdegree)(?![A-Za-z])", r"^\\circ"),
        (r"\\%", "%"),
        (r"\\_", "_"),
        (r"\\\s+(?=\S)", " "),
    )
]
_UNITS = {"m": "meters", "g": "grams", "s": "seconds", "h": "hours", "L": "liters", "l": "liters"}
"""Single letters that are units where a text stands behind a number, and variables elsewhere."""
_GROUPED = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_SPACED = re.compile(r"-?\d{1,3}(?: \d{3})+(?:\.\d+)?")


def spell(text: str) -> str:
    """The text in the one spelling that the readers know. `$` stays only as the sign of money."""
    text = text.strip()
    if not text.isascii():
        text = _ascii(text)
    if "\\" in text or "{,}" in text:
        text = _latex(text)
    if "$" in text:
        text = _dollars(text)
    if _SPACED.fullmatch(text):
        text = text.replace(" ", "")
    while text[-1:] in (".", ",", ";") and not text.endswith(".."):
        text = text[:-1].rstrip()
    return text.strip()


def without_thousands(text: str) -> str:
    """1,234,567 as 1234567. Not for what stands inside brackets, where a comma separates."""
    return _GROUPED.sub(lambda m: m.group().replace(",", ""), text) if "," in text else text


def _ascii(text: str) -> str:
    text = _SMALL.sub(lambda m: "^{" + _normal(m.group()) + "}", text.translate(_TABLE))
    return _normal(_LOW.sub(lambda m: "_{" + _normal(m.group()) + "}", text))


def _normal(text: str) -> str:
    return unicodedata.normalize("NFKC", text).replace("\u2212", "-")


def _latex(text: str) -> str:
    text = _THOUSANDS.sub("", text)
    text = _SPACE.sub("", text)
    if "\\\\" not in text:  # a row of a matrix ends in \\
        text = _THIN.sub(" ", text)
    for _ in range(2):  # \text{\textbf{...}}
        text = _TEXT.sub(_word, text)
        text = _UPRIGHT.sub(_upright, text)
    for pattern, same in _SAME:
        text = pattern.sub(same, text)
    return text.strip()


def _word(match: re.Match[str]) -> str:
    word = match.group(2).strip()
    before = match.string[: match.start()].rstrip()
    if word in _UNITS and before and (before[-1].isdigit() or before[-1] == "}"):
        word = _UNITS[word]
    return f" {word} " if len(word) > 1 else word


def _upright(match: re.Match[str]) -> str:
    word = match.group(1).strip()
    before = match.string[: match.start()].rstrip()
    if word in _UNITS and before and (before[-1].isdigit() or before[-1] == "}"):
        word = _UNITS[word]
    return f" {word} " if len(word) > 1 else word


def _dollars(text: str) -> str:
    """Without the marks around formulas."""
    text = text.replace("\\$", "\x00")
    if text.count("$") == 1 and (match := re.match(r"(?:US)?\s?[-+]?\s?\$\s?[-+]?[\d.]", text)):
        text = text[: match.end()].replace("$", "\x00") + text[match.end() :]
    return text.replace("$", "").replace("\x00", "$").strip()
