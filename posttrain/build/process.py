"""A command of ours in a process of its own, which does not outlive the one that started it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from posttrain.errors import PosttrainError

GRACE = 10.0
"""Seconds that an interrupted process has to put its things away."""


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code (minus a signal's number), wall-clock seconds, and what it printed if kept."""

    code: int
    seconds: float
    output: str = ""


def posttrain(arguments: Sequence[str], keep_output: bool = False) -> Ended:
    """Run a command of the command line to its end. Its output passes through; `keep_output` takes stdout instead,
    and lets it through only where the command fails.
    """
    started = time.perf_counter()
    command = [sys.executable, "-m", "posttrain", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE if keep_output else None, text=True) as process:
        try:
            output, _ = process.communicate()
        except BaseException as stop:
            if isinstance(stop, KeyboardInterrupt):
                # A terminal interrupts both: the other one is ending by itself.
                with suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE)
            process.terminate()
            raise
    if process.returncode and output:
        sys.stdout.write(output)
        sys.stdout.flush()
    return Ended(process.returncode, time.perf_counter() - started, output or "")


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM ends this process as an exception would, so that what it started ends with it."""
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """SIGTERM is noted rather than obeyed at once: whether it came. A second one ends the process."""
    came = threading.Event()

    def note(*_: Any) -> None:
        if came.is_set():
            sys.exit(128 + signal.SIGTERM)
        came.set()

    if threading.current_thread() is not threading.main_thread():
        yield came.is_set
        return
    before = signal.signal(signal.SIGTERM, note)
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGTERM, before)


def figures_in(output: str) -> dict[str, Any]:
    """The JSON object that ends a command's output; an engine may have logged before and after it.

    Raises PosttrainError with the end of the output where there is none.
    """
    start = output.rfind("\n{\n") + 1
    try:
        found = json.JSONDecoder().raw_decode(output[start:])[0]
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise PosttrainError(f"evaluate --json printed no figures; it ended with {output[-200:]!r}")
    return found
