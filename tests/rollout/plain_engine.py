"""A small server with vLLM's routes over transformers, for a process of its own: `tests.rollout.plain_engine FOLDER`.

Each response is drawn by itself, so it is the same, bit for bit, whenever and beside whatever it is asked for.
"""

from __future__ import annotations

import argparse
import asyncio
import os
from pathlib import Path

import torch
from aiohttp import web

from posttrain.models.checkpoint import expected_weights, load_policy, load_tokenizer, stop_tokens
from posttrain.recipe import Model
from posttrain.rollout import Request
from posttrain.rollout.local import LocalSampler
from posttrain.rollout.server.lifeline import OWNER, perish_with
from posttrain.types import Sampling
from tests.rollout.small_engine import SmallEngine
from tests.tiny import prompt

UNFILLED = "asked before a full sync"


class PlainEngine(SmallEngine):
    """It has weights of its own from the start, those of the folder, and must never be asked for them."""

    def __init__(self, folder: Path, pace: float) -> None:
        shapes = expected_weights(folder)
        super().__init__({name: list(shape) for name, shape in shapes.items()}, pace, max_length=256)
        tokenizer = load_tokenizer(folder)
        model = load_policy(folder, Model(path=str(folder)), torch.float32, "cpu")
        self.shapes, self.own = shapes, LocalSampler(model, tokenizer, stop_tokens(folder, tokenizer), 1)

    async def _start_weight_update(self, request: web.Request) -> web.Response:
        self.own.version = None
        return await super()._start_weight_update(request)

    async def _finish_weight_update(self, request: web.Request) -> web.Response:
        done = await super()._finish_weight_update(request)
        given = ((name, torch.tensor(self.weights[name]).view(shape)) for name, shape in self.shapes.items())
        self.own.load(given, int(self.version))
        return done

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        if "token_ids" not in body:
            return web.json_response({"error": {"message": "token_ids: field required"}}, status=400)
        if self.own.version is None:
            print(UNFILLED, flush=True)
            return web.json_response({"error": {"message": UNFILLED}}, status=500)
        p, tokens = body["sampling_params"], body["token_ids"]
        (r,) = self.own.generate(
            [Request(prompt(tokens), p["seed"])],
            Sampling(temperature=p["temperature"], max_tokens=p["max_tokens"]),
        )
        assert r.logprobs is not None
        said = [(token, value) for token, value, own in zip(r.tokens, r.logprobs, r.mask, strict=True) if own]
        await asyncio.sleep(self.pace)
        choice = {
            "finish_reason": r.finish_reason,
            "token_ids": [token for token, _ in said],
            "logprobs": {"content": [{"token_id": token, "logprob": value} for token, value in said]},
            "weight_versions": [{"version": self.version, "start": 0, "end": len(said)}],
        }
        return web.json_response({"choices": [choice], "prompt_token_ids": tokens})


async def main() -> None:
    """As the real one is started; PLAIN_ENGINE has the seconds that every response takes at least."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--uds", required=True)
    known, _ = parser.parse_known_args()
    if owner := os.environ.get(OWNER):
        perish_with(int(owner))
    runner = web.AppRunner(PlainEngine(known.folder, float(os.environ["PLAIN_ENGINE"])).application())
    await runner.setup()
    await web.UnixSite(runner, known.uds).start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
