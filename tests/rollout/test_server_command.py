"""`python -m posttrain.rollout.server MODEL`: a server for trainers elsewhere, closed to everyone without its token."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import threading
import time
from pathlib import Path

import psutil
import pytest

from posttrain.errors import ModelError
from posttrain.rollout.server import ServerOptions
from posttrain.rollout.server.__main__ import main, options, serve
from tests.rollout.servers import ASKED, answers, by_address, dead_port, expected, requests, said_weights, weights
from tests.tiny import tiny_folder

TOKEN = "a-token-of-nobodys"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


def test_a_trainer_elsewhere_publishes_and_draws_through_it_until_the_engine_ends(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SMALL_ENGINE", json.dumps({"weights": said_weights(folder)}))
    port = dead_port()
    asked = options([str(folder), "--host=0.0.0.0", f"--port={port}", "--device=cpu", "--max-length=64"])
    ended: list[BaseException] = []

    def run() -> None:
        try:
            asyncio.run(serve(asked, TOKEN, ServerOptions(module="tests.rollout.small_engine")))
        except ModelError as error:
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    until = time.monotonic() + 60
    while "ready at" not in capsys.readouterr().err:
        assert time.monotonic() < until
        time.sleep(0.1)
    with by_address(folder, f"http://0.0.0.0:{port}", token=TOKEN, reach_timeout=20.0) as sampler:
        sampler.load(weights(folder, 4), 4)
        assert answers(sampler.generate(requests(9), ASKED)) == expected(folder, requests(9), 4)
    for child in psutil.Process().children(recursive=True):
        if "tests.rollout.small_engine" in child.cmdline():
            os.kill(child.pid, signal.SIGKILL)
    thread.join(20)
    assert "was killed by SIGKILL" in str(ended[0])


def test_a_weak_token_and_a_port_that_is_taken_are_told_before_anything_is_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("POSTTRAIN_TOKEN", "short")
    assert main([str(folder), "--host=0.0.0.0", "--max-length=64"]) == 1
    assert "0.0.0.0 has a token of 5 characters and would be open to other machines" in capsys.readouterr().err
    monkeypatch.delenv("POSTTRAIN_TOKEN")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main([str(folder), f"--port={port}", "--max-length=64"]) == 1
    said = capsys.readouterr()
    assert f"127.0.0.1:{port} cannot be bound" in said.err
    assert said.out.startswith("POSTTRAIN_TOKEN=")
    assert len(said.out.strip()) >= len("POSTTRAIN_TOKEN=") + 32
