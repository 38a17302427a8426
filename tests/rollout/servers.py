"""Samplers over small engines: inside the test on socket files and ports, or as processes that can be killed."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from aiohttp import web
from torch import Tensor

from posttrain.models.checkpoint import expected_weights, load_tokenizer
from posttrain.recipe import Hardware
from posttrain.recipe import Sampler as SamplerBlock
from posttrain.rollout import Request
from posttrain.rollout.server import ServerOptions
from posttrain.rollout.server.background import Background
from posttrain.rollout.server.sampler import ServerSampler
from posttrain.rollout.vllm import EngineOptions
from posttrain.types import Rollout, Sampling
from tests.rollout.small_engine import TABLE, SmallEngine, draw
from tests.tiny import prompt

ENGINE = EngineOptions("cpu", "float32", 64, Hardware(sampler=SamplerBlock(max_sequences=4, memory=0.05)))
ASKED = Sampling(temperature=0.7, max_tokens=12)


@cache
def shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    return expected_weights(folder)


def said_weights(folder: Path) -> dict[str, list[int]]:
    return {name: list(shape) for name, shape in shapes(folder).items()}


def weights(folder: Path, version: int) -> Iterator[tuple[str, Tensor]]:
    """A complete set of random numbers, the same for the same version."""
    generator = torch.Generator().manual_seed(version)
    for name, shape in shapes(folder).items():
        yield name, torch.randn(shape, generator=generator)


def requests(count: int, first: int = 0) -> list[Request]:
    return [Request(prompt([0, 7, 12 + seed % 5]), seed) for seed in range(first, first + count)]


def expected(folder: Path, asked: Sequence[Request], version: int, sampling: Sampling = ASKED) -> list[Any]:
    """What each request must be answered with: ids and log-probabilities, computed here."""
    table = dict(weights(folder, version))[TABLE].tolist()
    return [draw(table, r.seed, sampling.temperature, sampling.max_tokens) for r in asked]


def answers(rollouts: Sequence[Rollout]) -> list[Any]:
    """The same of what came back."""
    return [[(t, lp) for t, lp, m in zip(r.tokens, r.logprobs or (), r.mask, strict=True) if m] for r in rollouts]


class Hosts:
    """Small engines inside the test, each on a socket file or on a port."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.background, self.count = folder, Background(), 0
        self.runners: dict[str, web.AppRunner] = {}

    def start(self, engine: SmallEngine, host: str | None = None) -> str:
        """The URL at which it answers."""
        self.count += 1
        at = self.folder / f"{self.count}.sock"
        runner = web.AppRunner(engine.application())

        async def go() -> str:
            await runner.setup()
            if host is None:
                await web.UnixSite(runner, str(at)).start()
                return f"unix:{at}"
            await web.TCPSite(runner, host, 0).start()
            return f"http://{host}:{runner.addresses[0][1]}"

        url = self.background.run(go())
        self.runners[url] = runner
        return url

    def stop(self, url: str) -> None:
        self.background.run(self.runners.pop(url).cleanup())

    def close(self) -> None:
        for url in list(self.runners):
            self.stop(url)
        self.background.close()


@contextlib.contextmanager
def by_address(folder: Path, *urls: str, **options: Any) -> Iterator[ServerSampler]:
    settings = {"reach_timeout": 2.0, "bucket": 20_000, **options}
    sampler = ServerSampler(folder, load_tokenizer(folder), ENGINE, ServerOptions(urls, **settings))
    try:
        yield sampler
    finally:
        sampler.close()


@contextlib.contextmanager
def as_processes(folder: Path, engine: dict[str, Any], **options: Any) -> Iterator[ServerSampler]:
    """`engine`: what each process's SmallEngine is made of."""
    os.environ["SMALL_ENGINE"] = json.dumps({"weights": said_weights(folder), **engine})
    chosen = ServerOptions(module="tests.rollout.small_engine", bucket=20_000, **options)
    sampler = ServerSampler(folder, load_tokenizer(folder), ENGINE, chosen)
    try:
        yield sampler
    finally:
        sampler.close()
        del os.environ["SMALL_ENGINE"]


def kill(sampler: ServerSampler, index: int = 0) -> None:
    """SIGKILL to a server's process."""
    server = sampler.replicas[index].server
    assert server is not None
    if server.process is not None:
        os.kill(server.process.pid, signal.SIGKILL)


def dead_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def some(seed: int, low: float, high: float) -> float:
    return random.Random(seed).uniform(low, high)
