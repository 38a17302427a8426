"""Servers started here: killed at random moments no prompt is lost and none answered twice; none outlives its owner."""

from __future__ import annotations

import json
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import psutil
import pytest
from torch import Tensor

from posttrain.errors import ModelError, SyncError
from posttrain.rollout.server import EngineLostError
from posttrain.rollout.server.bucket import MEMORY, PREFIX
from posttrain.rollout.server.launch import Server
from tests.rollout.servers import ASKED, ENGINE, answers, as_processes, expected, kill, requests, some, weights
from tests.tiny import tiny_folder

PACED = {"pace": 0.01}
COUNT = 60
"""Responses: over a second at four at a time."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def wait_until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def test_a_server_killed_at_random_moments_is_started_again_and_the_responses_are_the_same(folder: Path) -> None:
    asked = requests(COUNT)
    with as_processes(folder, PACED, restarts=2) as sampler:
        sampler.republish = lambda version: weights(folder, version)
        sampler.load(weights(folder, 1), 1)
        for seed in range(2):
            timer = threading.Timer(some(seed, 0.1, 0.9), kill, [sampler])
            timer.start()
            assert answers(sampler.generate(asked, ASKED)) == expected(folder, asked, 1)
            timer.join()
        assert sampler.restarts == 2
        assert sampler.take_report().values() == {"engine/lost": 2, "engine/restarts": 2}
        timer = threading.Timer(0.2, kill, [sampler])
        timer.start()
        with pytest.raises(EngineLostError, match=r"(?s)killed by SIGKILL.*restarts: 2 were used"):
            sampler.generate(asked, ASKED)


def test_killed_again_while_it_starts_it_starts_once_more(folder: Path) -> None:
    asked = requests(COUNT)
    with as_processes(folder, {**PACED, "slow": 2.0}, restarts=2) as sampler:
        sampler.republish = lambda version: weights(folder, version)
        sampler.load(weights(folder, 1), 1)
        timers = [threading.Timer(seconds, kill, [sampler]) for seconds in (0.2, 1.2)]
        for timer in timers:
            timer.start()
        assert answers(sampler.generate(asked, ASKED)) == expected(folder, asked, 1)
        assert not any(timer.is_alive() for timer in timers)
        assert sampler.take_report().values() == {"engine/lost": 2, "engine/restarts": 2}


def test_one_that_fails_by_itself_when_it_starts_again_is_not_tried_further(folder: Path) -> None:
    with as_processes(folder, PACED) as sampler:
        sampler.republish = lambda version: weights(folder, version)
        sampler.load(weights(folder, 1), 1)
        os.environ["SMALL_ENGINE"] = json.dumps({"fails": True})
        threading.Timer(0.2, kill, [sampler]).start()
        with pytest.raises(EngineLostError, match=r"(?s)did not start: .*exit status 1.*there is not enough memory"):
            sampler.generate(requests(COUNT), ASKED)
        assert sampler.restarts == 1


def test_without_a_source_what_had_arrived_is_told_and_the_rest_is_drawn_after_a_sync(folder: Path) -> None:
    asked = requests(COUNT)
    with as_processes(folder, PACED) as sampler:
        sampler.load(weights(folder, 1), 1)
        threading.Timer(0.4, kill, [sampler]).start()
        with pytest.raises(EngineLostError) as lost:
            sampler.generate(asked, ASKED)
        finished = lost.value.finished
        assert 0 < len(finished) < COUNT
        with pytest.raises(SyncError, match="no complete set"):
            sampler.generate(asked, ASKED)
        sampler.load(weights(folder, 1), 1)
        rest = [i for i in range(COUNT) if i not in finished]
        finished |= dict(zip(rest, sampler.generate([asked[i] for i in rest], ASKED), strict=True))
        assert answers([finished[i] for i in range(COUNT)]) == expected(folder, asked, 1)


def test_with_a_copy_kept_the_trainer_is_not_asked_again(folder: Path) -> None:
    asked = requests(COUNT)
    with as_processes(folder, PACED, keep=True) as sampler:
        sampler.load(weights(folder, 1), 1)
        threading.Timer(0.4, kill, [sampler]).start()
        assert answers(sampler.generate(asked, ASKED)) == expected(folder, asked, 1)
        sampler.load(weights(folder, 2), 2)
        assert len(list(MEMORY.glob(f"{PREFIX}{os.getpid()}-*"))) == 1
        assert answers(sampler.generate(asked[:9], ASKED)) == expected(folder, asked[:9], 2)
    assert not list(MEMORY.glob(f"{PREFIX}{os.getpid()}-*"))


def test_of_two_servers_the_other_goes_on_and_the_lost_one_serves_again_after_the_next_sync(folder: Path) -> None:
    asked = requests(COUNT)
    with as_processes(folder, PACED, replicas=2) as sampler:
        sampler.load(weights(folder, 1), 1)
        threading.Timer(0.2, kill, [sampler, 1]).start()
        assert answers(sampler.generate(asked, ASKED)) == expected(folder, asked, 1)
        assert [r.version for r in sampler.replicas] == [1, None]
        assert answers(sampler.generate(asked[:8], ASKED)) == expected(folder, asked[:8], 1)
        sampler.load(weights(folder, 2), 2)
        assert [r.version for r in sampler.replicas] == [2, 2]
        assert answers(sampler.generate(asked, ASKED)) == expected(folder, asked, 2)
        assert sampler.restarts == 1


@pytest.mark.parametrize("again", ["asked", "kept", "neither"])
def test_a_server_killed_while_weights_arrive_takes_a_full_set_or_none(folder: Path, again: str) -> None:
    with as_processes(folder, {}, keep=again == "kept") as sampler:
        if again == "asked":
            sampler.republish = lambda version: weights(folder, version)

        def stream() -> Iterator[tuple[str, Tensor]]:
            for i, item in enumerate(weights(folder, 2)):
                if i == 12:
                    kill(sampler)
                yield item

        if again != "neither":
            sampler.load(stream(), 2)
        else:
            with pytest.raises(EngineLostError, match="none holds weights 2; load them again"):
                sampler.load(stream(), 2)
            with pytest.raises(SyncError, match="no complete set"):
                sampler.generate(requests(1), ASKED)
            sampler.load(weights(folder, 2), 2)
        assert answers(sampler.generate(requests(9), ASKED)) == expected(folder, requests(9), 2)


def test_a_server_that_fails_at_its_start_is_named_with_the_end_of_its_log(folder: Path, tmp_path: Path) -> None:
    started = time.monotonic()
    with (
        pytest.raises(ModelError, match=r"(?s)server-0 .*exit status 1.*there is not enough memory"),
        as_processes(folder, {"fails": True}, logs=tmp_path),
    ):
        pass
    assert time.monotonic() - started < 30
    assert "not enough memory" in (tmp_path / "server-0.log").read_text()


def test_a_server_that_takes_too_long_is_ended_and_named_with_its_address_and_log(folder: Path) -> None:
    with (
        pytest.raises(ModelError, match=r"(?s)server-0 did not answer at unix:.* within 6 s.*a small engine starts"),
        as_processes(folder, {"slow": 600}, start_timeout=6),
    ):
        pass
    assert not [
        p for p in psutil.process_iter(["cmdline"]) if "tests.rollout.small_engine" in (p.info["cmdline"] or [])
    ]


def test_closing_ends_every_process_and_removes_the_socket(folder: Path) -> None:
    with as_processes(folder, {}, replicas=2) as sampler:
        pids = [r.server.process.pid for r in sampler.replicas if r.server and r.server.process]
        sockets = [r.server.socket for r in sampler.replicas if r.server]
        assert all(oct(s.parent.stat().st_mode & 0o777) == "0o700" for s in sockets)
    assert len(pids) == 2
    assert all(gone(pid) for pid in pids)
    assert not any(s.exists() for s in sockets)


def trainer(folder: Path, told: Connection, end: str) -> None:
    with as_processes(folder, {}) as sampler:
        server = sampler.replicas[0].server
        assert server is not None
        assert server.process is not None
        told.send(server.process.pid)
        if end == "exits":
            return
        time.sleep(600)


@pytest.mark.parametrize("end", ["killed", "exits"])
def test_no_server_outlives_the_trainer_however_that_ends(folder: Path, end: str) -> None:
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    owner = context.Process(target=trainer, args=(folder, there, end))
    owner.start()
    server = here.recv()
    if end == "killed":
        assert not gone(server)
        owner.kill()
    owner.join(30)
    wait_until(lambda: gone(server))


def test_a_server_is_started_with_the_settings_of_the_engine_in_process_and_on_no_port(folder: Path) -> None:
    server = Server(folder, ENGINE)
    arguments = server.arguments()
    assert arguments[0] == str(folder)
    wanted = ["--dtype=float32", "--max-model-len=64", "--max-num-seqs=4", "--seed=0", "--generation-config=vllm"]
    wanted += ["--logprobs-mode=processed_logprobs", "--block-size=32", "--max-num-batched-tokens=4096"]
    wanted += ["--enforce-eager", "--enable-prefix-caching", "--no-enable-chunked-prefill", f"--uds={server.socket}"]
    assert set(wanted) <= set(arguments)
    assert not [a for a in arguments if a.startswith(("--host", "--port"))]
    assert server.environment()["VLLM_SERVER_DEV_MODE"] == "1"
    assert "VLLM_SERVER_DEV_MODE" not in os.environ
    server.close()
