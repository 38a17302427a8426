"""Every attack on the sandbox, scored: none is accepted as a function or as a program, and none goes ungraded."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from posttrain_verifiers.code import Code
from tests.verifiers.attacks import ATTACKS
from tests.verifiers.traces import nothing_left

CHECK = {
    "prompt": "def solve(x):\n    '''The square of a number.'''\n",
    "entry_point": "solve",
    "test": "def check(candidate):\n    assert candidate(7) == 49\n    assert candidate(3) == 9\n",
}
ASSERTS = {"test_list": ["assert solve(7) == 49", "assert solve(3) == 9"], "test_setup_code": ""}
STREAMS = {"tests": [{"input": "7\n", "output": "49\n"}, {"input": "3\n", "output": "9\n"}]}
VALUES = {"tests": [{"input": "7", "output": "49"}, {"input": "3", "output": "9"}], "fn_name": "solve"}
WHOLE = "\nsolve = solve\n"
"""Behind an attack: now all of it stands before the last definition, so none of it is taken for an example and cut."""


@pytest.fixture(scope="module")
def code() -> Iterator[Code]:
    made = Code(timeout=0.5, memory=256 << 20)
    made.prepare()
    yield made
    made.close()


@pytest.fixture(scope="module")
def patient() -> Iterator[Code]:
    made = Code(timeout=60.0)
    yield made
    made.close()


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_scores_nothing_and_leaves_nothing(code: Code, name: str) -> None:
    assert code._sandbox is not None
    with nothing_left(code._sandbox):
        for columns in (CHECK, ASSERTS, VALUES):
            verdict = code(ATTACKS[name] + WHOLE, **columns)
            assert verdict.score == 0.0, verdict.reason
        verdict = code(ATTACKS[name], **STREAMS)
        assert verdict.score == 0.0, verdict.reason


def test_the_honest_program_passes_where_the_attacks_do_not(patient: Code) -> None:
    honest = "def solve(x): return x * x\n"
    for columns in (CHECK, ASSERTS, VALUES):
        assert patient(honest + WHOLE, **columns).score == 1.0
    assert patient(honest + "print(solve(int(input())))", **STREAMS).score == 1.0
