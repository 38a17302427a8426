"""Where there is no isolation nothing runs; and whatever dies, the sandbox leaves nothing behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from posttrain_verifiers.sandbox import Limits, ProgramEndedError, Sandbox, SandboxUnavailableError
from tests.runs import ROOT
from tests.verifiers.traces import nothing_left, processes

PATIENT = Limits(seconds=60.0)
PYTHONS = ["/usr/bin/python3", "/usr/local/bin/python3", sys.executable]
START = f"""
import sys
sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / "verifiers")!r}]
from posttrain_verifiers.sandbox import *
"""
GROWING = """
import os, time
for _ in range(5):
    if os.fork() == 0:
        held = bytearray(50 << 20)
        time.sleep(99)
time.sleep(99)
"""
FORKS = """
import os, time
def f():
    n = 0
    try:
        while True:
            if os.fork() == 0: time.sleep(99)
            n += 1
    except OSError: return n
"""


def said_by(code: str, *command: str) -> str:
    """What a process of ours writes, run by this interpreter or as the command says."""
    done = subprocess.run(
        [*(command or (sys.executable,)), "-c", START + code], capture_output=True, text=True, timeout=120
    )
    return done.stdout + done.stderr


def without(calls: dict[str, int]) -> str:
    """Code that makes system calls fail in its process from then on, as a container's profile does."""
    return f"""
import struct
from posttrain_verifiers.sandbox import kernel
lines = [(0x20, 0, 0, 0)]
for number in {list(calls.values())}: lines += [(0x15, 0, 1, number), (0x06, 0, 0, 0x00050001)]
kernel._libc.prctl(38, 1, 0, 0, 0)
kernel.install_filter(b''.join(struct.pack('HBBI', *line) for line in [*lines, (0x06, 0, 0, 0x7fff0000)]))
try:
    print(Sandbox().run('print(1)'))
except SandboxUnavailableError as error:
    print('REFUSED', error)
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="numbers of x86_64")
@pytest.mark.parametrize(
    ("calls", "missing"),
    [
        ({"unshare": 272}, "namespaces is missing (PermissionError"),
        ({"mount": 165}, "root is missing (PermissionError"),
        ({"pivot_root": 155}, "root is missing (PermissionError"),
        ({"setns": 308}, "fork is missing"),
        ({"seccomp by prctl": 157}, "missing"),
        ({"execve": 59}, "Python is missing"),
    ],
)
def test_a_machine_that_forbids_a_part_gets_an_error_that_names_it(calls: dict[str, int], missing: str) -> None:
    said = said_by(without(calls))
    assert "REFUSED no isolation" in said, said
    assert missing in said
    assert "Nothing was run." in said
    assert "Ended(" not in said


def test_a_program_that_cannot_be_isolated_is_not_run() -> None:
    with Sandbox(limits=PATIENT) as sandbox:
        # No process can be given such a limit: its own process says so, and stops there.
        with nothing_left(sandbox), pytest.raises(SandboxUnavailableError, match=r"OverflowError.*nothing was run"):
            sandbox.run("print(1)", limits=Limits(seconds=60, memory=1 << 70))
        assert sandbox.run("print(1)").stdout == "1\n"


def test_an_unprivileged_user_is_isolated_as_well() -> None:
    python = next((p for p in PYTHONS if readable_by_all(p)), None)
    if os.geteuid() != 0 or python is None:
        pytest.skip("needs root to become someone else, and an interpreter that others may run")
    code = f"""
import os
os.setgroups([]); os.setresgid(54321, 54321, 54321); os.setresuid(54321, 54321, 54321)
with Sandbox(limits=Limits(seconds=60, processes=8)) as sandbox:
    print(sandbox.run('import os; print(os.getuid(), os.getpid(), os.listdir("/tmp"))').stdout)
    with sandbox.open({FORKS!r}) as session:
        print('forks', session.call('f'))
    print(sandbox.run({GROWING!r}, limits=Limits(seconds=60, memory=150 << 20)).how)
"""
    said = said_by(code, python)
    assert "1000 2 []" in said, said
    assert "forks 7\nmemory\n" in said, said


def readable_by_all(python: str) -> bool:
    """Whether another user may run it and read the code of the sandbox."""
    if not Path(python).exists():
        return False
    there = f"{START}assert sys.version_info >= (3, 11)\nimport json, ctypes\nprint(2)"
    code = f"import os; os.setresuid(54321, 54321, 54321); os.execv({python!r}, [{python!r}, '-c', {there!r}])"
    return subprocess.run([python, "-c", code], capture_output=True, text=True).stdout == "2\n"


def test_a_killed_owner_leaves_nothing() -> None:
    code = """
import os, time, subprocess
sandbox = Sandbox()
sessions = [sandbox.open('import os\\nif os.fork() == 0:\\n  os.setsid()\\n  while True: pass') for _ in range(2)]
fork = os.fork()  # it holds the owner's descriptors
if fork: print(fork, flush=True)
time.sleep(99)
"""
    with nothing_left():
        owner = subprocess.Popen([sys.executable, "-c", START + code], stdout=subprocess.PIPE, text=True)
        assert owner.stdout is not None
        fork = int(owner.stdout.readline())
        descendants = processes()
        # The owner, its fork, the guard, the warm process, and for each program a cell and two processes.
        assert len(descendants) >= 1 + 1 + 1 + 1 + 2 * 3
        owner.kill()
        owner.wait()
        owner.stdout.close()
        until = time.monotonic() + 10
        try:
            while any(is_sandbox(pid) for pid in descendants):
                assert time.monotonic() < until
                time.sleep(0.02)
        finally:
            os.kill(fork, signal.SIGKILL)


def is_sandbox(pid: str) -> bool:
    try:
        return "zygote.main" in Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return False


def test_a_warm_process_that_died_is_started_again() -> None:
    with Sandbox(limits=PATIENT) as sandbox:
        session = sandbox.open("def f(x): return x")
        os.kill(sandbox._process.pid, signal.SIGKILL)
        until = time.monotonic() + 10
        while session.ended is None and time.monotonic() < until:  # it goes down with the guard, which takes a moment
            with contextlib.suppress(ProgramEndedError):
                session.call("f", [1])
        assert session.ended is not None
        assert session.ended.how == "killed"
        with sandbox.open("def f(x): return x + 1") as again:
            assert again.call("f", [1]) == 2
    with pytest.raises(ValueError, match="closed"):
        sandbox.run("print(1)")


def test_nothing_of_the_owner_is_in_the_warm_process() -> None:
    secret = "expected-" + os.urandom(8).hex()
    os.environ["SANDBOX_SECRET"] = secret
    try:
        with Sandbox(limits=PATIENT) as sandbox:
            source = """
import os, gc
print(dict(os.environ), [o for o in gc.get_objects() if type(o) is dict and 'SANDBOX_' 'SECRET' in o])
"""
            assert sandbox.run(source).stdout == "{} []\n"
            children = processes()
            texts = [Path(f"/proc/{pid}/environ").read_text() for pid in children if is_sandbox(pid)]
            # The guard, the warm process, and the cell that the program was in.
            assert len(texts) == 3
            assert not [text for text in texts if secret in text]
            assert not json.dumps(texts).count("HOME=")
    finally:
        del os.environ["SANDBOX_SECRET"]
