"""The owner's end of the cells, in which programs run: they are kept for the next program, or killed."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
from collections.abc import Callable

START_LIMIT = 60.0
"""Seconds a cell may take to be there, or to be gone."""


class Cell:
    """A place for one program at a time. `control` says how that program ended; killing `process`, a pidfd of the
    first process of a pid namespace, ends all of its processes.
    """

    def __init__(self, control: socket.socket, process: int, keep: Callable[[Cell], bool]) -> None:
        self.control, self.process = control, process
        self.alive = True
        self._keep = keep

    def start(self, seconds: float, descriptors: list[int]) -> None:
        """Have it fork a process for a program. Raises OSError where it has died."""
        socket.send_fds(self.control, [str(int(seconds) * 2 + 2).encode()], descriptors)

    def words(self) -> str:
        """What it says next; nothing where it has died."""
        try:
            return self.control.recv(2000).decode(errors="replace")
        except OSError:
            return ""

    def speaks_within(self, seconds: float) -> bool:
        return _is_ready(self.control.fileno(), seconds)

    def kill(self) -> None:
        """End all of its processes, for certain."""
        if self.alive:
            self.alive = False
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.process, signal.SIGKILL)
            _is_ready(self.process, START_LIMIT)
            self.control.close()
            os.close(self.process)

    def give_back(self) -> None:
        """The program that it held is gone: it may hold another, or goes too."""
        if self.alive and not self._keep(self):
            self.kill()


def _is_ready(descriptor: int, seconds: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(seconds * 1000))
