"""Is a completion in the wanted language? The script says it where it can, py3langid's model where it cannot."""

from __future__ import annotations

import importlib.util
import re
from functools import cache
from typing import Any

from posttrain.types import Verdict

LONGEST = 200_000
"""Characters that are read, from the start."""
PASSAGE = 40
"""Letters that are told apart well; shorter passages are judged together with their neighbours."""
_MOST = 1000
"""Letters of a passage, so that a long text without a full stop is many passages."""

_LATIN = "A-Za-z\u00aa\u00ba\u00c0-\u024f\u1e00-\u1eff"
_CYRILLIC = "\u0400-\u052f"
_ARABIC = "\u0600-\u06ff\u0750-\u077f\u08a0-\u08ff\ufb50-\ufdff\ufe70-\ufeff"
_HAN = "\u3005\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003134f"
_KANA = "\u3040-\u30ff\u31f0-\u31ff\uff66-\uff9f"
_HANGUL = "\u1100-\u11ff\u3130-\u318f\uac00-\ud7a3"
_OWN = {
    "am": "\u1200-\u139f",
    "bo": "\u0f00-\u0fff",
    "el": "\u0370-\u03ff\u1f00-\u1fff",
    "gu": "\u0a80-\u0aff",
    "he": "\u0590-\u05ff",
    "hy": "\u0530-\u058f",
    "ka": "\u10a0-\u10ff",
    "km": "\u1780-\u17ff",
    "kn": "\u0c80-\u0cff",
    "ko": _HANGUL,
    "lo": "\u0e80-\u0eff",
    "ml": "\u0d00-\u0d7f",
    "my": "\u1000-\u109f",
    "or": "\u0b00-\u0b7f",
    "pa": "\u0a00-\u0a7f",
    "si": "\u0d80-\u0dff",
    "ta": "\u0b80-\u0bff",
    "te": "\u0c00-\u0c7f",
    "th": "\u0e00-\u0e7f",
}
"""Scripts that, among widely written languages, one language has to itself."""
_SHARED = {
    **dict.fromkeys(("ar", "arz", "ary", "fa", "ps", "ug", "ur"), _ARABIC),
    **dict.fromkeys(("ba", "be", "bg", "kk", "ky", "mk", "mn", "ru", "sr", "tg", "tt", "uk"), _CYRILLIC),
    **dict.fromkeys(("hi", "mr", "ne", "sa"), "\u0900-\u097f"),
    **dict.fromkeys(("as", "bn"), "\u0980-\u09ff"),
    "ja": _KANA + _HAN,
    "zh": _HAN,
}
"""Scripts of the others."""
_CODES = """af az bs ca cs cy da de en eo es et eu fi fo fr fy ga gd gl ha hr ht hu id ig is it jv ku la lb lg ln lt lv
mg ms mt nl nn no nso oc om pl pt qu ro rw se sk sl sn so sq st sv sw tk tl tr uz vi vo wa xh yo zu"""
_IN_LATIN = frozenset(_CODES.split())
_TWO = dict.fromkeys(("sr", "uz"), _CYRILLIC + _LATIN)
_VARIETIES = {
    "ar": ("ary", "arz"),
    "el": ("grc",),
    "en": ("pcm",),
    "he": ("hbo",),
    "no": ("nn",),
    "uz": ("uzs",),
    "zh": ("wuu", "yue"),
}
"""Codes of the library that count as the language."""
_NAMES = {"iw": "he", "nb": "no", "in": "id", "cmn": "zh"}

_NOT_WORDS = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|\$\$[^$]*\$\$|\$(?!\s)[^$\n]*(?<!\s)\$(?!\d)|\\\[(?:(?!\\\[).)*?\\\]"
    r"|\\\((?:(?!\\\().)*?\\\)|\\[A-Za-z]+|</?[A-Za-z][\w-]*>|\b(?:https?://|www\.)\S+",
    re.DOTALL,
)
"""Linear in hostile texts: no branch looks past the next opening of its own kind."""
_END = re.compile(r"(?<=[.!?…])\s+|(?<=[。！？।؟])\s*|\n+")


class Language:
    """The share of a completion's letters that stand in the wanted language; 0 to 1.

    The language is an ISO 639-1 code, the setting `language` or the row's column of that name; the column goes first.
    A region behind it ("pt-BR") is left out. With `minimum`, the score is 1 where the share is at least that, else 0: a
    hard rule. Without, it is DeepSeek-R1's language consistency (2501.12948), by letters rather than words. Code,
    formulas, tags and addresses are of no language. Letters of another script count against the answer; the others are
    judged by passages of a sentence or more. Parts: `script` and `share`.
    """

    version = "1"

    def __init__(self, language: str | None = None, minimum: float | None = None) -> None:
        if minimum is not None and not 0 < minimum <= 1:
            raise ValueError(f"minimum is a share of the letters, above 0 and at most 1, not {minimum}")
        if language is not None and (fault := unknown(language)):
            raise ValueError(fault)
        self.language, self.minimum = language, minimum

    def prepare(self) -> None:
        """Read the library's model before a verdict's clock starts."""
        if self.language is None or _code(self.language) not in _OWN:
            _identifier()

    def __call__(self, completion: str, *, language: str | None = None) -> Verdict:
        """Score 0 and `unparsable` where there are no words; no score where the row's language is not known."""
        wanted = language or self.language
        fault = "neither a setting nor a column `language`" if wanted is None else unknown(wanted)
        if wanted is None or fault:
            return Verdict(None, "unparsable", reason=fault)
        script, found = shares(completion, wanted)
        if script is None or found is None:
            return Verdict(0.0, "unparsable", {"script": 0.0, "share": 0.0}, reason="no words")
        score = found if self.minimum is None else float(found >= self.minimum)
        reason = f"{found:.0%} of the letters are {wanted!r}, {script:.0%} of its script"
        return Verdict(score, parts={"script": script, "share": found}, reason=reason)


def unknown(language: str) -> str:
    """Why this language cannot be told, or nothing."""
    code = _code(language)
    if code not in _OWN and code not in _SHARED and code not in _IN_LATIN:
        return f"language {language!r} is not one of the codes (ISO 639-1) that can be told, such as 'en', 'de' or 'zh'"
    if code not in _OWN and importlib.util.find_spec("py3langid") is None:
        return f"to tell {language!r} from other languages of its script, install py3langid (pip install py3langid)"
    return ""


def shares(text: str, language: str) -> tuple[float, float] | tuple[None, None]:
    """Which shares of the letters are of the language's script, and in the language; None where there are no words."""
    code = _code(language)
    text = _NOT_WORDS.sub(" ", text[:LONGEST])
    letters = sum(map(str.isalpha, text))
    if not letters:
        return None, None
    inside = re.compile(f"[{_script(code)}]")
    # Marks of vowels are no letters to Python, though they are of the script: they are counted on neither side.
    of_script = sum(1 for letter in inside.findall(text) if letter.isalpha())
    if code in _OWN:
        return of_script / letters, of_script / letters
    own = nothing = 0
    for passage in _passages(text):
        size = sum(1 for letter in inside.findall(passage) if letter.isalpha())
        verdict = _is_in(passage, code, size) if size else False
        own += size if verdict else 0
        nothing += size if verdict is None else 0
    if letters == nothing:
        return None, None
    return of_script / letters, own / (letters - nothing)


def _code(language: str) -> str:
    code = re.split(r"[-_]", language.strip().lower())[0]
    return _NAMES.get(code, code)


def _script(code: str) -> str:
    return _OWN.get(code) or _TWO.get(code) or _SHARED.get(code) or _LATIN


def _passages(text: str) -> list[str]:
    """Sentences and lines, joined until each has PASSAGE letters, and cut where one is far longer."""
    found, held, size = [], [], 0
    for piece in _END.split(text):
        for start in range(0, len(piece), _MOST):
            held.append(piece[start : start + _MOST])
            size += sum(map(str.isalpha, held[-1]))
            if size >= PASSAGE:
                found.append(" ".join(held))
                held, size = [], 0
    if held and found and size < PASSAGE:
        found[-1] = " ".join([found[-1], *held])
    elif held:
        found.append(" ".join(held))
    return found


def _is_in(passage: str, code: str, letters: int) -> bool | None:
    """Whether the library takes the passage for the language; None where it takes it for none, like code or numbers."""
    ranked = dict(_identifier().rank(passage))
    own = sum(ranked.pop(name, 0.0) for name in (code, *_VARIETIES.get(code, ())))
    best = max(ranked, key=ranked.__getitem__)
    if ranked[best] <= own:
        return True
    if best == "zxx" and ranked[best] > 0.5:
        return None
    # A few letters can be many languages: one that nobody can tell is given the benefit of the doubt.
    return letters < PASSAGE // 2 and ranked[best] < 0.5


@cache
def _identifier() -> Any:
    # Half a second with its model, see prepare.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier  # type: ignore[import-untyped]

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
