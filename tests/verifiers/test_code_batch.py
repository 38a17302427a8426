"""Code in the grading pool: a batch with hanging and crashing programs ends in time, and nothing is lost."""

from __future__ import annotations

import time

import pytest

from posttrain.recipe import Grading, Reward
from posttrain.rewards import Grader
from posttrain.types import Prompt, Rollout, Verdict
from tests.verifiers.traces import SETTLE, nothing_left, processes

CODE = "posttrain_verifiers.code:Code"
LIMIT = 10.0
"""`grading.timeout`, the longest that one verdict may take."""
PROGRAM = 3.0
"""Seconds a program may take: two rounds of hanging programs leave the rest of LIMIT to the others."""
WORKERS = 16
COLUMNS = {"test_list": ["assert square(3) == 9", "assert square(-2) == 4"], "test_setup_code": ""}
PROGRAMS = {
    "right": "def square(x): return x * x",
    "wrong": "def square(x): return x + x",
    "hangs": "import time\ndef square(x): time.sleep(1000)",
    "crashes": "import os\ndef square(x): os.abort()",
    "no program": "I would multiply it by itself.",
}


def batch(kinds: list[str]) -> list[tuple[Prompt, list[Rollout]]]:
    """Groups of eight; a comment tells the programs apart."""
    rollouts = [Rollout((1,), (True,), f"{PROGRAMS[kind]}\n# {i}\n", "stop") for i, kind in enumerate(kinds)]
    return [(Prompt(str(i), (1,), "", COLUMNS), rollouts[i : i + 8]) for i in range(0, len(kinds), 8)]


def graded(kinds: list[str], workers: int, program: float) -> tuple[list[Verdict], float]:
    grading = Grading(workers=workers, timeout=LIMIT, cache=False)
    with Grader([Reward(verifier=CODE, settings={"timeout": program})], grading) as grader:
        start = time.monotonic()
        verdicts = [verdict for group in grader.grade(batch(kinds)) for verdict in group]
        seconds = time.monotonic() - start
        assert len(set(grader.pids())) == workers
    return verdicts, seconds


def fits(kind: str, verdict: Verdict) -> bool:
    """Whether a verdict is the one for this kind of program."""
    words = {"hangs": "timeout in square", "crashes": "killed in square", "wrong": "gave 6, due 9"}
    status = "unparsable" if kind == "no program" else "ok"
    return (verdict.score, verdict.status) == (float(kind == "right"), status) and words.get(kind, "") in verdict.reason


def test_hanging_and_crashing_programs_are_wrong_answers_in_the_pool_too() -> None:
    kinds = ["right", "hangs", "crashes", "wrong", "no program", "right"]
    # A process's first pool starts a tracker of resources, which stays; the rest of that pool must have gone.
    graded(kinds[:1], workers=1, program=PROGRAM)
    until = time.monotonic() + SETTLE
    while len(processes()) > 1 and time.monotonic() < until:
        time.sleep(0.02)
    with nothing_left():
        verdicts, _ = graded(kinds, workers=2, program=PROGRAM)
    assert [v.reason for k, v in zip(kinds, verdicts, strict=True) if not fits(k, v)] == []


@pytest.mark.prove
def test_a_batch_of_512_with_hangs_and_crashes_ends_within_the_limit_and_loses_nothing() -> None:
    cycle = ["hangs", "crashes", "wrong", *["right"] * 10, "no program", "wrong", *["right"] * 5]
    kinds = [cycle[i % len(cycle)] for i in range(512)]
    assert kinds.count("hangs") == kinds.count("crashes") == 26
    verdicts, seconds = graded(kinds, WORKERS, PROGRAM)
    assert len(verdicts) == 512
    assert [v.reason for k, v in zip(kinds, verdicts, strict=True) if not fits(k, v)] == []
    print(f"512 verdicts in {seconds:.1f} s")
    assert seconds < LIMIT + 1
