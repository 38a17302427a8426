"""Several processes of one run on this machine: started together, ended together, and the first to fail named.

Across machines torchrun or accelerate launch do this; each process finds out from its environment what it is.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from posttrain.errors import PosttrainError
from posttrain.world import LAUNCHER, PHASE_FILE

GRACE = 20.0
"""Seconds that the others have to end after one has failed, and all after a signal beside what a step takes."""
LINES = 200
"""Of what a failed rank said last, how much is shown at most: a stack has the frames of the command line in it too."""
LAST_WORDS = ("Timeout (", "Traceback (most recent call last)", "Fatal Python error")
"""How a line begins from which on a rank says where it stood."""
QUIET = 25
"""How much is shown of a rank that said nothing of the kind."""


@dataclass
class Rank:
    """One process, where it writes what it says, and the phase it was last in."""

    number: int
    process: subprocess.Popen[bytes]
    log: Path
    phase: Path

    def failure(self) -> str:
        code = self.process.returncode
        ended = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        phase = self.phase.read_text() if self.phase.is_file() else "starting"
        return f"rank {self.number} {ended} while {phase}"


def run_ranks(arguments: Sequence[str], count: int, module: str = "posttrain") -> int:
    """Run `python -m MODULE ARGUMENTS` as `count` ranks to their end. The first one's output passes through; of the
    others it is kept, and shown where one fails.

    Returns the exit code of ranks that ended alike. Raises PosttrainError naming the rank that failed first, what it
    was doing, and what it said.
    """
    with tempfile.TemporaryDirectory(prefix="posttrain-ranks-") as folder, _told() as told, kept_port() as port:
        started = [_start([module, *arguments], number, count, Path(folder), port) for number in range(count)]
        try:
            first = _first_failure(started, told)
        finally:
            _end(started)
        if first is None:
            return 0
        if told and first.process.returncode == 128 + signal.SIGTERM:
            return first.process.returncode
        raise PosttrainError(
            f"{first.failure()}; the other {count - 1} were ended. The same command goes on from the newest checkpoint."
            + "".join(f"\n--- the end of what rank {r.number} said:\n{_tail(r.log)}" for r in _silent(started, first))
        )


def _start(command: Sequence[str], number: int, count: int, folder: Path, port: int) -> Rank:
    log, phase = folder / f"rank-{number}.log", folder / f"rank-{number}.phase"
    environment = {
        **os.environ,
        "RANK": str(number),
        "LOCAL_RANK": str(number),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        PHASE_FILE: str(phase),
        LAUNCHER: str(os.getpid()),
    }
    # The ranks share the cores.
    environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    with log.open("wb") as stream:
        output = None if number == 0 else stream
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT if output else None,
        )
    return Rank(number, process, log, phase)


@contextmanager
def kept_port() -> Iterator[int]:
    """A free port that only a process which asks for it by number can have, until the block ends.

    The ranks listen seconds after the number was chosen. A socket that is bound and does not listen keeps the system
    from giving the number to anybody's outgoing connection, and lets another one that also reuses addresses listen.
    """
    with socket.socket() as keeper:
        keeper.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        keeper.bind(("", 0))
        port: int = keeper.getsockname()[1]
        yield port


def _first_failure(ranks: Sequence[Rank], told: Sequence[int]) -> Rank | None:
    """Wait for all to end, or for the first that fails. A signal is passed on to every rank once."""
    passed_on = False
    while True:
        if told and not passed_on:
            passed_on = True
            for rank in ranks:
                with suppress(ProcessLookupError):
                    rank.process.send_signal(signal.SIGTERM)
        codes = [rank.process.poll() for rank in ranks]
        failed = [rank for rank, code in zip(ranks, codes, strict=True) if code]
        if failed:
            # One that was killed is the cause; those that lost their peer only say so.
            time.sleep(0.2)
            again = [rank for rank in ranks if rank.process.poll()]
            return next((rank for rank in again if (rank.process.returncode or 0) < 0), failed[0])
        if all(code == 0 for code in codes):
            return None
        time.sleep(0.05)


def _end(ranks: Sequence[Rank]) -> None:
    until = time.monotonic() + GRACE
    for kill in (False, True):
        for rank in ranks:
            if rank.process.poll() is None:
                if not kill:
                    with suppress(subprocess.TimeoutExpired):
                        rank.process.wait(0.5)
                    rank.process.terminate()
                else:
                    with suppress(subprocess.TimeoutExpired):
                        rank.process.wait(max(0.0, until - time.monotonic()))
                    rank.process.kill()
    for rank in ranks:
        rank.process.wait()


def _silent(ranks: Sequence[Rank], first: Rank) -> list[Rank]:
    """Whose words are shown: the one that failed, then those that said where they stood, unless all they say is that
    they lost one that was killed; the first rank has spoken already.
    """
    marks = LAST_WORDS[:1] if (first.process.returncode or 0) < 0 else LAST_WORDS
    others = [r for r in ranks if r is not first and _tail(r.log).startswith(marks)]
    return [r for r in (first, *others) if r.number and r.log.stat().st_size]


def _tail(log: Path) -> str:
    """What a rank said from where its error begins; of a long one, beginning and end."""
    lines = log.read_text(errors="replace").splitlines()
    begin = max((i for i, line in enumerate(lines) if line.startswith(LAST_WORDS)), default=len(lines) - QUIET)
    told = lines[max(begin, 0) :]
    if len(told) > LINES:
        half = LINES // 2
        told = [*told[:half], f"... {len(told) - 2 * half} lines ...", *told[-half:]]
    return "\n".join(told)


@contextmanager
def _told() -> Iterator[list[int]]:
    """Signals that came, to be passed on."""
    came: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: came.append(number))
    try:
        yield came
    finally:
        signal.signal(signal.SIGTERM, before)
