"""Ranks of one machine: where they meet, what is shown of those that fail, and that none is left behind."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from torch.distributed import TCPStore

from posttrain.build.launch import LINES, QUIET, _tail, kept_port, run_ranks
from posttrain.errors import PosttrainError
from tests.runs import ROOT


def test_the_port_is_kept_for_the_one_that_listens_there() -> None:
    with kept_port() as port:
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind(("127.0.0.1", port))
        store = TCPStore("127.0.0.1", port, 1, is_master=True)
        store.set("asked", "answered")
        assert store.get("asked") == b"answered"


def test_a_port_that_nobody_keeps_can_be_anybodys() -> None:
    with kept_port() as port:
        pass
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))


def test_ranks_that_wait_for_ever_are_shown_with_all_of_their_stacks(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(PosttrainError) as caught:
        # More frames than the end of a log that is shown of others.
        run_ranks(["4", "40"], 2, module="tests.hung")
    assert "Timeout (0:00:04)!" in capfd.readouterr().err
    said = str(caught.value)
    for words in ("what rank 1 said", "in waiting_for_a_message", "in main"):
        assert words in said


def test_no_rank_outlives_what_started_it() -> None:
    code = "from posttrain.build.launch import run_ranks; run_ranks(['600'], 2, module='tests.hung')"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT) as launcher:
        assert launcher.stdout is not None
        assert launcher.stdout.readline() == "connected\n"
        ranks = psutil.Process(launcher.pid).children()
        assert len(ranks) == 2
        launcher.kill()
        _, left = psutil.wait_procs(ranks, timeout=20.0)
        assert left == []


def test_a_long_error_is_shown_from_its_beginning_to_its_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("noise\n" * 50 + "Traceback (most recent call last)\n" + "  frame\n" * 400 + "ValueError: here\n")
    told = _tail(log).splitlines()
    assert told[0].startswith("Traceback")
    assert told[-1] == "ValueError: here"
    assert len(told) == LINES + 1
    log.write_text("word\n" * 100)
    assert len(_tail(log).splitlines()) == QUIET
