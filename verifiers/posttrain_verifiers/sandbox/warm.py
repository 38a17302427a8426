"""A sandbox: a warm isolated interpreter that programs are forked from."""

from __future__ import annotations

import contextlib
import functools
import json
import marshal
import os
import socket
import subprocess
import threading

from posttrain_verifiers.sandbox import frames
from posttrain_verifiers.sandbox.cells import START_LIMIT, Cell
from posttrain_verifiers.sandbox.limits import Ended, Limits, SandboxUnavailableError
from posttrain_verifiers.sandbox.program import Ends, Program
from posttrain_verifiers.sandbox.session import Calls, Session
from posttrain_verifiers.sandbox.start import described, readable, start

LANGUAGES = ("python",)
MOST_IDLE = 4
"""Cells that are kept for later programs."""
_Shape = tuple[int, int, int]
"""What a cell is made for: memory, processes and disk of its limits."""


class Sandbox:
    """Runs programs that may be hostile. Raises SandboxUnavailableError where it cannot; it never runs one without.

    A program is a process in user, mount, pid, ipc, uts and network namespaces, without capabilities, behind a list of
    allowed system calls, with a root of nothing but Python's library and a tmpfs. Its environment is empty. It sees no
    other process, and the first process of its pid namespace, which is ours, ends it whole. These namespaces are its
    own, but for programs that ran there before it and did nothing but compute: one that made a file, a process or a
    thread takes them with it.

    Root needs nothing else: programs run as nobody (65534). An ordinary user needs a kernel that lets it make user
    namespaces and mount in them: Debian's and Fedora's do, Ubuntu's since 23.10 needs the sysctl that the error
    names. A Docker container with the default profiles allows neither unshare nor mount, so it is unavailable there:
    start it with `--security-opt seccomp=unconfined --security-opt apparmor=unconfined`, or with a profile that
    allows these calls.

    It may be used by several threads, with several programs in flight. `language`: only python is there.
    """

    def __init__(self, language: str = "python", limits: Limits = Limits()) -> None:
        if language not in LANGUAGES:
            raise SandboxUnavailableError(f"language {language!r} is not there; use {', '.join(LANGUAGES)}")
        self.language, self.limits = language, limits
        self._lock = threading.Lock()
        self._closed = False
        self._owner = os.getpid()
        self._idle: list[tuple[_Shape, Cell]] = []
        self._control, self._process = start()

    def run(self, source: str, stdin: str = "", limits: Limits | None = None) -> Ended:
        """How a whole program ended that was given this stdin, as `__main__`, and what it wrote.

        The verdict is the caller's: `code` is what the program wants it to be.
        """
        request = marshal.dumps(("", "run", source))
        program = self._program(limits or self.limits, request, 0, stdin)
        try:
            return program.wait()
        finally:
            program.end("killed")

    def open(self, source: str, limits: Limits | None = None, calls: Calls = Calls()) -> Session:
        """The program, loaded as a module that is not `__main__`, and asked for these calls at once.

        Raises ProgramError where its top level raises, ProgramEndedError where it does not come back.
        """
        return Session(functools.partial(self._program, limits or self.limits), source, calls)

    def close(self) -> None:
        """End it, and with it every program that still runs."""
        with self._lock:
            self._closed = True
            self._stop()

    def let_go(self) -> None:
        """End the cells that are kept for later programs."""
        with self._lock:
            while self._idle:
                self._idle.pop()[1].kill()

    def _stop(self) -> None:
        # Its first process goes when it hears nothing more, and the guard after the last of them.
        with contextlib.suppress(OSError):
            self._control.shutdown(socket.SHUT_RDWR)
        self._control.close()
        while self._idle:
            self._idle.pop()[1].kill()
        try:
            self._process.wait(START_LIMIT)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        # A fork of the owner holds a copy of this, and must leave the owner's alone.
        if hasattr(self, "_process") and not self._closed and self._owner == os.getpid():
            self.close()

    def _program(self, limits: Limits, request: bytes, answers: int, stdin: str | None = None) -> Program:
        """An isolated process with a first request, which is due so many answers."""
        if self._closed:
            raise ValueError("the sandbox is closed")
        channel, theirs = socket.socketpair()
        out, err = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
        given = [theirs.fileno(), out[1], err[1]]
        try:
            # Before there is anybody to wait for it.
            left = memoryview(frames.framed(request))
            left = left[channel.send(left[: 1 << 16], socket.MSG_DONTWAIT) :]
            if stdin is not None:
                given.append(readable(stdin.encode("utf-8", "surrogatepass")))
            cell = self._started(limits, given)
        except BaseException:
            channel.close()
            os.close(out[0])
            os.close(err[0])
            raise
        finally:
            theirs.close()
            for descriptor in given[1:]:
                os.close(descriptor)
        return Program(Ends(channel, out[0], err[0], cell), limits, left, answers)

    def _started(self, limits: Limits, descriptors: list[int]) -> Cell:
        """The cell in which a process with these descriptors now is."""
        shape = limits.memory, limits.processes, limits.disk
        while True:
            with self._lock:
                found = next((held for held in self._idle if held[0] == shape), None)
                if found is not None:
                    self._idle.remove(found)
            cell = self._new_cell(shape) if found is None else found[1]
            try:
                cell.start(limits.seconds, descriptors)
            except OSError:
                cell.kill()
                if found is None:
                    raise
                continue
            return cell

    def _new_cell(self, shape: _Shape) -> Cell:
        """A warm process that has gone is started again, once."""
        used = self._control
        try:
            return self._fork(shape)
        except (EOFError, ConnectionError):
            with self._lock:
                if self._control is used:
                    self._process.kill()
                    self._stop()
                    self._control, self._process = start()
            return self._fork(shape)

    def _fork(self, shape: _Shape) -> Cell:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with self._lock, theirs:
                request = json.dumps(dict(zip(("memory", "processes", "disk"), shape, strict=True))).encode()
                socket.send_fds(self._control, [request], [theirs.fileno()])
                reply, descriptors, _, _ = socket.recv_fds(self._control, 1 << 16, 1)
            if not reply:
                raise EOFError
            if not descriptors:
                raise SandboxUnavailableError(described(json.loads(reply)))
        except BaseException:
            ours.close()
            raise
        cell = Cell(ours, descriptors[0], lambda cell: self._keep(shape, cell))
        # Until it says that it is isolated it holds no program.
        words = cell.words() if cell.speaks_within(START_LIMIT) else "broken no answer"
        if words != "ready":
            cell.kill()
            reason = words.removeprefix("broken ") or "its first process died"
            raise SandboxUnavailableError(f"a program could not be isolated: {reason}; nothing was run")
        return cell

    def _keep(self, shape: _Shape, cell: Cell) -> bool:
        with self._lock:
            kept = not self._closed and len(self._idle) < MOST_IDLE
            if kept:
                self._idle.append((shape, cell))
        return kept
