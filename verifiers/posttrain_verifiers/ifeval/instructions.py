"""The 25 verifiable instructions of IFEval (2311.07911), each a function of the response and of what the row asks for.

Written from the paper's descriptions, and held against the paper's own program (`benchmarks/compare_ifeval.py`, which
names every kind of text that the two judge differently). Where that program takes something empty for an answer, or all
the choices at once, these do not: an empty placeholder, title, quotation or postscript, a repeated prompt with nothing
behind it, several of the constrained responses. A rule `---` is no bullet. Keywords are words, never patterns.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from posttrain_verifiers.ifeval.counting import capital_words, paragraphs, sentences, words
from posttrain_verifiers.language import shares, unknown
from posttrain_verifiers.schema import read_json

Check = Callable[..., bool]

CHOICES = ("My answer is yes.", "My answer is no.", "My answer is maybe.")
DIVIDER = "***"
SEPARATOR = "******"
RELATIONS = ("at least", "less than")
_FENCED = re.compile(r"```(?:json|Json|JSON)?(.*)```", re.DOTALL)
_TITLE = re.compile(r"<<((?:(?!<<|>>)[^\n])+)>>")


def keywords_exist(text: str, *, keywords: Sequence[str]) -> bool:
    low = text.lower()
    return all(word.lower() in low for word in _list(keywords))


def keyword_frequency(text: str, *, keyword: str, frequency: int, relation: str) -> bool:
    """Also inside longer words, as the paper's program counts: "sneakers" holds "sneaker"."""
    if not keyword.strip():
        raise ValueError("keyword is empty")
    return _holds(text.lower().count(keyword.strip().lower()), frequency, relation)


def words_forbidden(text: str, *, forbidden_words: Sequence[str]) -> bool:
    """As whole words: "her" does not forbid "where"."""
    return not any(re.search(rf"(?<!\w){re.escape(w)}(?!\w)", text, re.IGNORECASE) for w in _list(forbidden_words))


def letter_frequency(text: str, *, letter: str, let_frequency: int, let_relation: str) -> bool:
    """Of a letter in either case, or of another character such as `#` or `!`."""
    if len(letter) != 1:
        raise ValueError(f"letter is {letter!r}, one character is due")
    return _holds(text.lower().count(letter.lower()), let_frequency, let_relation)


def language(text: str, *, language: str) -> bool:
    """Most letters are in the language; text of no letters is in none."""
    if fault := unknown(language):
        raise ValueError(fault)
    _, share = shares(text, language)
    return share is not None and share >= 0.5


def number_paragraphs(text: str, *, num_paragraphs: int) -> bool:
    """Between dividers `***`; one before the first and one behind the last paragraph do not count."""
    pieces = [piece.strip() for piece in text.split(DIVIDER)]
    pieces = pieces[not pieces[0] :]
    pieces = pieces[: -1 if pieces and not pieces[-1] else None]
    return len(pieces) == num_paragraphs and all(pieces)


def number_words(text: str, *, num_words: int, relation: str) -> bool:
    return _holds(words(text), num_words, relation)


def number_sentences(text: str, *, num_sentences: int, relation: str) -> bool:
    return _holds(sentences(text), num_sentences, relation)


def paragraph_first_word(text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """So many paragraphs between blank lines, of which the n-th, from 1, begins with the word: as it stands, up to a
    mark of punctuation or a quote, with quotes before it.
    """
    found = paragraphs(text)
    if len(found) != num_paragraphs or not 1 <= nth_paragraph <= num_paragraphs:
        return False
    first = re.match(r"'*\"*([^\s.,?!'\"]*)", found[nth_paragraph - 1])
    return first is not None and first.group(1).lower() == first_word.strip().lower()


def number_placeholders(text: str, *, num_placeholders: int) -> bool:
    """`[address]`, on one line and not empty."""
    return sum(1 for p in re.finditer(r"\[([^\[\]\n]*)\]", text) if p.group(1).strip()) >= num_placeholders


def postscript(text: str, *, postscript_marker: str) -> bool:
    """The marker, in any case and with or without spaces between its letters, and something behind it."""
    letters = [re.escape(piece) for piece in re.findall(r"[^.\s]+", postscript_marker)]
    if not letters:
        raise ValueError(f"postscript_marker is {postscript_marker!r}")
    # "P.P.S" is written with and without its last stop; a marker without stops is taken as it is.
    stop, last = (r"\.\s?", r"\.?" if not postscript_marker.rstrip().endswith(".") else r"\.")
    pattern = stop.join(letters) + last if "." in postscript_marker else re.escape(postscript_marker.strip())
    # A P.P.S. holds no P.S.
    found = re.search(rf"(?<!\w)(?<!\bp\.)(?<!\bp\.\s){pattern}", text, re.IGNORECASE)
    return found is not None and any(map(str.isalnum, text[found.end() :]))


def number_bullets(text: str, *, num_bullets: int) -> bool:
    """Lines that begin with `*` or `-`, and are neither bold text nor a rule; exactly so many."""
    return sum(1 for line in text.split("\n") if re.match(r"\s*(?:\*[^*]|-[^-])", line)) == num_bullets


def constrained_response(text: str) -> bool:
    """Exactly one of the three choices stands in it."""
    return sum(choice in text for choice in CHOICES) == 1


def number_highlights(text: str, *, num_highlights: int) -> bool:
    """`*so*` or `**so**`, on one line."""
    found = re.finditer(r"(?<!\*)(\*{1,3})(?![\s*])[^*\n]+(?<!\s)\1(?!\*)", text)
    return sum(1 for _ in found) >= num_highlights


def multiple_sections(text: str, *, section_spliter: str, num_sections: int) -> bool:
    """Marked by the word and a number, in the case that is asked for."""
    word = re.escape(section_spliter.strip())
    return sum(1 for _ in re.finditer(rf"{word}\s?\d+", text)) >= num_sections


def json_format(text: str) -> bool:
    """The whole response, bare or between three backticks, with or without the word json behind the first ones."""
    fenced = _FENCED.fullmatch(text.strip())
    try:
        read_json(fenced.group(1) if fenced else text)
    except ValueError:
        return False
    return True


def title(text: str) -> bool:
    """`<<title>>`, on one line and not empty."""
    return any(found.strip("<> \t") for found in _TITLE.findall(text))


def two_responses(text: str) -> bool:
    """Two different ones around `******`; an empty one before or behind them does not count."""
    pieces = [piece.strip() for piece in text.split(SEPARATOR)]
    inner_empty = any(not piece for piece in pieces[1:-1])
    found = [piece for piece in pieces if piece]
    return not inner_empty and len(found) == 2 and found[0] != found[1]


def repeat_prompt(text: str, *, prompt_to_repeat: str) -> bool:
    """The response begins with the prompt, letter case aside, and then answers it."""
    said, prompt = text.strip().lower(), prompt_to_repeat.strip().lower()
    return said.startswith(prompt) and any(map(str.isalnum, said[len(prompt) :]))


def end_checker(text: str, *, end_phrase: str) -> bool:
    """Letter case and quotation marks around the response aside."""
    said, phrase = text.strip().lower(), end_phrase.strip().lower()
    return any(reading.endswith(phrase) for reading in (said, said.removesuffix('"'), said.strip('"')))


def capital_word_frequency(text: str, *, capital_frequency: int, capital_relation: str) -> bool:
    return _holds(capital_words(text), capital_frequency, capital_relation)


def english_capital(text: str) -> bool:
    return text.isupper() and language(text, language="en")


def english_lowercase(text: str) -> bool:
    return text.islower() and language(text, language="en")


def no_comma(text: str) -> bool:
    return "," not in text


def quotation(text: str) -> bool:
    """Wrapped in double quotation marks, with something inside."""
    text = text.strip()
    return len(text) > 2 and text[0] == text[-1] == '"'


INSTRUCTIONS: dict[str, Check] = {
    "keywords:existence": keywords_exist,
    "keywords:frequency": keyword_frequency,
    "keywords:forbidden_words": words_forbidden,
    "keywords:letter_frequency": letter_frequency,
    "language:response_language": language,
    "length_constraints:number_sentences": number_sentences,
    "length_constraints:number_paragraphs": number_paragraphs,
    "length_constraints:number_words": number_words,
    "length_constraints:nth_paragraph_first_word": paragraph_first_word,
    "detectable_content:number_placeholders": number_placeholders,
    "detectable_content:postscript": postscript,
    "detectable_format:number_bullet_lists": number_bullets,
    "detectable_format:constrained_response": constrained_response,
    "detectable_format:number_highlighted_sections": number_highlights,
    "detectable_format:multiple_sections": multiple_sections,
    "detectable_format:json_format": json_format,
    "detectable_format:title": title,
    "combination:two_responses": two_responses,
    "combination:repeat_prompt": repeat_prompt,
    "startend:end_checker": end_checker,
    "change_case:capital_word_frequency": capital_word_frequency,
    "change_case:english_capital": english_capital,
    "change_case:english_lowercase": english_lowercase,
    "punctuation:no_comma": no_comma,
    "startend:quotation": quotation,
}
"""By the names of the data set's column `instruction_id_list`."""


def _holds(count: int, threshold: int, relation: str) -> bool:
    if relation not in RELATIONS:
        raise ValueError(f"relation is {relation!r}, {' or '.join(map(repr, RELATIONS))} is due")
    return count >= threshold if relation == "at least" else count < threshold


def _list(found: Sequence[str]) -> Sequence[str]:
    if isinstance(found, str) or not found or not all(isinstance(w, str) and w.strip() for w in found):
        raise ValueError(f"a list of words is due, not {found!r}")
    return found


def arguments(check: Check, given: Any) -> dict[str, Any]:
    """What a check takes of the row's entry, in which the hub's file fills the others' keys with None.

    Raises ValueError naming the key that is missing.
    """
    wanted = list(check.__kwdefaults__ or ()) or [n for n in check.__annotations__ if n not in ("text", "return")]
    found = {name: (given or {}).get(name) for name in wanted}
    if missing := [name for name, value in found.items() if value is None]:
        raise ValueError(f"kwargs have no {missing[0]!r}")
    return {n: int(v) if isinstance(v, float) and v.is_integer() else v for n, v in found.items()}
