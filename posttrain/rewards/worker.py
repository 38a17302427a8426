"""A process that grades and can be killed: what runs inside it, and its handle outside."""

from __future__ import annotations

import asyncio
import inspect
import math
import multiprocessing
import os
import pickle
import resource
import signal
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pebble import ProcessExpired, ProcessPool

from posttrain.rewards.pairwise import WinRates
from posttrain.rewards.verifier import Named, load_verifier, signature_of
from posttrain.types import Status, Verdict

if TYPE_CHECKING:
    from posttrain.recipe import Reward

START_LIMIT = 120.0
"""Seconds a worker may take to import its verifiers; never counted against a verdict."""
MEMORY_LIMIT = 4 << 30
"""Bytes of data that a call may add to what its worker holds: a power tower then is a MemoryError of its verifier, not
of the machine. A verifier says otherwise with an attribute `memory_limit`.
"""


@dataclass(frozen=True, slots=True)
class Part:
    """One grader's view of one roll-out. `skipped`: not applicable, left out of the sum."""

    score: float | None
    status: Status | Literal["skipped"] = "ok"
    reason: str = ""
    parts: Mapping[str, float | None] = field(default_factory=dict)
    steps: tuple[tuple[int, float], ...] = ()
    answer: str | None = None
    offset: float | None = None
    lasting: bool = True
    seconds: float | None = field(default=None, compare=False)
    """How long the verifier took, its share of a group's time; None where that is not known."""


_loaded: list[Callable[..., Any]] = []
_broken: list[str] = []
_limits: list[int | None] = []
"""Of each verifier: bytes of data while it runs."""


def _start_worker(rewards: Sequence[Named]) -> None:
    # Pebble's handler for SIGTERM waits for Python code to run: a power tower in C would outlive its timeout by 3 s.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    asked: list[int | None] = []
    i = 0
    try:
        for i, reward in enumerate(rewards):
            _limit_data(_held_data() + MEMORY_LIMIT)
            verifier = load_verifier(reward, f"rewards[{i}]")
            pair = signature_of(reward, f"rewards[{i}]").kind == "pair"
            _loaded.append(WinRates(verifier) if pair else verifier)
            asked.append(getattr(verifier, "memory_limit", MEMORY_LIMIT))
            _limit_data(None if asked[-1] is None else _held_data() + asked[-1])
            getattr(verifier, "prepare", lambda: None)()
    except BaseException as error:
        _broken.append(f"rewards[{i}]: {type(error).__name__}: {error}")
    # A model beside it leaves a verifier as much room as it would have alone.
    held = _held_data()
    _limits.extend(None if limit is None else held + limit for limit in asked)


def _limit_data(limit: int | None) -> None:
    """Let this process hold so many bytes of data; None for as many as it was started with."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    soft = hard if limit is None else limit if hard < 0 else min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _held_data() -> int:
    """Bytes of data this process holds; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    except (OSError, IndexError, ValueError):
        return 0


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def probe() -> tuple[int, list[str]]:
    return os.getpid(), _broken


def ignore(*_: Any, **__: Any) -> None:
    """Stands in for TRL's logging hooks."""


def call(payload: bytes, count: int | None, limit: float) -> list[Part] | str:
    """A verifier's values, one per roll-out, or why there are none. `count` is None for an item verifier."""
    # The kernel ends an orphan that holds the interpreter lock, where no thread of ours could.
    signal.setitimer(signal.ITIMER_REAL, limit + 5)
    try:
        index, arguments, columns = pickle.loads(payload)
        _limit_data(_limits[index])
        started = time.perf_counter()
        value = _loaded[index](*arguments, **columns)
        if inspect.iscoroutine(value):
            value = asyncio.run(value)
        values = [value] if count is None else list(value)
        seconds = (time.perf_counter() - started) / max(len(values), 1)
        if count is not None and len(values) != count:
            raise ValueError(f"returned {len(values)} rewards for {count} completions")
        skips = count is not None
        return [Part(None, "skipped") if v is None and skips else replace(_part(v), seconds=seconds) for v in values]
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return f"{type(error).__name__}: {error!s:.300} ({Path(last.filename).name}:{last.lineno})"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _part(value: Any) -> Part:
    if isinstance(value, Verdict):
        parts = dict(value.parts)
        found = Part(value.score, value.status, value.reason, parts, value.steps)
        return replace(found, answer=value.answer, offset=value.offset, lasting=value.lasting)
    if not hasattr(value, "__float__"):
        raise TypeError(f"returned {value!r:.80} where a number or a Verdict is due")
    if not math.isfinite(float(value)):
        raise ValueError(f"returned {float(value)}")
    return Part(float(value))


class Worker:
    """One process that grades. A pool of its own for each, so that whose crash it was is never a guess."""

    def __init__(self, rewards: Sequence[Reward], start_limit: float = START_LIMIT) -> None:
        """`start_limit`: seconds it may take to import its verifiers."""
        self._rewards = [Named.of(reward) for reward in rewards]
        self._start_limit = start_limit
        self._closed = False
        self._pending: Any = None
        self._pool = self._new_pool()

    def run(self, function: Callable[..., Any], *args: Any, limit: float) -> Any:
        """The function's value, its clock starting once the process is ready.

        Raises TimeoutError once the process is killed, ChildProcessError when it died by itself; the next call finds a
        new one.
        """
        if self._closed:
            raise CancelledError
        if not self._pool.active:
            self._stop()
            self._pool = self._new_pool()
            if self._closed:
                # In the meantime; nobody else would end it.
                self._stop()
                raise CancelledError
        self._pending = self._pool.schedule(function, args=args, timeout=limit)
        try:
            return self._pending.result(limit + self._start_limit)
        except TimeoutError:
            if not self._pending.done():
                self._stop()
            raise
        except ProcessExpired as error:
            raise ChildProcessError(f"the worker died with exit code {error.exitcode}") from None
        except BrokenProcessPool:
            raise ChildProcessError("the worker died") from None

    def close(self) -> None:
        """End the process, busy or not."""
        self._closed = True
        self._stop()

    def _new_pool(self) -> ProcessPool:
        context: Any = multiprocessing.get_context("spawn")
        return ProcessPool(max_workers=1, initializer=_start_worker, initargs=(self._rewards,), context=context)

    def _stop(self) -> None:
        if self._pending is not None:
            self._pending.cancel()
        self._pool.stop()
        self._pool.join()
