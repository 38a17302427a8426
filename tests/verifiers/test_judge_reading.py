"""What is read from a judge's answer, and what is not: the sets that ship, and what makes an answer another's."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

import posttrain_verifiers
from posttrain_verifiers.judges.prompts import Template, as_text
from posttrain_verifiers.judges.readable import Readable
from posttrain_verifiers.judges.scale import Scale

AUDITS = Path(posttrain_verifiers.__file__).parent / "audits"


@pytest.mark.parametrize("name", ["number", "words", "json", "unbound"])
def test_the_shipped_answers_are_read_as_they_should_be(name: str) -> None:
    settings = json.loads((AUDITS / f"judge_{name}.json").read_text())["settings"]
    kinds: Counter[str] = Counter()
    for line in (AUDITS / f"judge_{name}.jsonl").read_text().splitlines():
        row = json.loads(line)
        expected, kind, completion = row.pop("expect"), row.pop("kind"), row.pop("completion")
        verdict = Readable(**settings)(completion, **row)
        assert (verdict.score == 1.0) is expected, (completion, verdict)
        kinds[kind] += 1
    assert set(kinds) == {"gold", "empty", "truncated", "hostile", "near_miss"}


def test_another_score_than_the_known_one_is_no_match() -> None:
    assert Readable()("Score n: 7", nonce="n", said=7).score == 1.0
    assert Readable()("Score n: 7", nonce="n", said=8).score == 0.0
    assert Readable()("Score n: 7", nonce="m").score == 0.0


@pytest.mark.parametrize("parse", ["number", "json"])
@pytest.mark.parametrize("bound", [True, False])
def test_an_answer_that_ends_as_asked_is_read(parse: str, bound: bool) -> None:
    scale = Scale(parse, 0.0, 4.0, bound=bound)  # type: ignore[arg-type]
    last = scale.ending("abc").splitlines()[-1]
    assert ("abc" in last) is bound
    answer = last.replace("<a number from 0 to 4>", "3")
    assert answer != last
    assert scale.read(answer, "abc", ["other words"]) == 3.0
    assert scale.worth(3.0) == 0.75


def test_words_are_asked_for_and_read_whole() -> None:
    scale = Scale("words", words={"good": 1.0, "not good": 0.25}, mark="Verdict")
    assert scale.ending("abc").splitlines()[-1] == "Verdict abc: <good or not good>"
    assert [scale.read(f"Verdict abc: {word}", "abc", []) for word in ("good", "Not Good", "not")] == [1.0, 0.25, None]
    assert scale.worth(0.25) == 0.25


def test_a_fence_has_its_line_to_itself_and_its_word_is_in_no_text() -> None:
    template = Template("Said: {completion}. Known: {answer}", ("completion",))
    values = {"completion": "x", "answer": "{completion}"}
    nonce = template.nonce(values)
    text = template.fill(values, nonce)
    assert f"Said: \n<<<{nonce}\nx\n{nonce}>>>\n. Known: {{completion}}" in text
    assert len(nonce) == 12
    assert template.nonce({**values, "completion": f"a {nonce} b"}) != nonce
    # Whatever changes in the question changes its word, so what was read of one cannot be written into the next.
    words = {nonce, template.nonce({**values, "answer": "y"}), Template("{completion}", ("completion",)).nonce(values)}
    assert len(words) == 3


def test_columns_are_shown_as_a_person_would_write_them() -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]
    assert as_text("a") == "a"
    assert as_text(chat[:1]) == "Hi"
    assert as_text(chat) == "user: Hi\n\nassistant: Yes?"
    assert [as_text(value) for value in (3, ["ä", 1], None, [])] == ["3", '["ä", 1]', "null", "[]"]
