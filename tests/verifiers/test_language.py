"""The language of a text is told from its script where it can be and by a model where it cannot."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain_verifiers.language import Language, shares, unknown
from tests.verifiers.shipped_rows import AUDITS, faults, seconds

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


def sentences() -> dict[str, str]:
    """One sentence of each language, from the set that ships."""
    rows = [json.loads(line) for line in (AUDITS / "language.jsonl").read_text().split("\n") if line]
    gold = [row for row in rows if row["kind"] == "gold"]
    return {row["language"]: row["completion"] for row in reversed(gold) if len(row["language"]) == 2}


def test_the_shipped_rows_are_all_judged_as_they_should_be() -> None:
    assert faults("language", {"gold", "empty", "mixed", "near_miss", "hostile"}) == []


def test_no_sentence_passes_for_another_language() -> None:
    texts = sentences()
    assert len(texts) == 40
    passed = [(a, b) for a in texts for b in texts if a != b and (shares(texts[b], a)[1] or 0.0) > 0.3]
    assert passed == []


def test_the_score_is_the_share_of_letters_in_the_language() -> None:
    texts = sentences()
    verdict = Language("zh")(texts["zh"] + texts["en"])
    letters = [sum(map(str.isalpha, texts[code])) for code in ("zh", "en")]
    assert verdict.score == verdict.parts["share"] == letters[0] / sum(letters)
    assert verdict.parts["script"] == letters[0] / sum(letters)
    assert verdict.reason.endswith("of its script")


def test_a_minimum_makes_it_a_rule() -> None:
    texts = sentences()
    mixed = texts["ru"] + " ok"
    assert 0.9 < (Language("ru")(mixed).score or 0.0) < 1.0
    assert Language("ru", minimum=0.9)(mixed).score == 1.0
    assert Language("ru", minimum=1.0)(mixed).score == 0.0
    assert [Language("ko", minimum=m)("다리 ab").score for m in (0.5, 0.51)] == [1.0, 0.0]
    for minimum in (0, 1.1):
        with pytest.raises(ValueError, match="share of the letters"):
            Language("ru", minimum=minimum)


def test_the_rows_language_goes_before_the_settings_and_regions_are_left_out() -> None:
    texts = sentences()
    assert Language("de")(texts["fr"], language="fr").score == 1.0
    assert Language("de")(texts["fr"]).score == 0.0
    assert Language("pt-BR")(texts["pt"]).score == 1.0
    assert Language("iw")(texts["he"]).score == 1.0
    assert Language()(texts["zh"], language="zh_Hant_TW").score == 1.0


def test_code_formulas_tags_and_addresses_are_of_no_language() -> None:
    german = sentences()["de"]
    around = [
        "```python\nfor name in names:\n    print(name)\n```",
        "`print(name)`",
        "$the + quick$",
        r"\[ \text{the quick brown fox} \]",
        r"\(x_{the}\)",
        "https://example.org/the/quick/brown/fox",
        "<answer>",
        r"\frac \cdot",
        "```\nnever closed by anyone who wrote it",
    ]
    for piece in around:
        assert Language("de")(f"{german} {piece}").score == 1.0, piece
    for piece in around[:4]:
        assert (Language("en")(piece).score, Language("en")(piece).status) == (0.0, "unparsable"), piece


def test_amounts_of_money_are_no_formulas_and_hashes_are_no_words() -> None:
    english = "Jane has saved $4 of her allowance every week, how many weeks until she has saved a total of $60?"
    assert Language("en")(english).score == 1.0
    assert Language("de")(english).score == 0.0
    german, digest = (
        sentences()["de"],
        "a1b2c3d4e5f6 7a8b9c0d1e2f 3a4b5c6d7e8f 9a0b1c2d3e4f 5a6b7c8d9e0f 1a2b3c4d5e6f 7a8b9c0d1e2f",
    )
    assert Language("de")(f"{german}\n{digest}").score == 1.0
    assert (Language("de")(digest).score, Language("de")(digest).status) == (0.0, "unparsable")


def test_a_language_that_nobody_knows_is_refused_in_settings_and_gives_no_score_in_a_row() -> None:
    for code in ("xx", "english", "", "12"):
        with pytest.raises(ValueError, match="ISO 639-1"):
            Language(code)
    verdict = Language("en")("Some words.", language="xx")
    assert (verdict.score, verdict.status) == (None, "unparsable")
    verdict = Language()("Some words.")
    assert (verdict.score, verdict.status) == (None, "unparsable")
    assert "column `language`" in verdict.reason


def test_every_code_that_is_not_told_by_script_is_one_of_the_models() -> None:
    from posttrain_verifiers import language

    asked = language._IN_LATIN | set(language._SHARED)
    assert asked <= set(language._identifier().labels)
    assert not asked & set(language._OWN)


WITHOUT = """
import sys
from importlib.machinery import PathFinder

class Hidden(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] == "py3langid" else super().find_spec(name, path, target)

sys.meta_path[:] = [Hidden if finder is PathFinder else finder for finder in sys.meta_path]
from posttrain_verifiers.language import Language
print(Language("ko")("\uc548\ub155\ud558\uc138\uc694").score, Language("ko")("hello there").score)
print(Language()("Guten Tag", language="de"))
try:
    Language("de")
except ValueError as error:
    print(error)
"""


def test_without_the_library_scripts_are_still_told_and_the_error_names_it() -> None:
    program = f"import sys; sys.path[:0] = {sys.path}\n{WITHOUT}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    scores, row, refused = done.stdout.splitlines()
    assert scores == "1.0 0.0", done.stderr
    assert "score=None" in row
    assert "install py3langid" in row
    assert "'de'" in refused
    assert "pip install py3langid" in refused


def test_importing_it_loads_no_model() -> None:
    program = "import sys, posttrain_verifiers.language as l; l.Language('de'); print('py3langid' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path}\n{program}"], capture_output=True, text=True
    )
    assert done.stdout.strip() == "False", done.stderr


def test_hostile_texts_are_read_in_a_moment() -> None:
    Language("en")("Load the model first.")
    for piece in ("\\(", "\\[", "$", "$$", "`", "```", "<a", "http://", "a. ", "。", "é", "😂", "\x00", "a" * 50 + " "):
        for code in ("en", "zh", "ko"):
            # 100 000 characters; a pattern that looks ahead to the end each time would take many minutes.
            assert seconds(Language(code), piece * (100_000 // len(piece))) < 5, (piece, code)


def test_english_problems_are_english() -> None:
    file = DATA / "gsm8k_test.jsonl"
    if not file.is_file():
        pytest.skip(f"{file.name} is not beside this checkout")
    questions = [json.loads(line)["question"] for line in file.read_text(encoding="utf-8").splitlines()]
    grade = Language("en", minimum=0.9)
    assert sum(grade(question).score or 0.0 for question in questions) >= 0.995 * len(questions)
    assert not any(Language("de", minimum=0.9)(question).score for question in questions)
    assert unknown("de") == ""
