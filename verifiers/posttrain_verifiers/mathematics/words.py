"""Answers that are no formula: names, yes and no, choices, dates, times."""

from __future__ import annotations

import re

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_MONTH = r"(jan|feb|mar|apr|may|jun|jul|aug|sept?|oct|nov|dec)[a-z]*\.?"
_DAY_FIRST = re.compile(rf"(\d{{1,2}})(?:st|nd|rd|th)?\s+(?:of\s+)?{_MONTH}(?:,?\s+(\d{{4}}))?", re.IGNORECASE)
_MONTH_FIRST = re.compile(rf"{_MONTH}\s+(\d{{1,2}})(?:st|nd|rd|th)?(?:,?\s+(\d{{4}}))?", re.IGNORECASE)
_ISO = re.compile(r"(\d{4})-(\d{2})-(\d{2})")
_WEEKDAY = re.compile(r"(?:mon|tues|wednes|thurs|fri|satur|sun)day,?\s+(?=\S*\d|\w+\.?\s+\d)", re.IGNORECASE)
_TIME = re.compile(r"(\d{1,2})(?::(\d{2}))?\s*([ap])\.?\s?m\.?", re.IGNORECASE)
_CHOICE = re.compile(
    r"(?:(?:option|choice)\s+)?(?:\(([A-Ja-j])\)|\[([A-J])\]|([A-J])\s*[:.)](?!\S*\d?[=<>])|([A-J])$)\s*(.*)",
    re.DOTALL,
)
_SECOND = re.compile(r"^(?:or|and)\b|^[,;/&]|(?:^|[\s,;])\(?[A-J]\s*[:.)]|\([A-Ja-j]\)")
"""A second letter behind the first: a list of candidates."""
_NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
    *("thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty"),
)
_NOTHING = re.compile(
    r"(?:there (?:is|are) )?no (?:real |such |integer |possible |valid )?(?:solutions?|roots?|values?)(?: exists?)?"
    r"|none|(?:the )?empty set|\\emptyset|\\\{\s*\\\}"
)
_MEANS = {
    "all real numbers": r"\mathbb{R}",
    "all reals": r"\mathbb{R}",
    "the real numbers": r"\mathbb{R}",
    "dne": "undefined",
    "does not exist": "undefined",
    "infinitely many": "infinitely many solutions",
}


def read_date(text: str) -> str | None:
    """A date as year-month-day, or month-day; a time of day as hh:mm."""
    text = _WEEKDAY.sub("", text)
    if match := _ISO.fullmatch(text):
        return text
    if (match := _TIME.fullmatch(text)) and 1 <= int(match.group(1)) <= 12 and int(match.group(2) or 0) < 60:
        hour = int(match.group(1)) % 12 + 12 * (match.group(3).lower() == "p")
        return f"{hour:02d}:{match.group(2) or '00'}"
    day = month = year = None
    if match := _DAY_FIRST.fullmatch(text):
        day, month, year = match.groups()
    elif match := _MONTH_FIRST.fullmatch(text):
        month, day, year = match.groups()
    if not (day and month):
        return None
    number = _MONTHS.index(month[:3].lower()) + 1
    return f"{year + '-' if year else ''}{number:02d}-{int(day):02d}" if 1 <= int(day) <= 31 else None


def read_choice(text: str) -> tuple[str, str] | None:
    """The letter of a multiple choice, and what stands behind it."""
    match = _CHOICE.fullmatch(text)
    if match is None:
        return None
    *letters, rest = match.groups()
    letter = next(letter for letter in letters if letter)
    if _SECOND.search(rest):
        return None
    return letter.upper(), rest.strip(" :.)")


def read_number_word(text: str) -> int | None:
    word = text.lower()
    return _NUMBERS.index(word) if word in _NUMBERS else None


def read_words(text: str) -> str | None:
    """A phrase without case, articles and punctuation; None where the text is no phrase."""
    plain = re.sub(r"\s+", " ", text.strip(" .!?\"'").lower())
    if _NOTHING.fullmatch(plain):
        return r"\emptyset"
    if re.fullmatch(r"\\mathbb\s*\{?\s*r\s*\}?", plain):
        return r"\mathbb{R}"
    if said := re.match(r"(yes|no|true|false)\s*(?:[,;:.!(]|$|-\s|because\b|since\b|as\b)", plain):
        more = re.search(r"\b(?:yes|no|true|false|maybe)\b", plain[said.end() :])
        return None if more else said.group(1)
    if not re.fullmatch(r"[^\W\d_][^\W\d_]+(?:[ '&,.-]+[^\W_]+)*", plain):
        return None
    return _MEANS.get(plain, re.sub(r"^(?:the|an?) (?=\S)", "", re.sub(r"[.,'&-]+ ?", " ", plain)).strip())
