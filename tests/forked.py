"""`python -m MODULE WORDS` in a process of its own that need not import torch: it is forked from a server that did.

The server has imported, and has done nothing else, so that no program meets what another or the tests have done. Its
seed of hashes is the server's, though: what must not depend on one is run by `tests.runs.run`, in a new interpreter.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SERVER: Any = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [
        *("posttrain.cli", "posttrain.build.run", "transformers.models.llama.modeling_llama"),
        *("matplotlib.figure", "matplotlib.layout_engine", "matplotlib.backends.backend_agg"),
    ]
)


def program(module: str, words: list[str], environment: Mapping[str, str], files: tuple[str, str]) -> None:
    """What runs in the new process."""
    for number, file in zip((1, 2), files, strict=True):
        opened = os.open(file, os.O_WRONLY)
        os.dup2(opened, number)
        os.close(opened)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    # A tracker of its own tidies up after it where it is killed, and complains in its own words.
    tracker: Any = resource_tracker._resource_tracker
    tracker._fd = tracker._pid = None
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


class Forked:
    """A program that has begun; as `subprocess.Popen` of one that writes into files."""

    def __init__(self, module: str, *words: str | Path, environment: Mapping[str, str] | None = None) -> None:
        self.files = tuple(tempfile.NamedTemporaryFile(mode="r", encoding="utf-8") for _ in range(2))  # noqa: SIM115
        names = tuple(file.name for file in self.files)
        arguments = (module, [str(word) for word in words], {**os.environ, **(environment or {})}, names)
        self.process = SERVER.Process(target=program, args=arguments)
        self.process.start()
        self.pid: int = self.process.pid

    def poll(self) -> int | None:
        found: int | None = self.process.exitcode
        return found

    def wait(self, seconds: float | None = None) -> int:
        """The exit code; a signal's number, negative. subprocess.TimeoutExpired after `seconds`."""
        self.process.join(seconds)
        code = self.poll()
        if code is None:
            raise subprocess.TimeoutExpired(str(self.process.name), seconds or 0.0)
        return code

    def kill(self) -> None:
        self.process.kill()
        self.process.join()

    def said(self) -> tuple[str, str]:
        """What it has printed, and what it has complained of."""
        out, complaints = ((file.seek(0), file.read())[1] for file in self.files)
        return out, complaints


def run(*words: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    started = Forked("posttrain", *words)
    done = subprocess.CompletedProcess([str(word) for word in words], started.wait(), *started.said())
    if check and done.returncode:
        raise AssertionError(f"{words} ended with {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return done
