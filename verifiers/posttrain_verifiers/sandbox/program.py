"""The owner's end of one running program: its descriptors, its clock, and its end."""

from __future__ import annotations

import contextlib
import math
import os
import select
import socket
import time
from dataclasses import dataclass

from posttrain_verifiers.sandbox import frames
from posttrain_verifiers.sandbox.cells import Cell
from posttrain_verifiers.sandbox.limits import Ended, How, Limits, SandboxUnavailableError

DEAF = 1.0
"""Seconds until a program that closed its channel is ended, where it does not end by itself."""
LEAVE = 0.1
"""Seconds that a program has to go by itself where its session is closed; then its cell goes too."""
QUIET = 0.05
"""Seconds in which a program that will go after its last answer is not listened to: they are all there when it went."""
_READABLE = select.POLLIN | select.POLLHUP | select.POLLERR


@dataclass(slots=True)
class Ends:
    """What a program is heard by, and the cell it runs in."""

    channel: socket.socket
    stdout: int
    stderr: int
    cell: Cell


class Program:
    """One program. `ask` sends a request, `answer` waits for the next answer, `wait` for the end; `end` makes one."""

    def __init__(self, ends: Ends, limits: Limits, sending: memoryview, answers: int) -> None:
        """`sending`: what is left to send of its first request, which is due so many answers."""
        self.ended: Ended | None = None
        self._ends, self._limits = ends, limits
        self._seconds = 0.0
        self._texts = {ends.stdout: bytearray(), ends.stderr: bytearray()}
        self._words = ""
        self._came = bytearray()
        self._due = answers
        self._sending = sending
        self._deaf_at = math.inf
        self._listens = False
        self._poll = select.poll()
        for descriptor in (ends.stdout, ends.stderr, ends.cell.control.fileno()):
            self._poll.register(descriptor, select.POLLIN)

    def ask(self, request: bytes, answers: int = 1) -> Ended | None:
        """Send a request that is due so many answers; how the program ended where it has."""
        if self.ended is None and not self._due and self._has_spoken():
            return self.end("killed")
        if self.ended is None:
            self._due += answers
            self._sending = memoryview(frames.framed(request))
            with contextlib.suppress(OSError):
                self._send()
        return self.ended

    def answer(self, leaves: bool = False) -> bytes | Ended:
        """The next answer, or how the program ended instead. `leaves`: the program goes once it has given all."""
        found = self._next_answer()
        if found is None and self.ended is None and not self._words:
            # What it gave before it was ended counts.
            found = self._go(quiet=leaves) or self._next_answer()
        return found or self._finish()

    def wait(self) -> Ended:
        """How the program ended that answers nothing."""
        self._go(quiet=False)
        return self._finish()

    def end(self, how: How) -> Ended:
        """Kill every process of it; nothing of it is left when this returns."""
        if self.ended is None:
            if how == "killed":
                self._due = 0
            else:
                self._receive()
            self._ends.cell.kill()
            self._close(how, None)
        assert self.ended is not None
        return self.ended

    def close(self) -> None:
        """Let a program that waits for a request go by itself, and end it where it does not."""
        if self.ended is None and not self._words:
            with contextlib.suppress(OSError):
                self._ends.channel.shutdown(socket.SHUT_RDWR)
            if self._ends.cell.speaks_within(LEAVE):
                self._hear()
        if self.ended is None:
            if not self._words.endswith(" clean"):
                self._ends.cell.kill()
            self._close("killed", None)

    def _has_spoken(self) -> bool:
        """Whether there are words on the channel that nothing was asked for."""
        if self._came:
            return True
        try:
            return bool(self._ends.channel.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT))
        except OSError:
            return False

    def _go(self, quiet: bool) -> bytes | None:
        """Attend to the program until it has given an answer that is due, or ended, or gone over a limit."""
        started = time.monotonic()
        before = self._seconds
        if not quiet or self._sending:
            self._listen()
        try:
            while True:
                self._seconds = before + time.monotonic() - started
                left = min(self._limits.seconds - self._seconds, self._deaf_at + DEAF - time.monotonic())
                if left <= 0:
                    self.end("timeout" if self._seconds >= self._limits.seconds else "killed")
                    return None
                if not self._listens:
                    left = min(left, QUIET)
                events = self._poll.poll(max(1, left * 1000))
                if not events and not self._listens:
                    self._listen()
                for descriptor, event in events:
                    self._attend(descriptor, event)
                    if self.ended is not None:
                        return None
                if self._words:
                    self._receive()
                answer = self._next_answer()
                if answer is not None or self._words:
                    return answer
        finally:
            self._seconds = before + time.monotonic() - started

    def _listen(self) -> None:
        self._listens = True
        events = select.POLLIN | select.POLLOUT if self._sending else select.POLLIN
        self._poll.register(self._ends.channel.fileno(), events)

    def _attend(self, descriptor: int, event: int) -> None:
        if descriptor in self._texts:
            if event & _READABLE and not self._read_text(descriptor):
                self._poll.unregister(descriptor)
        elif descriptor == self._ends.cell.control.fileno():
            self._hear()
        else:
            self._attend_channel(event)

    def _hear(self) -> None:
        """Take what the cell says of the program; it says it once, unless it has died."""
        self._words = self._ends.cell.words() or "gone"
        with contextlib.suppress(KeyError):
            self._poll.unregister(self._ends.cell.control.fileno())
        if self._words.startswith("broken"):
            self.end("killed")
            reason = self._words.removeprefix("broken ")
            raise SandboxUnavailableError(f"a program could not be isolated: {reason}; nothing was run")

    def _attend_channel(self, event: int) -> None:
        try:
            if event & select.POLLOUT and self._sending:
                self._send()
            if not self._sending:
                self._poll.modify(self._ends.channel.fileno(), select.POLLIN)
        except OSError:
            self._hang_up()
            return
        if event & _READABLE:
            self._receive()

    def _send(self) -> None:
        try:
            self._sending = self._sending[self._ends.channel.send(self._sending[: 1 << 16], socket.MSG_DONTWAIT) :]
        except BlockingIOError:
            return

    def _receive(self) -> None:
        """Take what came on the channel. More than what is due of answers need not be read, ever."""
        try:
            part = self._ends.channel.recv(1 << 20, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            part = b""
        self._came += part
        if not part:
            self._hang_up()

    def _hang_up(self) -> None:
        """The program has closed its channel, for that is what a dead one does; one that runs whole needs none."""
        self._sending = memoryview(b"")
        if self._listens:
            with contextlib.suppress(KeyError):
                self._poll.unregister(self._ends.channel.fileno())
        if self._due:
            self._deaf_at = time.monotonic()

    def _next_answer(self) -> bytes | None:
        """The next whole answer of what came. Words that nothing was asked for end the program."""
        if not self._due:
            return None
        try:
            answer = frames.unframed(self._came)
        except ValueError:
            self.end("killed")
            return None
        if answer is None:
            return None
        del self._came[: 4 + len(answer)]
        self._due -= 1
        if self._came and not self._due:
            self.end("killed")
            return None
        return answer

    def _read_text(self, descriptor: int) -> bool:
        """Take what is there of stdout or stderr; False once no process holds the other end."""
        part = os.read(descriptor, 1 << 16)
        text = self._texts[descriptor]
        text += part[: self._limits.output + 1 - len(text)]
        if len(text) > self._limits.output:
            self.end("output")
        return bool(part)

    def _finish(self) -> Ended:
        """How a program ended that went by itself, or was stopped by its cell."""
        if self.ended is None:
            how, _, rest = self._words.partition(" ")
            code = int(rest.partition(" ")[0]) if how == "exited" else None
            if not self._words.endswith(" clean"):
                self._ends.cell.kill()
            self._close("memory" if how == "memory" else "killed" if code is None or code < 0 else "exited", code)
        assert self.ended is not None
        return self.ended

    def _close(self, how: How, code: int | None) -> None:
        """Keep what the dead program wrote, and give its cell back."""
        most = self._limits.output
        for descriptor in self._texts:
            os.set_blocking(descriptor, False)
        for descriptor, text in self._texts.items():
            with contextlib.suppress(BlockingIOError):
                while len(text) <= most and (part := os.read(descriptor, 1 << 16)):
                    text += part[: most + 1 - len(text)]
            os.close(descriptor)
        if how in ("exited", "killed") and code is not None and any(len(t) > most for t in self._texts.values()):
            how = "output"
        texts = [bytes(t[:most]).decode(errors="replace") for t in self._texts.values()]
        self.ended = Ended(how, code, texts[0], texts[1], self._seconds)
        self._ends.channel.close()
        self._ends.cell.give_back()
