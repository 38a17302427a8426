"""Every task of reasoning_gym, graded by its own scorer through ours."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import reasoning_gym
from reasoning_gym.factory import DATASETS

from posttrain.recipe import Grading, Reward
from posttrain.rewards import Grader
from posttrain.types import Prompt, Rollout
from posttrain_verifiers.reasoning_gym import ReasoningGym
from tests.verifiers.shipped_rows import faults

NO_KNOWN_ANSWER = {"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"}
"""Tasks that state no answer: theirs is whatever their scorer accepts."""
NOT_A_TASK = {"composite"}
"""Made of other tasks, whose names its rows carry."""
LAX = {"game_of_life_halting"}
"""Their scorers take anything that is not `True` for `False`."""


@pytest.fixture(scope="module")
def problems() -> list[dict[str, Any]]:
    names = sorted(set(DATASETS) - NOT_A_TASK)
    return [entry for name in names for entry in reasoning_gym.create_dataset(name, size=2, seed=1)]


def reply(entry: dict[str, Any], extract: str) -> str:
    answer = entry["answer"]
    return {"whole": answer, "tags": f"So <answer>{answer}</answer> it is.", "last_line": f"Let me see.\n{answer}"}[
        extract
    ]


@pytest.mark.parametrize("extract", ["whole", "tags", "last_line"])
def test_the_known_answer_of_every_task_scores_1(problems: list[dict[str, Any]], extract: Any) -> None:
    grade = ReasoningGym(extract)
    known = [entry for entry in problems if entry["answer"] is not None]
    wrong = {e["metadata"]["source_dataset"] for e in known if grade(reply(e, extract), **e).score != 1.0}
    assert len(known) >= 2 * 100
    assert wrong == set()
    assert {e["metadata"]["source_dataset"] for e in problems if e["answer"] is None} == NO_KNOWN_ANSWER


@pytest.mark.parametrize("extract", ["whole", "tags", "last_line"])
def test_nothing_and_nonsense_never_score_1(problems: list[dict[str, Any]], extract: Any) -> None:
    grade = ReasoningGym(extract)
    fooled = set()
    for entry in problems:
        assert max(grade(text, **entry).score or 0.0 for text in ("", " \n ")) < 1.0, entry["metadata"]
        if any(grade(text, **entry).score == 1.0 for text in ("<answer></answer>", "<answer>?</answer>", "}{")):
            fooled.add(entry["metadata"]["source_dataset"])
    assert fooled <= LAX
    assert grade("", **problems[0]).status == "unparsable"
    assert grade("", **problems[0]).score == 0.0


def test_the_last_tag_counts_and_one_that_is_not_closed_does_not() -> None:
    entry = next(iter(reasoning_gym.create_dataset("basic_arithmetic", size=1, seed=1)))
    grade, answer = ReasoningGym("tags"), entry["answer"]
    assert grade(f"<answer>no</answer> wait <answer>{answer}</answer>", **entry).score == 1.0
    assert grade(f"<answer>{answer}", **entry).score == 0.0
    assert grade(f"an <answer> is <answer>{answer}</answer>", **entry).score == 1.0


def test_an_answer_the_task_cannot_read_is_wrong_but_a_row_it_cannot_score_is_an_error() -> None:
    entry = next(iter(reasoning_gym.create_dataset("prime_factorization", size=1, seed=1)))
    verdict = ReasoningGym()("seven", **entry)
    assert (verdict.score, verdict.status) == (0.0, "unparsable")
    with pytest.raises(ValueError, match="invalid literal"):
        ReasoningGym()("seven", **{**entry, "answer": "lost"})


def test_a_row_without_a_task_and_an_unknown_way_to_extract_are_errors() -> None:
    with pytest.raises(KeyError, match="source_dataset"):
        ReasoningGym()("4", metadata={}, answer="4")
    with pytest.raises(ValueError, match="'last_lime'"):
        ReasoningGym("last_lime")  # type: ignore[arg-type]


def test_every_row_of_the_audit_set_has_its_verdict() -> None:
    assert faults("reasoning_gym", {"gold", "near_miss", "empty", "truncated", "hostile"}) == []


def test_the_answer_of_a_verdict_is_what_was_scored_without_its_spacing() -> None:
    sudoku = next(iter(reasoning_gym.create_dataset("mini_sudoku", size=1, seed=3)))
    grid = sudoku["answer"]
    verdict = ReasoningGym()(f"Here:\n{grid.replace(' ', '  ')} ", **sudoku)
    assert verdict.answer == grid
    assert ReasoningGym("tags")("no tags", **sudoku).answer is None


def test_it_grades_in_worker_processes() -> None:
    entries = list(reasoning_gym.create_dataset("basic_arithmetic", size=8, seed=3))
    groups = [
        (Prompt(str(i), (1,), e["question"], e), [Rollout((1,), (True,), t, "stop") for t in (e["answer"], "none")])
        for i, e in enumerate(entries)
    ]
    with Grader([Reward(verifier="posttrain_verifiers.reasoning_gym:ReasoningGym")], Grading()) as grader:
        assert [[v.score for v in vs] for vs in grader.grade(groups)] == [[1.0, 0.0]] * 8


def test_importing_the_verifiers_is_cheap_and_leaves_torch_and_reasoning_gym_out() -> None:
    program = (
        "import sys, posttrain_verifiers.reasoning_gym, posttrain_verifiers.math, posttrain_verifiers.format\n"
        "print([name for name in ('torch', 'reasoning_gym', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path[:0] = {sys.path}\n{program}"], capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]", done.stderr
