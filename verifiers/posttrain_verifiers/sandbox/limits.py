"""What a program may use, how it ended, and the errors of running one."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Literal

from posttrain.errors import PosttrainError

How = Literal["exited", "timeout", "memory", "output", "killed"]


@dataclass(frozen=True, slots=True)
class Limits:
    """What one program may use. A program that uses more is ended with its whole process tree."""

    seconds: float = 10.0
    """Wall clock of the program itself, loading included; a session's calls add up, its idle time does not count."""
    memory: int = 512 << 20
    """Bytes: each process may map so many more than an empty one, and all together may hold so many."""
    processes: int = 32
    """Processes and threads at once."""
    disk: int = 16 << 20
    """Bytes of its private tmpfs, which is its working folder, /tmp and /dev/shm."""
    output: int = 1 << 20
    """Bytes kept of stdout and of stderr each; a program that writes more is ended."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, bool) or not 0 < value < math.inf:
                raise ValueError(f"limits.{field.name} must be a number above zero, not {value!r}")


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended.

    `exited`: by itself, with `code`. `timeout`, `memory`, `output`: it went over that limit. `killed`: by a signal,
    whose number is `-code`, or (`code` is None) because it broke the protocol or its session was closed.
    """

    how: How
    code: int | None
    stdout: str
    stderr: str
    seconds: float


class SandboxUnavailableError(PosttrainError):
    """This machine cannot isolate a program. Says which part is missing and the way out; nothing was run."""


class ProgramError(Exception):
    """The program raised while it was loaded or called. `kind` is the exception's type name, `message` its text."""

    def __init__(self, kind: str, message: str) -> None:
        self.kind, self.message = kind, message
        super().__init__(f"{kind}: {message}" if message else kind)


class ProgramEndedError(Exception):
    """The program died, hung or was ended while it was loaded or called."""

    def __init__(self, ended: Ended) -> None:
        self.ended = ended
        code = "" if ended.code is None else f" with code {ended.code}"
        super().__init__(f"the program ended ({ended.how}{code}) after {ended.seconds:.2f} s")
