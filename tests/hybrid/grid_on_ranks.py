"""Learners of every strategy on two ranks, each published to the real vLLM by the way that a run would choose.

Runs as several ranks, prints JSON: `tests.hybrid.grid_on_ranks PLACEMENT TENSOR_PARALLEL ENGINE CELL...`, a cell being
"fsdp2: tied". The engine is started once for all strategies; two in one process would share what vLLM keeps in globals.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from posttrain.errors import ModelError, SyncError
from posttrain.hybrid import Hybrid
from posttrain.hybrid.publishing import Adapters, choose
from posttrain.learner.computation import Computation
from posttrain.learner.policy import PolicyLearner
from posttrain.learner.sharding import Rows, Sharding, Whole
from posttrain.learner.zero import Zero
from posttrain.models.adapters import expected_adapter
from posttrain.models.checkpoint import load_policy, load_tokenizer
from posttrain.ranks import connected
from posttrain.recipe import Hardware, Lora, Model, Optimizer
from posttrain.recipe import Sampler as Settings
from posttrain.rollout import Request
from posttrain.rollout.first import FirstRankSampler
from posttrain.rollout.server import ServerOptions
from posttrain.rollout.server.sampler import ServerSampler
from posttrain.rollout.shared import SharedSampler
from posttrain.rollout.vllm import EngineOptions, VllmSampler
from posttrain.types import Rollout, Sampling
from posttrain.world import ALONE, World
from tests.hybrid.transfer_on_ranks import folder_of
from tests.tiny import prompt

LORA = Lora(rank=4, alpha=12.0)
ADAPTERS: dict[str, Adapters] = {"lora merged": "merged", "lora apart": "apart"}
ASKED = [0, 7, 12, *(2 + (5 * i) % 60 for i in range(37))]
"""Longer than a block of the cache: what it holds of older weights would be heard."""
ENGINES = {"tied": ("tied",), "untied": ("untied",), "moe": ("moe",), "lora": ("lora merged", "lora apart")}
"""The models that one engine is given, by its name."""
SYNCS = 3
SHARDINGS: dict[str, Callable[[World], Sharding]] = {
    "single": lambda _: Whole(ALONE),
    "ddp": Whole,
    "fsdp2": lambda world: Rows(world, torch.float32, "cpu"),
    "zero2": lambda world: Zero(world, torch.float32, "cpu", 2),
    "zero3": lambda world: Zero(world, torch.float32, "cpu", 3),
}


class Engine:
    """The real vLLM with one model, as all ranks see it together, and as the first sees it alone."""

    def __init__(self, folder: Path, placement: str, span: int, world: World, adapter: bool) -> None:
        block = Settings(memory=0.05, max_sequences=32, tensor_parallel=span)
        hardware = Hardware(device="cpu", dtype="float32", sampler=block)
        form = {"adapter": expected_adapter(folder, LORA)} if adapter else {}
        self.folder, self.world, self.tokenizer = folder, world, load_tokenizer(folder)
        options = EngineOptions("cpu", "float32", 256, hardware, ranks=world.size, **form)
        self.servers: ServerSampler | None = None
        if placement == "servers":
            if world.rank == 0:
                settings = ServerOptions(bucket=20_000, logs=folder / "logs", keep=True, restarts=1)
                self.servers = ServerSampler(folder, self.tokenizer, options, settings)
            self.alone: Any = self.servers
            self.all: Any = FirstRankSampler(self.servers, world)
        else:
            self.alone = VllmSampler(folder, self.tokenizer, options)
            self.all = SharedSampler(self.alone, world, span)

    def kill(self) -> None:
        """The only server, with all its processes."""
        if self.servers is not None:
            server = self.servers.replicas[0].server
            assert server is not None
            assert server.process is not None
            os.killpg(server.process.pid, signal.SIGKILL)
        self.world.wait()

    def close(self) -> None:
        if self.servers is not None:
            self.servers.close()


class Cell:
    """A learner, the engine, and a plain model that is given what the learner should have."""

    def __init__(self, engine: Engine, strategy: str, model: str, first: int) -> None:
        alone = strategy == "single"
        self.world: World = ALONE if alone else engine.world
        self.sampler = engine.alone if alone else engine.all
        self.adapters = ADAPTERS.get(model)
        settings = Model(path=str(engine.folder), lora=LORA if self.adapters else None)

        def policy() -> Any:
            torch.manual_seed(0)
            return load_policy(engine.folder, settings, torch.float32, "cpu")

        self.plain = policy()
        computation = Computation("tree", 512, 16, 1.0, SHARDINGS[strategy](self.world))
        self.learner = PolicyLearner(policy(), engine.tokenizer, Optimizer(), computation, 10)
        # No two weights that an engine is given have the same version.
        self.learner.version = first
        self.publishing = choose("auto", self.learner, self.sampler, self.world, self.adapters)
        self.hybrid = Hybrid(self.learner, self.sampler, self.publishing)

    def moved(self) -> list[str]:
        """What is trained, and so may change."""
        return [name for name, p in self.plain.named_parameters() if p.requires_grad]

    @torch.no_grad()
    def change(self, seed: int, only: str | None = None, scale: float = 0.05) -> None:
        """Move weights of the plain model by noise, and give the learner its rank's part of them."""
        generator = torch.Generator().manual_seed(seed)
        own = dict(self.learner.model.named_parameters())
        for name in self.moved() if only is None else [only]:
            parameter = self.plain.get_parameter(name)
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
            with opened(own[name]) as held:
                part = parameter
                if isinstance(held, DTensor):
                    rows, held = parameter.chunk(self.world.size), held.to_local()
                    part = rows[self.world.rank] if self.world.rank < len(rows) else parameter[:0]
                held.copy_(part)
        self.learner.version += 1

    def draw(self, new: int = 8) -> list[Rollout]:
        requests = [Request(prompt(ASKED), seed) for seed in range(2)]
        with self.hybrid.generating() as sampler:
            return sampler.generate(requests, Sampling(temperature=1.0, max_tokens=new))

    @torch.no_grad()
    def gap(self, drawn: list[Rollout]) -> float:
        """The largest difference between the engine's log-probabilities and a plain forward pass."""
        worst = 0.0
        for r in drawn:
            assert r.logprobs is not None
            assert set((r.versions or ())[len(ASKED) :]) == {self.learner.version}
            table = self.plain(torch.tensor([r.tokens])).logits[0].log_softmax(-1)
            said = range(len(ASKED), len(r.tokens))
            worst = max(worst, *(abs(float(table[t - 1, r.tokens[t]]) - r.logprobs[t]) for t in said))
        return worst

    def synced(self) -> dict[str, Any]:
        gaps = []
        for seed in range(SYNCS):
            self.change(seed)
            gaps.append(self.gap(self.draw()))
        return {"words": self.publishing.words, "gaps": gaps}

    def perturbed(self) -> dict[str, Any]:
        """Each parameter changed alone."""
        unnoticed, largest, names = [], 0.0, self.moved()
        for number, name in enumerate(names):
            before = self.draw(3)
            self.change(100 + number, only=name, scale=0.3)
            after = self.draw(3)
            largest = max(largest, self.gap(after))
            if [r.logprobs for r in before] == [r.logprobs for r in after]:
                unnoticed.append(name)
        return {"perturbed": len(names), "unnoticed": unnoticed, "largest gap": largest}


@contextlib.contextmanager
def opened(parameter: Any) -> Iterator[Tensor]:
    """A parameter that can be written to; under ZeRO-3 what the first rank has written is what is kept of it."""
    if not hasattr(parameter, "ds_id"):
        yield parameter
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        yield parameter


def measured(engine: Engine, model: str, strategies: list[str], first: int) -> dict[str, Any]:
    """Of each strategy. The last one's parameters are perturbed too."""
    found: dict[str, Any] = {}

    def one(strategy: str) -> dict[str, Any]:
        try:
            cell = Cell(engine, strategy, model, first + 1000 * len(found))
        except ModelError as error:
            return {"refused": str(error)}
        out = cell.synced()
        return out | cell.perturbed() if strategy == strategies[-1] else out

    for strategy in strategies:
        alone = strategy == "single"
        found[f"{strategy}: {model}"] = engine.world.shared(partial(one, strategy)) if alone else one(strategy)
    return found


def killed(engine: Engine, model: str, first: int) -> dict[str, Any]:
    """A server that dies between two draws comes back with the weights it had, and takes others."""
    cell = Cell(engine, "fsdp2", model, first)
    cell.change(0)
    before = cell.draw()
    engine.kill()
    after = cell.draw()
    out = {"same": [r.tokens for r in before] == [r.tokens for r in after], "gap after a death": cell.gap(after)}
    restarts = engine.servers.restarts if engine.servers is not None else None
    return out | {"restarts": engine.world.gather(restarts)[0]} | cell.synced()


def refused(engine: Engine) -> bool:
    try:
        engine.all.generate([Request(prompt(ASKED), 0)], Sampling(max_tokens=1))
    except SyncError:
        return True
    return False


def main(placement: str, span: str, name: str, *cells: str) -> None:
    asked = [tuple(cell.split(": ")) for cell in cells]
    with connected("cpu", 600.0) as world, tempfile.TemporaryDirectory() as place:
        # transformers writes on the first rank only.
        folder = world.shared(lambda: folder_of("tied" if name == "lora" else name, Path(place)))
        engine = Engine(folder, placement, int(span), world, name == "lora" and placement == "colocated")
        found: dict[str, Any] = {"refused at first": refused(engine)}
        for number, model in enumerate(ENGINES[name]):
            strategies = [strategy for strategy, each in asked if each == model]
            found |= measured(engine, model, [s for s in strategies if s != "killed"], 20_000 * number)
            if "killed" in strategies:
                found[f"killed: {model}"] = killed(engine, model, 20_000 * number + 10_000)
        engine.close()
        told = world.gather(found)
        if world.rank == 0:
            print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
