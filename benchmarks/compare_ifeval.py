"""Our verdicts on IFEval's instructions beside those of the paper's own program, strict and loose.

python benchmarks/compare_ifeval.py [--each N] [--texts FILE.jsonl --column NAME] [--json FILE]

The paper's program is the copy that lm-eval ships (pip install lm-eval immutabledict langdetect nltk); NLTK's sentence
model `punkt_tab` must be where NLTK finds it (NLTK_DATA). Prints, by instruction, how often the two agree, and every
kind of text on which they don't: each such kind has a reason below. Exits with 1 where a disagreement has none.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import re
import sys
import types
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

from ifeval_responses import LANGUAGES, MAKERS, Triple, triples

from posttrain_verifiers.ifeval import IFEval
from posttrain_verifiers.ifeval.verifier import readings

Holds = Callable[[str, Mapping[str, Any]], Any]
"""Whether a text, with what its row asks for, is of a kind."""
Reason = tuple[str, Holds]

AGREE, UNEXPLAINED = "agree", "has no reason"
SHOWN = 5
"""Disagreements without a reason that are printed, of each instruction."""
FEW_LETTERS = 60
"""Below them langdetect guesses: it takes "ok" for Slovene, and "They said no." for Dutch."""


def official() -> Any:
    """The paper's program. Only its own files are read: the package around it wants much more installed."""
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or spec.origin is None:
        raise SystemExit("lm_eval is not installed: pip install lm-eval immutabledict langdetect nltk")
    folder = Path(spec.origin).parent
    for name in ("lm_eval", "lm_eval.tasks", "lm_eval.tasks.ifeval"):
        module = types.ModuleType(name)
        module.__path__ = [str(folder.joinpath(*name.split(".")[1:]))]
        sys.modules[name] = module
    found = importlib.import_module("lm_eval.tasks.ifeval.utils")
    importlib.import_module("langdetect").DetectorFactory.seed = 0
    return found


def found(pattern: str, flags: int = 0) -> Holds:
    return lambda text, keys: re.search(pattern, text, flags)


def pattern_in(*names: str) -> Holds:
    """Whether a word of the row is no word to a regular expression."""

    def special(text: str, keys: Mapping[str, Any]) -> bool:
        words = [w for name in names for w in ([keys[name]] if isinstance(keys[name], str) else keys[name])]
        return any(not re.fullmatch(r"\w(?:[\w ]*\w)?", w.strip()) for w in words)

    return special


def few(text: str, keys: Mapping[str, Any]) -> bool:
    return sum(map(str.isalpha, text)) < FEW_LETTERS


def english(text: str, keys: Mapping[str, Any]) -> bool:
    """Whether langdetect takes it for English in small letters."""
    return importlib.import_module("langdetect").detect(text.lower()) == "en"


def empty_before(text: str, keys: Mapping[str, Any]) -> bool:
    """Whether a paragraph without words stands before the asked one."""
    return any(not p.strip() for p in text.split("\n\n")[: keys["nth_paragraph"]])


def several(text: str, keys: Mapping[str, Any]) -> bool:
    return sum(sample in text for sample in LANGUAGES.values()) > 1


PATTERN = "takes a keyword for a regular expression: C++ is any C, no. is any 'not'"
GUESS = "tells the language of a few letters by chance, and counts text without letters as followed"
REASONS: dict[str, list[Reason]] = {
    "keywords:existence": [(PATTERN, pattern_in("keywords"))],
    "keywords:frequency": [(PATTERN, pattern_in("keyword"))],
    "keywords:forbidden_words": [(PATTERN, pattern_in("forbidden_words"))],
    "keywords:letter_frequency": [
        ("draws another letter at random where a row asks for # or !", lambda t, k: not k["letter"].isalpha())
    ],
    "language:response_language": [
        ("has one language for a text of two; ours wants half of the letters", several),
        (GUESS, few),
    ],
    "length_constraints:number_sentences": [
        ("counts a list's number as a sentence", found(r"(?:\A|\n)\s*\d{1,3}\.\s")),
        ("ends a sentence behind e.g. and i.e.", found(r"\b(?:e\.g|i\.e)\.")),
        ("ends none behind three dots, initials, OK. and other abbreviations", found(r"\.\.\.|…|\b\w{1,4}\.\s+[A-Z]")),
        ("counts marks without words", found(r"(?:\A|\s)[^\w\s]+(?:\s|\Z)")),
    ],
    "length_constraints:nth_paragraph_first_word": [("numbers empty paragraphs, too", empty_before)],
    "detectable_content:number_placeholders": [("counts empty ones", found(r"\[[\[\s]*\]"))],
    "detectable_content:postscript": [
        (
            "takes a P.P.S. for a P.S., and the end of another word",
            found(r"(?:\w|\bp\.\s?)p\.\s?(?:p\.\s?)?s", re.IGNORECASE),
        ),
        ("takes one with nothing behind it", found(r"p\.\s?(?:p\.\s?)?s\.?\W*\Z", re.IGNORECASE)),
    ],
    "detectable_format:number_bullet_lists": [
        ("counts rules (---), and marks with nothing behind them", found(r"^\s*(?:--|[-*][^\S\n]*$)", re.MULTILINE))
    ],
    "detectable_format:constrained_response": [
        ("takes several choices at once", lambda t, k: len(set(re.findall(r"My answer is \w+\.", t))) > 1)
    ],
    "detectable_format:number_highlighted_sections": [
        ("counts *** text *** twice", found(r"\*\*\*[^\n*]+\*\*\*")),
        ("pairs bullets, products and spaces with any other asterisk", found(r"\*\s[^\n*]*\*|\*[^\n*]*\s\*")),
        ("pairs asterisks across those of its neighbour", found(r"\w\*\*+\w|\w\*\w")),
    ],
    "detectable_format:json_format": [
        ("takes half a fence", lambda t, k: t.strip().startswith("```") != t.strip().endswith("```")),
        ("takes NaN", found("NaN|Infinity")),
        ("takes a name twice in one object", found(r'"(\w+)":.*"\1":')),
    ],
    "detectable_format:title": [("joins two empty ones", found(r"<<[<>\s]*>.*>>|<<[<\s]*<.*>>"))],
    "combination:repeat_prompt": [
        (
            "takes a prompt with nothing behind it",
            lambda t, k: not re.search(r"\w", t.strip().lower().partition(k["prompt_to_repeat"].strip().lower())[2]),
        )
    ],
    "startend:end_checker": [
        ("never finds a phrase that ends in a quotation mark", lambda t, k: k["end_phrase"].strip().endswith('"'))
    ],
    "change_case:capital_word_frequency": [("has two words in CANNOT and GONNA", found("CANNOT|GONNA|GOTTA|WANNA"))],
    "change_case:english_capital": [(GUESS, few), ("knows English in capitals less well", english)],
    "change_case:english_lowercase": [
        (GUESS, few),
        ("reads formulas, code and addresses as words", found(r"\$|\\\[|```|https?://")),
    ],
    "startend:quotation": [("takes a pair of marks with nothing between them", found(r"\A\W*\Z"))],
}
"""What the paper's program does where the two differ, and the texts on which it does."""


def compare(program: Any, cases: Iterable[Triple]) -> dict[str, Counter[str]]:
    """By instruction and way of reading: how often both agree, and how often not, by the reason."""
    counts: dict[str, Counter[str]] = {}
    graders = {"strict": IFEval("strict"), "loose": IFEval("loose")}
    for name, keys, text in cases:
        for way, grade in graders.items():
            tally = counts.setdefault(f"{name} {way}", Counter())
            ours = grade(text, instruction_id_list=[name], kwargs=[keys]).score
            found = theirs(program, way, name, keys, text)
            if ours == found:
                tally[AGREE] += 1
                continue
            texts = [text] if way == "strict" else readings(text)
            holding = (why for why, holds in REASONS.get(name, ()) if any(t.strip() and holds(t, keys) for t in texts))
            reason = next(holding, UNEXPLAINED)
            tally[reason] += 1
            if reason == UNEXPLAINED and tally[reason] <= SHOWN:
                print(f"{name} {way}: ours {ours}, theirs {found}, {keys}: {text!r:.400}")
    return counts


def theirs(program: Any, way: str, name: str, keys: Mapping[str, Any], text: str) -> float | None:
    """Their verdict; None where their program fails."""
    asked = program.InputExample(0, [name], "", [dict(keys)])
    try:
        return float(getattr(program, f"test_instruction_following_{way}")(asked, text).follow_all_instructions)
    except Exception:
        return None


def of_texts(file: Path, column: str, each: int) -> Iterator[Triple]:
    """Texts of a file, every one with what rows of each instruction might ask."""
    with file.open(encoding="utf-8") as lines:
        texts = [str(json.loads(line)[column]) for line in lines]
    for name, make in MAKERS.items():
        rng = Random(name)
        yield from ((name, make(rng)[0], text) for text in rng.sample(texts, min(each, len(texts))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=400, help="responses to each instruction")
    parser.add_argument("--texts", type=Path, help="texts of a .jsonl instead of made ones")
    parser.add_argument("--column", default="text")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cases = of_texts(options.texts, options.column, options.each) if options.texts else triples(options.each)
    counts = compare(official(), cases)
    for name, tally in counts.items():
        print(f"{name:52} {tally[AGREE]:5} of {tally.total()}")
        for reason, count in sorted(tally.items()):
            if reason != AGREE:
                print(f"{count:8}  it {reason}")
    every = sum(counts.values(), Counter())
    print(f"{every[AGREE]} of {every.total()} verdicts agree, {every[UNEXPLAINED]} of the others have no reason")
    if options.json:
        options.json.write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")
    sys.exit(bool(every[UNEXPLAINED]))


if __name__ == "__main__":
    main()
