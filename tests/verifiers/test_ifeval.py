"""IFEval's 25 instructions, each followed and not, strict and loose, and what it counts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from posttrain.recipe import Grading, Reward
from posttrain.rewards import Grader
from posttrain.types import Prompt, Rollout
from posttrain_verifiers.ifeval import IFEval
from posttrain_verifiers.ifeval.counting import capital_words, paragraphs, sentences, words
from posttrain_verifiers.ifeval.instructions import INSTRUCTIONS, arguments
from posttrain_verifiers.ifeval.verifier import readings
from tests.verifiers.shipped_rows import AUDITS, faults, seconds

KEYS = {
    "keywords:existence": {"keywords": ["a"]},
    "keywords:frequency": {"keyword": "a", "frequency": 1, "relation": "at least"},
    "keywords:forbidden_words": {"forbidden_words": ["zebra"]},
    "keywords:letter_frequency": {"letter": "a", "let_frequency": 1, "let_relation": "at least"},
    "language:response_language": {"language": "en"},
    "length_constraints:number_sentences": {"num_sentences": 1, "relation": "at least"},
    "length_constraints:number_paragraphs": {"num_paragraphs": 1},
    "length_constraints:number_words": {"num_words": 1, "relation": "at least"},
    "length_constraints:nth_paragraph_first_word": {"num_paragraphs": 1, "nth_paragraph": 1, "first_word": "a"},
    "detectable_content:number_placeholders": {"num_placeholders": 1},
    "detectable_content:postscript": {"postscript_marker": "P.S."},
    "detectable_format:number_bullet_lists": {"num_bullets": 1},
    "detectable_format:constrained_response": {},
    "detectable_format:number_highlighted_sections": {"num_highlights": 1},
    "detectable_format:multiple_sections": {"section_spliter": "Section", "num_sections": 1},
    "detectable_format:json_format": {},
    "detectable_format:title": {},
    "combination:two_responses": {},
    "combination:repeat_prompt": {"prompt_to_repeat": "Say a."},
    "startend:end_checker": {"end_phrase": "The end."},
    "change_case:capital_word_frequency": {"capital_frequency": 1, "capital_relation": "at least"},
    "change_case:english_capital": {},
    "change_case:english_lowercase": {},
    "punctuation:no_comma": {},
    "startend:quotation": {},
}
"""What the data set's column `kwargs` holds for each instruction."""
EVERY_KEY = {key: None for keys in KEYS.values() for key in keys}


def test_the_shipped_rows_are_all_judged_as_they_should_be() -> None:
    assert faults("ifeval", {"gold", "empty", "truncated", "near_miss", "hostile"}) == []


def test_every_instruction_is_there_and_has_rows_that_follow_it_and_rows_that_do_not() -> None:
    rows = [json.loads(line) for line in (AUDITS / "ifeval.jsonl").read_text().split("\n") if line]
    alone = {(row["instruction_id_list"][0], row["expect"]) for row in rows if len(row["instruction_id_list"]) == 1}
    assert len(INSTRUCTIONS) == 25
    assert set(KEYS) == set(INSTRUCTIONS)
    assert alone == {(name, expect) for name in INSTRUCTIONS for expect in (True, False)}


@pytest.mark.parametrize("name", KEYS)
def test_an_instruction_takes_its_keys_from_a_row_that_has_all_keys(name: str) -> None:
    assert arguments(INSTRUCTIONS[name], EVERY_KEY | KEYS[name]) == KEYS[name]
    assert arguments(INSTRUCTIONS[name], KEYS[name]) == KEYS[name]
    for key in KEYS[name]:
        with pytest.raises(ValueError, match=f"'{key}'"):
            arguments(INSTRUCTIONS[name], EVERY_KEY | KEYS[name] | {key: None})
    if not KEYS[name]:
        assert arguments(INSTRUCTIONS[name], None) == {}


def test_numbers_that_a_table_made_into_floats_are_counts() -> None:
    keys = {"num_words": 2.0, "relation": "less than"}
    assert arguments(INSTRUCTIONS["length_constraints:number_words"], keys)["num_words"] == 2


TWO = ["punctuation:no_comma", "length_constraints:number_words"]
THREE_WORDS: list[dict[str, Any]] = [{}, {"num_words": 3, "relation": "at least"}]


def test_the_score_is_all_or_the_share_and_the_parts_have_every_accuracy() -> None:
    verdict = IFEval()("two, words", instruction_id_list=[*TWO, "startend:quotation"], kwargs=[*THREE_WORDS, {}])
    assert (verdict.score, verdict.parts["instruction_strict"], verdict.parts["instructions"]) == (0.0, 0.0, 3.0)
    half = IFEval(level="instruction")("two words", instruction_id_list=TWO, kwargs=THREE_WORDS)
    assert (half.score, half.parts["prompt_strict"]) == (0.5, 0.0)
    assert half.reason == "not followed: length_constraints:number_words"
    all_of_it = IFEval()("now three words", instruction_id_list=TWO, kwargs=THREE_WORDS)
    assert (all_of_it.score, all_of_it.reason) == (1.0, "")
    assert set(all_of_it.parts.values()) == {1.0, 2.0}


def test_loose_leaves_out_the_first_line_the_last_line_and_asterisks() -> None:
    assert readings("a\nb\nc") == ["a\nb\nc", "b\nc", "a\nb", "b"]
    assert readings("*a*\nb") == ["*a*\nb", "b", "*a*", "", "a\nb", "a"]
    cases = [
        ('Sure, here it is:\n"Three words here."', "startend:quotation"),
        ('"Three words here."\nI hope this helps.', "startend:quotation"),
        ('Sure:\n"Three words here."\nI hope this helps.', "startend:quotation"),
        ('**"Three words here."**', "startend:quotation"),
        ('Sure:\n*"Three words here."*\nBye.', "startend:quotation"),
    ]
    for text, name in cases:
        assert IFEval()(text, instruction_id_list=[name], kwargs=[{}]).score == 0.0, text
        loose = IFEval("loose")(text, instruction_id_list=[name], kwargs=[{}])
        assert (loose.score, loose.parts["prompt_strict"]) == (1.0, 0.0), text


def test_loose_takes_each_instruction_by_itself_and_never_an_empty_text() -> None:
    names, keys = ["punctuation:no_comma", "keywords:existence"], [{}, {"keywords": ["sure"]}]
    text = "Sure, here it is:\nNo mark of that kind."
    verdict = IFEval("loose")(text, instruction_id_list=names, kwargs=keys)
    assert (verdict.parts["prompt_loose"], verdict.parts["instruction_strict"]) == (1.0, 0.5)
    for text in ("", " \n", "a,", "*,*", "\n"):
        assert IFEval("loose")(text, instruction_id_list=["punctuation:no_comma"], kwargs=[{}]).score == 0.0, text


@pytest.mark.parametrize(
    ("names", "kwargs", "said"),
    [
        ([], [], "0 instructions"),
        (TWO, [{}], "2 instructions with 1 kwargs"),
        (["punctuation:no_dash"], [{}], "no such instruction"),
        (["length_constraints:number_words"], [{"num_words": 3}], "'relation'"),
        (["length_constraints:number_words"], [{"num_words": 3, "relation": "around"}], "'around'"),
        (["length_constraints:number_words"], [{"num_words": "3", "relation": "at least"}], "not supported"),
        (["length_constraints:number_words"], [None], "'num_words'"),
        (["keywords:existence"], [{"keywords": "sun"}], "'sun'"),
        (["keywords:forbidden_words"], [{"forbidden_words": []}], "[]"),
        (["keywords:frequency"], [{"keyword": " ", "frequency": 1, "relation": "at least"}], "empty"),
        (["keywords:letter_frequency"], [{"letter": "ab", "let_frequency": 1, "let_relation": "at least"}], "'ab'"),
        (["language:response_language"], [{"language": "xx"}], "'xx'"),
        (["detectable_content:postscript"], [{"postscript_marker": " "}], "' '"),
    ],
)
def test_a_row_that_cannot_be_checked_gives_no_score(names: list[str], kwargs: list[Any], said: str) -> None:
    verdict = IFEval()("Three words here.", instruction_id_list=names, kwargs=kwargs)
    assert (verdict.score, verdict.status) == (None, "unparsable")
    assert said in verdict.reason


def test_a_paragraph_that_there_is_not_begins_with_no_word() -> None:
    name = "length_constraints:nth_paragraph_first_word"
    for nth, score in ((0, 0.0), (1, 0.0), (2, 1.0), (3, 0.0)):
        keys = {"num_paragraphs": 2, "nth_paragraph": nth, "first_word": "two"}
        assert IFEval()("One.\n\nTwo.", instruction_id_list=[name], kwargs=[keys]).score == score, nth


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="'lose'"):
        IFEval("lose")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'word'"):
        IFEval(level="word")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("...", 0),
        ("One.", 1),
        ("No full stop", 1),
        ("One. Two? Three!", 3),
        ("One.\nTwo.\n\nThree", 3),
        ("all in small letters. two of them.", 2),
        ("Wait... what? Yes.", 2),
        ("Wait... What? Yes.", 3),
        ("Dr. Smith met Mrs. J. B. Brown. They ate, e.g. soup.", 2),
        ("It is 3.5 km. Go.", 2),
        ("We met at 5 p.m. on Monday. He came from the U.S. He left.", 3),
        ("The U.S. Army bought shoes, boots, etc. Nobody wore them.", 2),
        ("He said no. Then he sat. Then I.", 3),
        ("Vote for candidate B. If not, for C. He wins.", 3),
        ("1. Wash it.\n2. Dry it.", 2),
        ('"Is it?" she asked. "It is."', 3),
        ("(It is so.) Really!", 2),
        ("Really?! Yes!!! *Sure.*", 3),
        ("これは一つ。これは二つ！三つ？", 3),
        ("यह एक है। यह दो है।", 2),
        ("www.example.org is a site.", 1),
        ("Harald's. Lylah's.", 2),
    ],
)
def test_sentences_are_counted_as_a_reader_would(text: str, count: int) -> None:
    assert sentences(text) == count


def test_words_paragraphs_and_capital_words_are_counted() -> None:
    assert [words(text) for text in ("", "one two", "don't", "a-b c_d 3.5", "好 的")] == [0, 2, 2, 5, 2]
    assert paragraphs("\n\na\nb\n\n\n\nc\n \n") == ["a\nb", "c"]
    assert [capital_words(t) for t in ("", "I am", "NASA's", "U.S.A. COVID-19", "Ab CD 123")] == [0, 1, 1, 2, 1]
    assert [capital_words(t) for t in ("I'm", "DON'T", "A/B X=Y", "IT’S", "**NO**", "don't")] == [1, 2, 2, 2, 1, 0]


@pytest.mark.parametrize("name", KEYS)
def test_hostile_texts_are_read_in_a_moment(name: str) -> None:
    grade = IFEval("loose")
    grade("Load the model first.", instruction_id_list=["change_case:english_lowercase"], kwargs=[{}])
    for piece in (
        "[",
        "<<",
        "*",
        "***",
        "* ",
        "a. ",
        ". ",
        "\n",
        "\n\n",
        " ",
        "-",
        "P.",
        "Section ",
        '"',
        "{",
        "é",
        "a" * 99,
    ):
        text = piece * (50_000 // len(piece))
        # Eight readings of 50 000 characters; a quadratic pattern would take minutes.
        assert seconds(grade, text, instruction_id_list=[name], kwargs=[KEYS[name]]) < 10, piece


def test_it_grades_in_worker_processes() -> None:
    columns = {"instruction_id_list": ["change_case:english_lowercase"], "kwargs": [EVERY_KEY]}
    rollouts = [Rollout((1,), (True,), t, "stop") for t in ("all of this is small.", "Not all of it.", "")]
    with Grader([Reward(verifier="posttrain_verifiers.ifeval:IFEval")], Grading(timeout=10)) as grader:
        (verdicts,) = grader.grade([(Prompt("p", (1,), "", columns), rollouts)])
    assert [verdict.score for verdict in verdicts] == [1.0, 0.0, 0.0]
    assert verdicts[0].parts["IFEval.prompt_loose"] == 1.0
