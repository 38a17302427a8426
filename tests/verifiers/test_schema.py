"""JSON is accepted where it is JSON and of the schema; the schema's own faults are no verdict on the completion."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from posttrain.recipe import Grading, Reward
from posttrain.rewards import Grader
from posttrain.types import Prompt, Rollout
from posttrain_verifiers.schema import Schema, read_json
from tests.verifiers.shipped_rows import faults, seconds, timed

PERSON = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}


def test_the_shipped_rows_are_all_judged_as_they_should_be() -> None:
    assert faults("schema", {"gold", "empty", "truncated", "near_miss", "hostile"}) == []


def test_the_parts_tell_json_from_the_schema_and_the_reason_says_where() -> None:
    grade = Schema(PERSON)
    right, wrong, none = (grade(text) for text in ('{"name": "Ada"}', '{"name": 3}', "Ada"))
    assert (right.score, right.parts) == (1.0, {"json": 1.0, "schema": 1.0})
    assert (wrong.score, wrong.status, wrong.parts) == (0.0, "ok", {"json": 1.0, "schema": 0.0})
    assert wrong.reason == "$.name: 3 is not of type 'string'"
    assert (none.score, none.status, none.parts) == (0.0, "unparsable", {"json": 0.0, "schema": 0.0})


def test_the_schema_is_an_object_or_its_text_and_a_rows_own_goes_before_the_settings() -> None:
    for schema in (PERSON, json.dumps(PERSON)):
        assert Schema(schema)('{"name": "Ada"}').score == 1.0
        assert Schema()('{"name": 3}', schema=schema).score == 0.0
        assert Schema({"type": "array"})('{"name": "Ada"}', schema=schema).score == 1.0
    assert Schema(True)("3").score == 1.0
    assert Schema(False)("3").score == 0.0


def test_fenced_json_may_stand_among_words_where_that_is_asked_for() -> None:
    text = 'First:\n```json\n{"name": 3}\n```\nBetter:\n```json\n{"name": "Ada"}\n```\nDone.'
    assert Schema(PERSON, where="fenced")(text).score == 1.0
    assert Schema(PERSON)(text).score == 0.0
    assert Schema(PERSON, where="fenced")('{"name": "Ada"}').score == 0.0
    assert Schema(PERSON, where="fenced")(text.removesuffix("```\nDone.")).score == 0.0
    assert Schema(PERSON, where="fenced")('```\n{"name": "Ada"}\n```\nand\n```\nno').score == 0.0
    with pytest.raises(ValueError, match="'anywhere'"):
        Schema(PERSON, where="anywhere")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "schema",
    [
        None,
        "{",
        '"object"',
        {"type": "objekt"},
        {"pattern": "("},
        {"$ref": "#/$defs/missing"},
        {"$ref": "https://example.org/schema.json"},
        {"minimum": "3"},
        3,
    ],
)
def test_a_schema_that_cannot_be_used_gives_no_score(schema: Any) -> None:
    verdict = Schema()('"text"', schema=schema)
    assert (verdict.score, verdict.status) == (None, "unparsable")
    assert "schema" in verdict.reason


def test_a_reference_to_another_document_is_never_fetched() -> None:
    asked = []

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        verdict = Schema()("3", schema={"$ref": f"http://127.0.0.1:{server.server_port}/schema.json"})
        server.shutdown()
    assert (verdict.score, asked) == (None, [])


def test_a_broken_schema_in_the_settings_is_refused_when_the_recipe_is_read() -> None:
    with pytest.raises(Exception, match="objekt"):
        Schema({"type": "objekt"})


def test_drafts_differ_as_they_say() -> None:
    tuple_of = [{"type": "integer"}, {"type": "string"}]
    old = {"$schema": "http://json-schema.org/draft-07/schema#", "items": tuple_of}
    assert [Schema(old)(text).score for text in ('[1, "a"]', '["a", 1]')] == [1.0, 0.0]
    assert [Schema({"prefixItems": tuple_of})(text).score for text in ('[1, "a"]', '["a", 1]')] == [1.0, 0.0]


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({"uniqueItems": True}, '[1, true, "1", [1], {"a": 1}, null]', "[1, 1.0]"),
        ({"uniqueItems": True}, '[{"a": 1, "b": 2}, {"a": 1, "b": 3}]', '[{"a": 1, "b": 2}, {"b": 2, "a": 1}]'),
        ({"uniqueItems": False}, "[1, 1]", None),
        ({"pattern": "^a+$"}, '"aa"', '"ab"'),
        ({"pattern": "b"}, '"abc"', '"a"'),
        ({"pattern": "b"}, "3", None),
        ({"patternProperties": {"^n": {"type": "integer"}}}, '{"n1": 1, "m": "x"}', '{"n1": "x"}'),
        ({"patternProperties": {"^n": {}}, "additionalProperties": False}, '{"n1": 1}', '{"m": 1}'),
    ],
)
def test_the_keywords_that_are_ours_mean_what_the_specification_says(schema: Any, good: str, bad: str | None) -> None:
    assert Schema(schema)(good).score == 1.0
    assert bad is None or Schema(schema)(bad).score == 0.0


def test_a_pattern_that_never_ends_gives_no_score() -> None:
    many = json.dumps(["a" * 60 + "!"] * 100)
    grade = Schema({"items": {"pattern": "^(a|aa)+$"}}, timeout=0.2)
    verdict = grade(many)
    assert (verdict.score, verdict.status) == (None, "timeout")
    assert seconds(grade, many) < 1
    named = Schema({"patternProperties": {"^(a|aa)+$": {}}}, timeout=0.2)
    assert named(json.dumps({"a" * 60 + "!": 1})).status == "timeout"


HOSTILE = [
    "[" * 500_000,
    "[" * 200_000 + "]" * 200_000,
    '{"a":' * 100_000 + "1" + "}" * 100_000,
    "9" * 500_000,
    json.dumps([{"a": i} for i in range(20_000)]),
    json.dumps([[i] for i in range(20_000)]),
    "```" * 100_000,
    "```\n" * 100_000,
    '"' + "\\u0000" * 100_000 + '"',
    "\\" * 300_000,
]


@pytest.mark.parametrize("where", ["whole", "fenced"])
def test_huge_and_nested_completions_come_back_fast(where: Any) -> None:
    grade = Schema({"type": "object", "uniqueItems": True, "properties": {"a": {"$ref": "#"}}}, where=where)
    for text in HOSTILE:
        # A quadratic check of 20 000 members would take minutes.
        verdict, taken = timed(grade, text)
        assert taken < 3, text[:20]
        assert verdict.score == 0.0, text[:20]


def test_ambiguous_texts_are_no_json() -> None:
    for text in ('{"a": 1, "a": 2}', "NaN", "[-Infinity]", "1e", "", "x" * 1_000_001):
        with pytest.raises(ValueError, match=r"twice|no JSON|Expecting|Extra|characters"):
            read_json(text)
    assert read_json('{"a": [1, 2.5, null, "é"]}') == {"a": [1, 2.5, None, "é"]}


def test_it_grades_in_worker_processes_with_a_schema_for_each_row() -> None:
    schemas = [PERSON, {"type": "array"}]
    groups = [
        (Prompt(str(i), (1,), "", {"schema": s}), [Rollout((1,), (True,), t, "stop") for t in ('{"name": "A"}', "[]")])
        for i, s in enumerate(schemas)
    ]
    with Grader([Reward(verifier="posttrain_verifiers.schema:Schema")], Grading(timeout=5)) as grader:
        assert [[v.score for v in verdicts] for verdicts in grader.grade(groups)] == [[1.0, 0.0], [0.0, 1.0]]
