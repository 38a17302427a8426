"""The attack suite against the sandbox itself: every attack is wrong, leaves nothing, and harms no later program."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from posttrain_verifiers.sandbox import Limits, ProgramEndedError, ProgramError, Sandbox
from tests.verifiers.attacks import ATTACKS, FRUITLESS
from tests.verifiers.traces import nothing_left

SMALL = Limits(seconds=0.5, memory=256 << 20, processes=16, disk=4 << 20, output=64 << 10)
PATIENT = Limits(seconds=60.0)
"""For honest programs: a busy machine fails none."""
GRACE = 5.0
"""Seconds beyond its limit that a program's start, its killing and a busy machine may take."""
HONEST = """
import builtins, os, sys
def solve(x): return x * x
def found():
    folders = [os.listdir('.'), os.listdir('/dev/shm')]
    return [hasattr(builtins, 'solve'), dict(os.environ), *folders, 'answers' in sys.modules]
if __name__ == '__main__': print(solve(int(input())))
"""


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(limits=SMALL) as made:
        yield made


def called(sandbox: Sandbox, source: str) -> Any:
    """The value of solve(7), or the error."""
    try:
        with sandbox.open(source) as session:
            return session.call("solve", [7])
    except (ProgramError, ProgramEndedError) as error:
        return error


def test_there_are_at_least_thirty_attacks() -> None:
    assert len(ATTACKS) >= 30


@pytest.mark.parametrize("name", ATTACKS)
def test_an_attack_is_wrong_and_leaves_nothing(sandbox: Sandbox, name: str) -> None:
    started = time.monotonic()
    with nothing_left(sandbox):
        value = called(sandbox, ATTACKS[name])
        ended = sandbox.run(ATTACKS[name], "7\n")
    assert time.monotonic() - started < 2 * (SMALL.seconds + GRACE)
    assert (value == 49) is False
    assert (49 == value) is False  # noqa: SIM300
    assert ended.stdout.split() != ["49"]
    assert len(ended.stdout) <= SMALL.output
    with sandbox.open(HONEST, PATIENT) as session:
        assert session.call("solve", [7]) == 49
        assert session.call("found") == [False, {}, [], [], False]
    assert sandbox.run(HONEST, "7\n", PATIENT).stdout == "49\n"


@pytest.mark.parametrize("name", FRUITLESS)
def test_an_attack_finds_nothing_and_manages_nothing(sandbox: Sandbox, name: str) -> None:
    with sandbox.open(ATTACKS[name], PATIENT) as session:
        assert session.call("solve", [7]) == []


def test_an_open_program_that_attacks_is_gone_once_its_session_is_closed(sandbox: Sandbox) -> None:
    with nothing_left(sandbox):
        session = sandbox.open(ATTACKS["stays behind by a double fork"])
        assert session.call("solve", [7]) is None
        session.close()


def test_a_sandbox_leaves_nothing() -> None:
    with nothing_left(), Sandbox(limits=SMALL) as made:
        assert called(made, HONEST) == 49
        assert isinstance(called(made, ATTACKS["bombs with forks"]), ProgramEndedError)
        made.open(ATTACKS["ignores signals"])
