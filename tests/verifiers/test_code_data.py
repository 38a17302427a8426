"""HumanEval and MBPP: right solutions pass, broken ones do not. A slice; `benchmarks/grade_programs.py` takes all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.broken_programs import MISTAKES, variants
from posttrain_verifiers.code import Code

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
EVERY = 10
ALWAYS = {"HumanEval/10", "HumanEval/32", "HumanEval/38", "HumanEval/50", 126, 367, 533, 596, 601, 927}
"""Tests that use functions of the prompt, classes of the program, types as arguments, or the name of a built-in."""


def rows(name: str) -> list[dict[str, Any]]:
    if not (DATA / name).is_file():
        pytest.skip(f"{name} is not beside this checkout")
    found = [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]
    return [row for i, row in enumerate(found) if i % EVERY == 0 or row["task_id"] in ALWAYS]


@pytest.fixture(scope="module")
def code() -> Iterator[Code]:
    made = Code(timeout=60.0)  # a busy machine fails no right solution
    yield made
    made.close()


def wrong(code: Code, cases: list[tuple[dict[str, Any], str]]) -> list[str]:
    verdicts = [(row["task_id"], code(completion, **row)) for row, completion in cases]
    return [f"{task}: {verdict.reason}" for task, verdict in verdicts if verdict.score != 1.0]


def test_humaneval_solutions_pass_as_continuations_programs_and_chat_answers(code: Code) -> None:
    found = rows("humaneval.jsonl")
    assert len(found) > 16
    assert not wrong(code, [(row, row["canonical_solution"]) for row in found])
    assert not wrong(code, [(row, row["prompt"] + row["canonical_solution"]) for row in found])
    chat = "Here it is:\n\n```python\n{}\n\nprint('done')\n```\n\nIt passes."
    assert not wrong(code, [(row, chat.format(row["prompt"] + row["canonical_solution"])) for row in found])


def test_mbpp_solutions_pass(code: Code) -> None:
    found = rows("mbpp.jsonl")
    assert len(found) > 97
    assert not wrong(code, [(row, row["code"]) for row in found])


def test_another_tasks_solution_fails(code: Code) -> None:
    found = rows("humaneval.jsonl")
    for row, other in zip(found, found[1:] + found[:1], strict=True):
        assert code(other["prompt"] + other["canonical_solution"], **row).score == 0.0, row["task_id"]


def test_broken_variants_fail() -> None:
    found = rows("humaneval.jsonl")
    made = [
        (row, kind, source)
        for row in found
        for kind, source in variants(row["prompt"] + row["canonical_solution"], row["entry_point"])
    ]
    assert {kind for _, kind, _ in made} == set(MISTAKES)
    quick = Code(timeout=3.0)  # some do not come to an end
    passed = [(row["task_id"], kind) for row, kind, source in made if quick(source, **row).score != 0.0]
    quick.close()
    # Of the whole data more than 95 % fail. A slice of some 70 has room for the few that are right after all.
    assert len(passed) <= 0.1 * len(made), passed


def test_a_variant_differs_from_its_program_and_breaks_the_named_function() -> None:
    counts = "def f(xs):\n    'Words.'\n    n = 0\n    for x in xs:\n        n += x == 1\n    return n\n"
    found = dict(variants("def other(x):\n    return x < 1\n\n" + counts, "f"))
    assert set(found) == {"wrong constant", "early return", "swapped comparison", "dropped statement"}
    changed = {"wrong constant": "n += x == 8", "swapped comparison": "n += x != 1", "dropped statement": "    pass\n"}
    for kind, broken in found.items():
        assert "return x < 1" in broken
        assert "Words." in broken
        assert changed.get(kind, "        return n\n") in broken
