"""Programs in the sandbox: what they give, how they end, and what they see."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Iterator

import pytest

from posttrain.errors import PosttrainError
from posttrain_verifiers.sandbox import Limits, ProgramEndedError, ProgramError, Sandbox, SandboxUnavailableError
from tests.verifiers.traces import nothing_left

GROWING = """
import os, time
for _ in range(10):
    if os.fork() == 0:
        held = bytearray(50 << 20)
        time.sleep(99)
time.sleep(99)
"""
PATIENT = Limits(seconds=60.0)
"""For programs that end by themselves: a busy machine fails none of them."""


@pytest.fixture(scope="module")
def sandbox() -> Iterator[Sandbox]:
    with Sandbox(limits=PATIENT) as made:
        yield made


def test_a_whole_program_reads_its_input_and_says_how_it_ended(sandbox: Sandbox) -> None:
    ended = sandbox.run("import sys\nfor line in sys.stdin: print(int(line) ** 2)\nsys.exit(3)", "2\n3\n")
    assert (ended.how, ended.code, ended.stdout, ended.stderr) == ("exited", 3, "4\n9\n", "")


def test_the_input_is_a_file_as_after_a_redirection(sandbox: Sandbox) -> None:
    text = "12345\n" * 200_000
    source = "import os, io, sys\nb = os.read(0, os.fstat(0).st_size)\nprint(len(b), sum(map(int, b.split())))"
    assert sandbox.run(source, text).stdout == f"{len(text)} {12345 * 200_000}\n"
    assert sandbox.run("import sys\nprint(len(sys.stdin.buffer.read()))\nprint(input.__name__)", text).code == 0
    assert sandbox.run("print(input())\ntry: input()\nexcept EOFError: print('end')", "é\n").stdout == "é\nend\n"


def test_an_uncaught_exception_is_told_as_python_does(sandbox: Sandbox) -> None:
    ended = sandbox.run("def f():\n    return 1 / 0\nprint('before')\nf()")
    assert (ended.how, ended.code, ended.stdout) == ("exited", 1, "before\n")
    lines = ended.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1:3] == ['  File "program.py", line 4, in <module>', '  File "program.py", line 2, in f']
    assert lines[-1] == "ZeroDivisionError: division by zero"
    assert sandbox.run("print(1").code == 1
    assert "SyntaxError" in sandbox.run("print(1").stderr


def test_what_a_program_does_at_its_end_is_done(sandbox: Sandbox) -> None:
    source = """
import atexit, threading, time
atexit.register(print, 'last')
threading.Thread(target=lambda: (time.sleep(.05), print('thread'))).start()
print('main', end='\\n')
"""
    assert sandbox.run(source).stdout == "main\nthread\nlast\n"
    assert sandbox.run("raise SystemExit('why')").stderr == "why\n"
    assert sandbox.run("raise SystemExit('why')").code == 1
    assert sandbox.run("raise SystemExit").code == 0


def test_a_loaded_program_keeps_its_state_from_call_to_call(sandbox: Sandbox) -> None:
    source = """
name, seen = __name__, []
def add(x, *, twice=False):
    seen.extend([x] * (1 + twice))
    return len(seen)
"""
    with sandbox.open(source) as session:
        assert session.call("add", [1]) == 1
        assert session.call("add", [2], {"twice": True}) == 3
        assert session.get("seen") == [1, 2, 2]
        assert session.get("name") != "__main__"


def test_what_a_program_raises_is_told_by_name_and_the_session_goes_on(sandbox: Sandbox) -> None:
    source = "class Odd(ValueError): pass\ndef f(x):\n    if x % 2: raise Odd(f'{x} is odd')\n    return x"
    with sandbox.open(source) as session:
        with pytest.raises(ProgramError) as caught:
            session.call("f", [3])
        assert (caught.value.kind, caught.value.message) == ("Odd", "3 is odd")
        assert session.call("f", [4]) == 4
        for call in (lambda: session.call("g"), lambda: session.get("g")):
            with pytest.raises(ProgramError) as caught:
                call()
            assert caught.value.kind == "NameError"
        with pytest.raises(ProgramError) as caught:
            session.call("f", [1, 2])
        assert caught.value.kind == "TypeError"
    for source, kind in (
        ("1 / 0", "ZeroDivisionError"),
        ("def f(", "SyntaxError"),
        ("import nothing", "ModuleNotFoundError"),
    ):
        with pytest.raises(ProgramError) as caught:
            sandbox.open(source)
        assert caught.value.kind == kind


def test_instances_of_the_programs_own_classes_are_handled_from_outside(sandbox: Sandbox) -> None:
    source = """
class Pair:
    def __init__(self, a, b): self.a, self.b = a, b
    def swapped(self): return Pair(self.b, self.a)
    def __repr__(self): return f'Pair({self.a}, {self.b})'
def total(pairs): return sum(p.a * p.b for p in pairs)
def same(): return the
the = Pair(5, 6)
"""
    with sandbox.open(source) as session:
        pairs = [session.call("Pair", [1, 2]), session.call("Pair", (), {"a": 3, "b": 4})]
        assert session.call("total", [pairs]) == 14
        assert (pairs[0].type_name, pairs[0].repr) == ("Pair", "Pair(1, 2)")
        swapped = session.call(session.attribute(pairs[0], "swapped"))
        assert session.attribute(swapped, "a") == 2
        assert session.call("same") is session.get("the")
        assert pairs[0] != session.call("Pair", [1, 2])
        with sandbox.open(source) as other, pytest.raises(ValueError, match="another session"):
            other.call("total", [pairs])
        with pytest.raises(TypeError, match="no value of type object"):
            session.call("total", [object()])


def test_each_limit_ends_a_program_and_names_itself(sandbox: Sandbox) -> None:
    cases = {
        "timeout": ("while True: pass", Limits(seconds=0.3)),
        "output": ("while True: print('x' * 100)", Limits(seconds=60, output=1000)),
        "killed": ("import os\nos.kill(os.getpid(), 11)", PATIENT),
        "memory": (GROWING, Limits(seconds=60, memory=200 << 20)),
    }
    for how, (source, limits) in cases.items():
        ended = sandbox.run(source, limits=limits)
        assert ended.how == how, (how, ended)
        with pytest.raises(ProgramEndedError) as caught:
            sandbox.open(source, limits)
        assert caught.value.ended.how == how
        assert ended.code == (-11 if how == "killed" else None)
    assert len(sandbox.run("print('x' * 5000)", limits=Limits(output=1000, seconds=60)).stdout) == 1000


@pytest.mark.clock
def test_a_session_has_one_budget_of_seconds_and_idle_time_is_free(sandbox: Sandbox) -> None:
    with sandbox.open("import time\ndef f(x): time.sleep(x)", Limits(seconds=2.0)) as session:
        time.sleep(2.1)
        session.call("f", [0.1])
        with pytest.raises(ProgramEndedError) as caught:
            session.call("f", [1.9])
        assert caught.value.ended.how == "timeout"
        # 4.1 s with the idle ones; above 2 by what a busy machine takes to look.
        assert 2.0 <= caught.value.ended.seconds < 4.1
        assert session.ended is caught.value.ended
        with pytest.raises(ProgramEndedError):
            session.call("f", [0])


def test_a_program_has_so_many_processes_and_no_more(sandbox: Sandbox) -> None:
    source = """
import os, time
count = 0
try:
    while count < 1000:
        if os.fork() == 0: time.sleep(99)
        count += 1
except OSError: pass
print(count)
"""
    assert sandbox.run(source, limits=Limits(seconds=60, processes=8)).stdout == "7\n"


def test_no_signal_of_a_program_reaches_beyond_it(sandbox: Sandbox) -> None:
    source = """
import os, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGSTOP, signal.SIGKILL): os.kill(1, number)
os.kill(0, signal.SIGTERM)
print('still here')
"""
    warm = sandbox._process.pid
    assert sandbox.run(source).stdout == "still here\n"
    assert sandbox.run("import os\nos.kill(0, 9)").code == -9
    assert sandbox.run("print(1)").stdout == "1\n"
    assert sandbox._process.pid == warm


def test_memory_beyond_the_limit_is_a_memory_error_and_less_is_not(sandbox: Sandbox) -> None:
    with sandbox.open("def f(n): return len(bytearray(n))", Limits(seconds=60, memory=100 << 20)) as session:
        assert session.call("f", [80 << 20]) == 80 << 20
        with pytest.raises(ProgramError, match="MemoryError"):
            session.call("f", [110 << 20])
        with pytest.raises(ProgramError, match="MemoryError"):
            session.call("f", [10 << 30])


def test_a_program_sees_no_more_than_it_needs(sandbox: Sandbox) -> None:
    source = """
import os, sys, socket
def seen():
    return [sorted(os.listdir('/dev')), os.listdir('/tmp'), os.getcwd(), *map(os.path.exists, ('/proc', '/etc')),
            dict(os.environ), sys.argv, os.getpid(), os.getppid(), os.getuid(), socket.gethostname(), os.getgroups(),
            [n for n in range(256) if is_open(n)]]
def is_open(n):
    try: os.fstat(n)
    except OSError: return False
    return True
"""
    with sandbox.open(source) as session:
        seen = session.call("seen")
    assert seen[:5] == [["null", "shm", "urandom", "zero"], [], "/tmp", False, False]
    assert seen[5:7] + seen[8:11] == [{}, ["program.py"], 1, 1000, "sandbox"]
    assert 1 < seen[7] < 100  # one more than the program had that was there before
    assert set(seen[11]) <= {1000, 65534}
    assert seen[12] == [0, 1, 2, 3]


def test_the_standard_library_is_there_and_what_is_installed_is_not(sandbox: Sandbox) -> None:
    source = """
import asyncio, sqlite3, zoneinfo, tempfile, multiprocessing, concurrent.futures, hashlib
import bz2, lzma, os, xml.dom.minidom
async def later(): await asyncio.sleep(0.01); return 1
def use():
    with tempfile.TemporaryFile() as f: f.write(b'x')
    with concurrent.futures.ThreadPoolExecutor(2) as pool: two = sum(pool.map(int, '11'))
    with multiprocessing.get_context('fork').Pool(2) as pool: three = sum(pool.map(int, '12'))
    four = sqlite3.connect(':memory:').execute('select 4').fetchone()[0]
    return [asyncio.run(later()), two, three, four, hashlib.sha256(b'').hexdigest()[:4]]
def installed():
    found = []
    for name in ('numpy', 'pydantic', 'posttrain'):
        try: found.append(__import__(name))
        except ImportError: pass
    library = os.path.dirname(os.__file__)
    for name in ('site-packages', 'dist-packages'):
        if os.path.isdir(f'{library}/{name}'): found += os.listdir(f'{library}/{name}')
    return found
"""
    with sandbox.open(source) as session:
        assert session.call("use") == [1, 2, 3, 4, "e3b0"]
        assert session.call("installed") == []


def test_sets_print_in_the_same_order_and_random_numbers_differ(sandbox: Sandbox) -> None:
    with Sandbox(limits=PATIENT) as other:
        words = "print({'a', 'bc', 'def', 'ghij', 'klmno'})"
        assert sandbox.run(words).stdout == other.run(words).stdout
    draws = {sandbox.run("import random\nprint(random.random())").stdout for _ in range(3)}
    assert len(draws) == 3


def test_several_programs_run_at_once(sandbox: Sandbox) -> None:
    values: list[int] = []

    def work(i: int) -> None:
        with sandbox.open("import time\ndef f(x): time.sleep(.2); return x * x") as session:
            values.extend(session.call("f", [i * 10 + j]) for j in range(2))

    with nothing_left(sandbox):
        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert sorted(values) == sorted((i * 10 + j) ** 2 for i in range(8) for j in range(2))


def test_another_language_and_limits_without_sense_are_refused() -> None:
    with pytest.raises(SandboxUnavailableError, match="'cobol'"):
        Sandbox("cobol")
    assert issubclass(SandboxUnavailableError, PosttrainError)
    for name in ("seconds", "memory", "processes", "disk", "output"):
        with pytest.raises(ValueError, match=f"limits.{name}"):
            Limits(**{name: 0})


def test_an_answer_must_echo_the_nonce_of_its_question(sandbox: Sandbox) -> None:
    forged = """
import os, struct
text = b'["%s","value",49]'
os.write(3, struct.pack('>I', len(text)) + text)
while True: pass
"""
    for nonce in ("", "0" * 32):
        with pytest.raises(ProgramEndedError) as caught:
            sandbox.open(forged.replace("%s", nonce))
        assert (caught.value.ended.how, caught.value.ended.code) == ("killed", None)


@pytest.mark.prove
def test_a_program_starts_within_milliseconds(sandbox: Sandbox) -> None:
    seconds = []
    for _ in range(100):
        started = time.perf_counter()
        assert sandbox.run("print(1)").stdout == "1\n"
        seconds.append(time.perf_counter() - started)
    # 5 ms where two cores are idle; a new interpreter takes 15 ms, and a busy machine waits for its cores.
    assert statistics.median(seconds) < 0.010
