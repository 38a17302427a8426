"""Programs one after another in one place: kept where a program only computed, and ended with one that did more."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from posttrain_verifiers.sandbox import Calls, Handle, Limits, ProgramEndedError, ProgramError, Sandbox

PATIENT = Limits(seconds=60.0)
LOOK = "import os\nprint(os.getpid(), os.listdir('.'), oct(os.stat('.').st_mode & 0o7777))"
TRACES = {
    "a file": "open('left', 'w').write('49')",
    "a file that was removed": "import os\nopen('left', 'w').close()\nos.remove('left')",
    "a folder": "import os\nos.mkdir('left')",
    "a link": "import os\nos.symlink('/', 'left')",
    "other rights of the folder": "import os\nos.chmod('.', 0o777)",
    "other rights and back": "import os\nos.chmod('.', 0o777)\nos.chmod('.', 0o700)",
    "another time of the folder": "import os\nos.utime('.', (1, 1))",
    "a process that ended": "import os\nif os.fork() == 0: os._exit(0)\nos.wait()",
    "a process that lives": "import os, time\nif os.fork() == 0:\n    os.setsid()\n    while True: time.sleep(1)",
    "a process that stopped": "import os, signal\nif os.fork() == 0: os.kill(os.getpid(), signal.SIGSTOP)",
    "a thread": "import threading\nthreading.Thread(target=print).start()",
    "a thread, and an exit from it": "import os, threading, time\nthreading.Thread(target=os._exit, args=(0,)).start()",
}


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(limits=PATIENT) as made:
        yield made


def test_a_program_that_only_computes_leaves_its_place_to_the_next(sandbox: Sandbox) -> None:
    sandbox.let_go()
    seen = [sandbox.run("import os\nprint(os.getpid(), sum(range(1000)))").stdout for _ in range(3)]
    with sandbox.open("import os\ndef f(): return os.getpid()") as session:
        assert session.call("f") == 5
    assert seen == ["2 499500\n", "3 499500\n", "4 499500\n"]
    assert sandbox.run(LOOK).stdout == "6 [] 0o700\n"


@pytest.mark.parametrize("kind", TRACES)
def test_a_program_that_leaves_a_trace_takes_its_place_along(sandbox: Sandbox, kind: str) -> None:
    assert sandbox.run(TRACES[kind]).how == "exited"
    assert sandbox.run(LOOK).stdout == "2 [] 0o700\n"


def test_a_program_that_is_ended_takes_its_place_along(sandbox: Sandbox) -> None:
    for source, limits in (
        ("while True: pass", Limits(seconds=0.3)),
        ("while True: print('x' * 99)", Limits(seconds=60, output=1000)),
    ):
        assert sandbox.run(source, limits=limits).how in ("timeout", "output")
        assert sandbox.run(LOOK).stdout == "2 [] 0o700\n"


def test_a_program_that_keeps_its_parent_awake_is_watched_as_well(sandbox: Sandbox) -> None:
    source = """
import os, signal, time
for _ in range(10):
    if os.fork() == 0:
        held = bytearray(50 << 20)
        time.sleep(99)
while True: os.kill(1, signal.SIGCHLD)
"""
    assert sandbox.run(source, limits=Limits(seconds=60, memory=200 << 20)).how == "memory"


def test_a_program_that_closes_its_channel_is_ended_soon(sandbox: Sandbox) -> None:
    for source in (
        "import os\ndef f():\n    os.close(3)\n    while True: pass",
        "import os\nos.close(3)\nwhile True: pass",
    ):
        with pytest.raises(ProgramEndedError) as caught, sandbox.open(source) as session:
            session.call("f")
        assert caught.value.ended.how == "killed"
        assert caught.value.ended.seconds < 30


def test_a_session_that_is_closed_while_its_program_is_deaf_is_ended(sandbox: Sandbox) -> None:
    source = "import threading, time\nthreading.Thread(target=time.sleep, args=(99,)).start()\ndef f(): return 1"
    for _ in range(2):
        with sandbox.open(source) as session:
            assert session.call("f") == 1
        assert session.ended is not None
    assert sandbox.run(LOOK).stdout == "2 [] 0o700\n"


def test_places_are_for_the_limits_they_were_made_for(sandbox: Sandbox) -> None:
    source = "import resource\nprint(resource.getrlimit(resource.RLIMIT_NPROC)[0], resource.RLIMIT_CPU)"
    for processes in (5, 9, 5):
        limits = Limits(seconds=60, processes=processes)
        assert sandbox.run(source, limits=limits).stdout.split()[0] == str(processes + 1)
    seconds = "import resource\nprint(resource.getrlimit(resource.RLIMIT_CPU)[0])"
    assert [sandbox.run(seconds, limits=Limits(seconds=s)).stdout for s in (30, 40)] == ["62\n", "82\n"]


def test_calls_that_are_asked_for_together_are_answered_in_order(sandbox: Sandbox) -> None:
    source = "seen = []\ndef f(x, y=0):\n    seen.append(x)\n    return seen, 10 // (x + y)"
    calls = Calls.of([("f", (1,), {}), ("f", (0,), {}), ("f", (2,), {"y": 3}), ("g", (), {})], last=True)
    with sandbox.open(source, calls=calls) as session:
        assert session.next() == ([1], 10)
        with pytest.raises(ProgramError, match="ZeroDivisionError"):
            session.next()
        assert session.next() == ([1, 0, 2], 2)
        with pytest.raises(ProgramError, match="name 'g' is not defined"):
            session.next()
    more = Calls.of([("f", (5,), {}), ("f", (6,), {})], last=False)
    with sandbox.open(source) as session:
        session.ask(more)
        assert [session.next()[1], session.next()[1]] == [2, 1]
        assert session.call("f", [7]) == ([5, 6, 7], 1)


def test_what_was_answered_before_a_program_died_or_hung_is_not_lost(sandbox: Sandbox) -> None:
    ways = {
        "exited": "import os\n    os._exit(0)",
        "timeout": "while True: pass",
        "output": "while True: print('x' * 99)",
    }
    for how, way in ways.items():
        source = f"def f(x):\n    if x < 3: return x\n    {way}"
        limits = Limits(seconds=1.0 if how == "timeout" else 60.0, output=10_000)
        with sandbox.open(source, limits, Calls.of([("f", (i,), {}) for i in range(5)], last=True)) as session:
            assert [session.next() for _ in range(3)] == [0, 1, 2]
            for _ in range(2):
                with pytest.raises(ProgramEndedError) as caught:
                    session.next()
                assert caught.value.ended.how == how


def test_answers_are_there_while_a_later_call_hangs(sandbox: Sandbox) -> None:
    started = time.monotonic()
    calls = Calls.of([("f", (1,), {}), ("f", (2,), {})], last=True)
    with sandbox.open("def f(x):\n    while x > 1: pass\n    return x", PATIENT, calls) as session:
        assert session.next() == 1
    assert time.monotonic() - started < 30


def test_a_program_that_gives_its_own_objects_stays_to_be_asked(sandbox: Sandbox) -> None:
    source = "class C:\n    x = 7\ndef f(): return C()\ndef g(c): return c.x"
    with sandbox.open(source, calls=Calls.of([("f", (), {}), ("f", (), {})], last=True)) as session:
        made = [session.next(), session.next()]
        assert all(type(one) is Handle for one in made)
        assert session.attribute(made[0], "x") == 7
        assert session.call("g", [made[1]]) == 7


def test_more_answers_than_were_asked_for_end_a_program(sandbox: Sandbox) -> None:
    source = """
import os, sys
def f(x):
    frame = sys._getframe()
    while 'nonce' not in frame.f_locals: frame = frame.f_back
    text = f'["{frame.f_locals["nonce"]}","value",49]'.encode()
    os.write(3, 9 * (len(text).to_bytes(4, 'big') + text))
    while True: pass
"""
    calls = Calls.of([("f", (1,), {}), ("f", (2,), {})], last=True)
    with sandbox.open(source, calls=calls) as session:
        assert session.next() == 49
        with pytest.raises(ProgramEndedError) as caught:
            session.next()
        assert caught.value.ended.how == "killed"


def test_only_plain_data_is_asked_with(sandbox: Sandbox) -> None:
    for value in (object(), print, [object()], {"k": (object(),)}, type("Sub", (int,), {})(3)):
        with pytest.raises(TypeError):
            Calls.of([("f", (value,), {})], last=True)
    values = (None, True, 1 << 99, -0.0, 1j, "é\ud800", b"x", [1, (2,)], {1: {2}}, frozenset({3}))
    with sandbox.open("def f(*x): return x", calls=Calls.of([("f", values, {})], last=True)) as session:
        assert repr(session.next()) == repr(values)
