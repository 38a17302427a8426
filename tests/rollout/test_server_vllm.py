"""The real vLLM as a server: its numbers are those of the weights it was given, after every sync and every death."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
import torch
from torch import Tensor

from posttrain.errors import SyncError
from posttrain.models.checkpoint import load_policy, load_tokenizer, merged_weights
from posttrain.recipe import Hardware, Model, Sampler
from posttrain.rollout import Request
from posttrain.rollout.server import ServerOptions
from posttrain.rollout.server.proxy import listen
from posttrain.rollout.server.replica import Address
from posttrain.rollout.server.sampler import ServerSampler
from posttrain.types import Rollout, Sampling
from tests.tiny import prompt, randomise, tiny_folder

pytestmark = pytest.mark.vllm
pytest.importorskip("vllm")

from posttrain.rollout.vllm import EngineOptions, VllmSampler  # noqa: E402

BOUND = 1e-4
"""Between two correct fp32 implementations on a CPU."""
ASKED = [0, 7, 12, 30, 31, 32, 33, 34, 40, 41, 1, 12, 0, 8, 12]


class Pair:
    """A server and a plain transformers model that should always hold the same weights."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.version = folder, 0
        self.model: Any = load_policy(folder, Model(path=str(folder)), torch.float32, "cpu")
        hardware = Hardware(device="cpu", dtype="float32", sampler=Sampler(memory=0.05, max_sequences=16))
        self.engine = EngineOptions("cpu", "float32", 512, hardware)
        options = ServerOptions(bucket=20_000, logs=folder / "logs")
        self.sampler = ServerSampler(folder, load_tokenizer(folder), self.engine, options)
        self.sampler.republish = lambda version: self.weights()

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        yield from merged_weights(self.model)

    def sync(self, weights: Iterator[tuple[str, Tensor]] | None = None) -> None:
        self.version += 1
        self.sampler.load(self.weights() if weights is None else weights, self.version)

    def draw(self, count: int = 24, temperature: float = 1.0, new: int = 12) -> list[Rollout]:
        asked = [Request(prompt([*ASKED, 2 + seed % 3]), seed) for seed in range(count)]
        return self.sampler.generate(asked, Sampling(temperature=temperature, max_tokens=new))

    @torch.no_grad()
    def gap(self, rollouts: list[Rollout], temperature: float = 1.0) -> float:
        """The largest difference between the engine's log-probabilities and a plain forward pass."""
        worst = 0.0
        for r in rollouts:
            table = (self.model(torch.tensor([r.tokens])).logits[0].float() / temperature).log_softmax(-1)
            for t in range(len(r.tokens)):
                if r.mask[t]:
                    assert r.logprobs is not None
                    worst = max(worst, abs(float(table[t - 1, r.tokens[t]]) - r.logprobs[t]))
        return worst

    def process(self, kind: str) -> int:
        """The process that listens, or the one that holds the weights."""
        server = self.sampler.replicas[0].server
        assert server is not None
        assert server.process is not None
        if kind == "listener":
            return server.process.pid
        below = psutil.Process(server.process.pid).children(recursive=True)
        return next(p.pid for p in below if "EngineCore" in " ".join(p.cmdline()))


@pytest.fixture(scope="module", params=["tied", pytest.param("untied", marks=pytest.mark.prove)])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tiny_folder(tmp_path_factory.mktemp("tiny"), tied=request.param == "tied")
    made = Pair(folder)
    with pytest.raises(SyncError, match="no complete set"):
        made.draw()
    yield made
    made.sampler.close()


def test_three_syncs_of_random_weights_in_a_row_agree_with_a_plain_forward_pass(pair: Pair) -> None:
    for seed, temperature in ((1, 1.0), (2, 0.6), (3, 1.7)):
        before = [r.tokens for r in pair.draw()] if pair.sampler.version else []
        randomise(pair.model, seed)
        pair.sync()
        after = pair.draw(temperature=temperature)
        assert [r.tokens for r in after] != before
        assert pair.gap(after, temperature) < BOUND
        assert {v for r in after for v, said in zip(r.versions or (), r.mask, strict=True) if said} == {pair.version}


def test_the_rollouts_are_those_of_the_engine_in_process(pair: Pair) -> None:
    pair.sync()
    inside = VllmSampler(pair.folder, load_tokenizer(pair.folder), pair.engine)
    inside.load(pair.weights(), pair.version)
    asked = [Request(prompt(ASKED), seed) for seed in range(12)]
    sampling = Sampling(temperature=0.8, max_tokens=40)
    for mine, theirs in zip(pair.sampler.generate(asked, sampling), inside.generate(asked, sampling), strict=True):
        assert (mine.tokens, mine.mask, mine.versions) == (theirs.tokens, theirs.mask, theirs.versions)
        assert (mine.text, mine.finish_reason, mine.seed) == (theirs.text, theirs.finish_reason, theirs.seed)
        assert torch.tensor(mine.logprobs).sub(torch.tensor(theirs.logprobs)).abs().max() < 1e-5


def test_the_server_itself_refuses_an_incomplete_set_and_a_full_sync_repairs_it(pair: Pair) -> None:
    """The trainer's own check is made to expect less, so that only the server's is left."""
    victim = "model.layers.1.self_attn.k_proj.weight"
    kept = pair.sampler.expected
    pair.sampler.expected = {name: shape for name, shape in kept.items() if name != victim}
    try:
        with pytest.raises(SyncError, match=r"weights were refused: .*left out 'model.layers.1.self_attn.k_proj"):
            pair.sync(item for item in pair.weights() if item[0] != victim)
    finally:
        pair.sampler.expected = kept
    with pytest.raises(SyncError, match="no complete set"):
        pair.draw()
    pair.sync()
    assert pair.gap(pair.draw()) < BOUND


def test_a_server_that_only_reads_checkpoints_gets_the_head_too(pair: Pair) -> None:
    (replica,) = pair.sampler.replicas
    replica.native = False
    try:
        for seed in (4, 5):
            randomise(pair.model, seed)
            pair.sync()
            assert pair.gap(pair.draw()) < BOUND
    finally:
        replica.native = True
    randomise(pair.model, 6)
    pair.sync()
    assert pair.gap(pair.draw()) < BOUND


def test_through_its_proxy_it_answers_only_with_the_token(pair: Pair) -> None:
    token = "a-token-of-nobodys"
    pair.sync()
    background = pair.sampler.background
    door = background.run(listen(Address(pair.sampler.replicas[0].url), token, "127.0.0.1", 0))
    url = f"http://127.0.0.1:{door.addresses[0][1]}"

    async def statuses(path: str) -> list[int]:
        async with aiohttp.ClientSession() as client:
            found = []
            for headers in ({}, {"Authorization": f"Bearer {token}"}):
                async with client.get(url + path, headers=headers) as answer:
                    found.append(answer.status)
            return found

    for path in ("/health", "/weight_info", "/server_info", "/openapi.json", "/metrics", "/v1/models"):
        assert background.run(statuses(path)) == [401, 200]
    options = ServerOptions((url,), token=token)
    other = ServerSampler(pair.folder, load_tokenizer(pair.folder), pair.engine, options)
    other.load(pair.weights(), pair.version)
    assert [r.tokens for r in other.generate([Request(prompt(ASKED), 5)], Sampling(max_tokens=9))] == [
        r.tokens for r in pair.sampler.generate([Request(prompt(ASKED), 5)], Sampling(max_tokens=9))
    ]
    other.close()
    background.run(door.cleanup())


@pytest.mark.prove
@pytest.mark.parametrize("victim", ["listener", "engine"])
def test_killed_in_the_middle_it_comes_back_and_the_responses_are_the_same(pair: Pair, victim: str) -> None:
    pair.sync()
    calm = pair.draw(200, new=64)
    before = pair.sampler.restarts
    timer = threading.Timer(0.5, os.kill, [pair.process(victim), signal.SIGKILL])
    timer.start()
    rough = pair.draw(200, new=64)
    timer.join()
    assert pair.sampler.restarts == before + 1
    assert [(r.tokens, r.versions) for r in rough] == [(r.tokens, r.versions) for r in calm]
    said = [torch.tensor([x for r in rollouts for x in r.logprobs or ()]) for rollouts in (rough, calm)]
    assert (said[0] - said[1]).abs().max() < 1e-5
    assert pair.gap(rough[:20]) < BOUND
