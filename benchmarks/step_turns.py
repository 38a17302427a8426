"""Two sides in turn: A B A B, as many rounds as there is time for."""

from __future__ import annotations

import contextlib
import multiprocessing
import sys
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.step_cases import Job
from benchmarks.step_sides import serve
from benchmarks.step_table import SIDES, Round

REST = 0.3
"""Seconds between two turns, in which the threads of the side that waits stop spinning."""


def planned(first: float, left: float, warmup: int, steps: int) -> tuple[int, int]:
    """Further rounds to warm up and to measure, where one took `first` seconds and `left` remain. The first round warms
    up where another fits, and is the measurement (no round to come) where none does.
    """
    able = int(left // first)
    more = max(0, min(warmup - 1, able - steps))
    return more, max(0, min(steps, able - more))


class Side:
    """A side's process, seen from here."""

    def __init__(self, name: str, job: Job) -> None:
        context = multiprocessing.get_context("spawn")
        self.name, (self.pipe, theirs) = name, context.Pipe()
        self.process = context.Process(target=serve, args=(name, job, theirs))
        self.process.start()
        theirs.close()

    def told(self, what: str) -> dict[str, float]:
        self.pipe.send(what)
        return self.answer()

    def answer(self) -> dict[str, float]:
        try:
            found: dict[str, Any] = self.pipe.recv()
        except EOFError:
            found = {"error": "its process is gone"}
        if "error" in found:
            raise SystemExit(f"{self.name}: {found['error']}")
        return found

    def step(self) -> dict[str, float]:
        time.sleep(REST)
        found = self.told("step")
        found["rest"] = found["seconds"] - found["generate"] - found["learn"] - found["publish"]
        return found

    def end(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            self.pipe.send("end")
        self.process.join(60)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


@contextlib.contextmanager
def both(jobs: dict[str, Job]) -> Iterator[dict[str, Side]]:
    """The two sides, ready for their first step, and the end of their processes."""
    sides: dict[str, Side] = {}
    try:
        for name in SIDES:
            sides[name] = Side(name, jobs[name])
        for side in sides.values():
            side.answer()
        yield sides
    except BaseException:
        # In the middle of a step it would not be heard.
        for side in sides.values():
            side.process.kill()
        raise
    finally:
        for side in sides.values():
            side.end()


def compare(jobs: dict[str, Job], share: float, warmup: int, steps: int) -> tuple[list[Round], list[Round]]:
    """Rounds that warmed up, and rounds that count."""
    started = time.perf_counter()
    with both(jobs) as sides:

        def turn() -> Round:
            found = {name: sides[name].step() for name in SIDES}
            said = ", ".join(f"{name} {of['seconds']:.1f} s" for name, of in found.items())
            print(f"  a round: {said}", file=sys.stderr, flush=True)
            return found

        began = time.perf_counter()
        rounds = [turn()]
        now = time.perf_counter()
        more, counted = planned(now - began, share - (now - started), warmup, steps)
        rounds += [turn() for _ in range(more + counted)]
    return (rounds[: 1 + more], rounds[1 + more :]) if counted else ([], rounds)
