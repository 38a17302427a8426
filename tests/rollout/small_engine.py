"""A small server with vLLM's routes: one row of logits instead of a model, for a process of its own or inside a test.

It takes weights as the real one does, through the same buckets, and speaks from what it was given.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import random
import struct
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

from posttrain.errors import SyncError
from posttrain.rollout.server.lifeline import OWNER, perish_with

VOCABULARY = 96
TABLE = "model.norm.weight"
"""Of the weights, the 64 numbers that are its logits."""
STOP = 1


def draw(table: list[float], seed: int, temperature: float, count: int) -> list[tuple[int, float]]:
    """(token, log-probability) until the stop token or `count`, by this seed alone."""
    scaled = [x / temperature for x in table]
    total = math.log(sum(math.exp(x) for x in scaled))
    dice, out = random.Random(seed), []
    while len(out) < count and not (out and out[-1][0] == STOP):
        token = dice.choices(range(len(scaled)), [math.exp(x) for x in scaled])[0]
        out.append((token, scaled[token] - total))
    return out


class SmallEngine:
    """State and routes. `pace` is seconds a token; `asked` counts requests by seed, `seen` calls by route."""

    def __init__(self, weights: Any, pace: float = 0.0, capacity: int = 4, native: bool = True, **said: Any) -> None:
        self.pace, self.native = pace, native
        self.said = {
            "weights": weights,
            "vocabulary": VOCABULARY,
            "dtype": "float32",
            "max_length": 64,
            "max_sequences": capacity,
            "logprobs": "processed_logprobs",
            "model": "a small table",
            **said,
        }
        self.weights: dict[str, list[float]] = {}
        self.version = "default"
        self.active = self.dead = self.closed = False
        self.running = self.most = 0
        self.asked: Counter[int] = Counter()
        self.salts: Counter[str] = Counter()
        self.seen: Counter[str] = Counter()
        self.without: tuple[str, ...] = ()
        self.expected: dict[str, tuple[int, ...]] = {}

    def application(self) -> web.Application:
        @web.middleware
        async def answer(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            self.seen[request.path] += 1
            if request.path in self.without:
                return web.json_response({"detail": "Not Found"}, status=404)
            try:
                return await handler(request)
            except SyncError as error:
                return web.json_response({"error": {"message": f"Call failed: {error}"}}, status=500)

        app = web.Application(middlewares=[answer])
        app.router.add_get("/health", self._health)
        app.router.add_get("/version", self._version)
        app.router.add_get("/weight_info", self._weight_info)
        app.router.add_get("/server_info", self._server_info)
        for name in ("init_weight_transfer_engine", "start_weight_update", "update_weights", "finish_weight_update"):
            app.router.add_post(f"/{name}", getattr(self, f"_{name}"))
        app.router.add_post("/update_weight_version", self._update_weight_version)
        app.router.add_post("/collective_rpc", self._collective_rpc)
        app.router.add_post("/inference/v1/generate", self._generate)
        return app

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response(status=503 if self.dead else 200)

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": "0.32.0"})

    async def _weight_info(self, _: web.Request) -> web.Response:
        return web.json_response({"weight_version": self.version})

    async def _server_info(self, _: web.Request) -> web.Response:
        model = {
            "model": self.said["model"],
            "dtype": f"torch.{self.said['dtype']}",
            "max_model_len": self.said["max_length"],
            "logprobs_mode": self.said["logprobs"],
        }
        scheduler = {"max_num_seqs": self.said["max_sequences"]}
        return web.json_response({"vllm_config": {"model_config": model, "scheduler_config": scheduler}})

    async def _collective_rpc(self, request: web.Request) -> web.Response:
        body = await request.json()
        if body["method"] == "posttrain_describe" and self.native:
            return web.json_response({"results": [self.said]})
        if body["method"] == "reload_weights":
            from safetensors.torch import load_file

            found = load_file(Path(body["kwargs"]["weights_path"]) / "model.safetensors")
            self.weights = {name: tensor.flatten().tolist() for name, tensor in found.items()}
            return web.json_response({"results": [None]})
        return web.json_response({"error": {"message": f"{body['method']} is not implemented"}}, status=500)

    async def _init_weight_transfer_engine(self, request: web.Request) -> web.Response:
        info = (await request.json())["init_info"]
        self.expected = {name: tuple(shape) for name, shape in info["expected"].items()}
        (probe,) = info["probe"]["tensors"]
        assert probe[1:] == ["uint8", [3], 0]
        assert Path(info["probe"]["path"]).read_bytes() == bytes([1, 2, 3])
        return web.json_response({})

    async def _start_weight_update(self, _: web.Request) -> web.Response:
        if self.active:
            raise SyncError("start_weight_update called while a weight update is already active.")
        self.active, self.missing = True, dict(self.expected)
        return web.json_response({})

    async def _update_weights(self, request: web.Request) -> web.Response:
        if not self.active:
            raise SyncError("start_weight_update must be called before update_weights.")
        info = (await request.json())["update_info"]
        try:
            if why := info.get("abandon"):
                raise SyncError(why)
            # Read without torch, which would take most of the time of the tests that start this as a process.
            data = Path(info["path"]).read_bytes() if info["tensors"] else b""
            for name, dtype, shape, offset in info["tensors"]:
                if dtype != "float32" or self.missing.pop(name, None) != tuple(shape):
                    raise SyncError(f"{name} of {dtype} {shape} was not expected")
                self.weights[name] = list(struct.unpack_from(f"<{math.prod(shape)}f", data, offset))
            if info["last"] and self.missing:
                raise SyncError(f"the sync left out {min(self.missing)}")
        except SyncError:
            self.active = False
            raise
        return web.json_response({})

    async def _finish_weight_update(self, request: web.Request) -> web.Response:
        self.active, self.version = False, (await request.json())["weight_version"]
        return web.json_response({})

    async def _update_weight_version(self, request: web.Request) -> web.Response:
        self.version = (await request.json())["new_version"]
        return web.json_response({})

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if self.closed:
            return web.json_response({"error": {"message": "Scale-out endpoints are disabled."}}, status=403)
        if "token_ids" not in body:
            return web.json_response({"error": {"message": "token_ids: field required"}}, status=400)
        p = body["sampling_params"]
        self.asked[p["seed"]] += 1
        self.salts[body["cache_salt"]] += 1
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            said = draw(self.weights[TABLE], p["seed"], p["temperature"], p["max_tokens"])
            await asyncio.sleep(self.pace * len(said))
        finally:
            self.running -= 1
        if self.dead:
            return web.json_response({"error": {"message": "EngineCore encountered an issue"}}, status=500)
        choice = {
            "finish_reason": "stop" if said[-1][0] == STOP else "length",
            "token_ids": [token for token, _ in said],
            "logprobs": {"content": [{"token_id": token, "logprob": value} for token, value in said]},
            "weight_versions": [{"version": self.version, "start": 0, "end": len(said)}],
        }
        return web.json_response({"choices": [choice], "prompt_token_ids": body["token_ids"]})


async def main() -> None:
    """As the real one is started; SMALL_ENGINE has what its constructor takes, and `slow`: seconds until it listens."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--uds", required=True)
    known, _ = parser.parse_known_args()
    settings = json.loads(os.environ.get("SMALL_ENGINE", "{}"))
    if owner := os.environ.get(OWNER):
        perish_with(int(owner))
    print("a small engine starts", flush=True)
    if settings.get("fails"):
        sys.exit("there is not enough memory")
    time.sleep(settings.pop("slow", 0))
    runner = web.AppRunner(SmallEngine(**settings).application())
    await runner.setup()
    await web.UnixSite(runner, known.uds).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
