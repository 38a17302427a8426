"""The owner's end of one running program: its descriptors, its clock, and its death."""

from __future__ import annotations

import contextlib
import math
import os
import select
import signal
import socket
import time
from dataclasses import dataclass

from posttrain_verifiers.sandbox import frames
from posttrain_verifiers.sandbox.limits import Ended, How, Limits, SandboxUnavailableError

START_LIMIT = 60.0
"""Seconds a program's process may take to be there; never counted against the program."""
DEAF = 1.0
"""Seconds until a program that closed its channel is ended, where it does not end by itself."""
_READABLE = select.POLLIN | select.POLLHUP | select.POLLERR


@dataclass(slots=True)
class Ends:
    """What a program is heard and held by."""

    channel: socket.socket
    status: socket.socket
    stdout: int
    stderr: int
    process: int
    """A pidfd of the first process of its pid namespace: with that, all of them go."""


class Program:
    """One program. `exchange` sends a request and waits for the answer; `wait` for the end; `end` makes one."""

    def __init__(self, ends: Ends, limits: Limits) -> None:
        self.ended: Ended | None = None
        self._ends, self._limits = ends, limits
        self._seconds = 0.0
        self._texts = {ends.stdout: bytearray(), ends.stderr: bytearray()}
        self._words = ""
        self._answer = bytearray()
        self._poll = select.poll()
        for descriptor in (ends.stdout, ends.stderr, ends.status.fileno(), ends.channel.fileno()):
            os.set_blocking(descriptor, False)
            self._poll.register(descriptor, select.POLLIN)
        self._sending = memoryview(b"")
        self._is_asked = False
        self._deaf_at = math.inf
        try:
            self._get_ready()
        except BaseException:
            self.end("killed")
            raise

    def exchange(self, request: bytes) -> bytes | Ended:
        """The answer to a request, or how the program ended instead."""
        if self.ended is None and self._has_answered():
            return self.end("killed")
        if self.ended is not None:
            return self.ended
        self._answer.clear()
        self._sending = memoryview(frames.framed(request))
        return self._go(for_answer=True) or self._finish()

    def wait(self, request: bytes) -> Ended:
        """How the program ended after this one request, which it does not answer."""
        self._sending = memoryview(frames.framed(request))
        self._go(for_answer=False)
        return self._finish()

    def end(self, how: How) -> Ended:
        """Kill every process of it; nothing of it is left when this returns."""
        if self.ended is None:
            self._kill()
            self._drain()
            self.ended = self._summary(how, None)
            self._close()
        return self.ended

    def _get_ready(self) -> None:
        """Wait for the process to say that it is isolated: until then it holds no program."""
        poll = select.poll()
        poll.register(self._ends.status, select.POLLIN)
        words = self._ends.status.recv(2000) if poll.poll(START_LIMIT * 1000) else b"broken no answer"
        if words != b"ready":
            reason = words.decode(errors="replace").removeprefix("broken ") or "its first process died"
            raise SandboxUnavailableError(f"a program could not be isolated: {reason}; nothing was run")

    def _has_answered(self) -> bool:
        """Whether there are words on the channel that nothing was asked for."""
        try:
            return bool(self._ends.channel.recv(1, socket.MSG_PEEK))
        except OSError:
            return False

    def _go(self, for_answer: bool) -> bytes | None:
        """Attend to the program until it has answered or ended or gone over a limit."""
        started = time.monotonic()
        before = self._seconds
        self._poll.register(self._ends.channel.fileno(), select.POLLIN | select.POLLOUT)
        self._is_asked = for_answer
        try:
            while True:
                self._seconds = before + time.monotonic() - started
                left = min(self._limits.seconds - self._seconds, self._deaf_at + DEAF - time.monotonic())
                if left <= 0:
                    self.end("timeout" if self._seconds >= self._limits.seconds else "killed")
                    return None
                for descriptor, event in self._poll.poll(max(1, left * 1000)):
                    self._attend(descriptor, event)
                    if self.ended is not None:
                        return None
                answer = self._whole_answer() if for_answer else None
                if answer is not None or self._words:
                    return answer
        finally:
            self._seconds = before + time.monotonic() - started

    def _attend(self, descriptor: int, event: int) -> None:
        if descriptor in self._texts:
            if event & _READABLE and not self._read_text(descriptor):
                self._poll.unregister(descriptor)
        elif descriptor == self._ends.status.fileno():
            self._words = self._ends.status.recv(2000).decode(errors="replace") or "gone"
            self._poll.unregister(descriptor)
        else:
            self._attend_channel(event)

    def _attend_channel(self, event: int) -> None:
        channel = self._ends.channel
        try:
            if event & select.POLLOUT and self._sending:
                self._sending = self._sending[channel.send(self._sending[: 1 << 16]) :]
            if not self._sending:
                self._poll.modify(channel.fileno(), select.POLLIN)
            if event & _READABLE:
                part = channel.recv(1 << 20)
                self._answer += part
                if not part:
                    self._hang_up()
        except BlockingIOError:
            return
        except OSError:
            self._hang_up()

    def _hang_up(self) -> None:
        """The program has closed its channel, for that is what a dead one does; one that runs whole needs none."""
        self._sending = memoryview(b"")
        self._poll.unregister(self._ends.channel.fileno())
        if self._is_asked:
            self._deaf_at = time.monotonic()

    def _whole_answer(self) -> bytes | None:
        try:
            answer = frames.unframed(self._answer)
        except ValueError:
            self.end("killed")
            return None
        if answer is not None and len(self._answer) > 4 + len(answer):
            self.end("killed")
            return None
        return answer

    def _read_text(self, descriptor: int) -> bool:
        """Take what is there of stdout or stderr; False once no process holds the other end."""
        try:
            part = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            return True
        text = self._texts[descriptor]
        text += part[: self._limits.output + 1 - len(text)]
        if len(text) > self._limits.output:
            self.end("output")
        return bool(part)

    def _finish(self) -> Ended:
        """How a program ended that went by itself, or was ended by its supervisor."""
        if self.ended is None:
            words = self._words.partition(" ")
            self._kill()
            self._drain()
            code = int(words[2]) if words[0] == "exited" else None
            how: How = "memory" if words[0] == "memory" else "exited" if code is not None and code >= 0 else "killed"
            over = any(len(text) > self._limits.output for text in self._texts.values())
            self.ended = self._summary("output" if over else how, code)
            self._close()
        return self.ended

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._ends.process, signal.SIGKILL)
        gone = select.poll()
        gone.register(self._ends.process, select.POLLIN)
        gone.poll(START_LIMIT * 1000)

    def _drain(self) -> None:
        for descriptor, text in self._texts.items():
            while len(text) <= self._limits.output:
                try:
                    part = os.read(descriptor, 1 << 16)
                except BlockingIOError:
                    break
                if not part:
                    break
                text += part[: self._limits.output + 1 - len(text)]

    def _summary(self, how: How, code: int | None) -> Ended:
        texts = [bytes(t[: self._limits.output]).decode(errors="replace") for t in self._texts.values()]
        return Ended(how, code, texts[0], texts[1], self._seconds)

    def _close(self) -> None:
        for held in (self._ends.channel, self._ends.status):
            held.close()
        for descriptor in (self._ends.stdout, self._ends.stderr, self._ends.process):
            os.close(descriptor)
