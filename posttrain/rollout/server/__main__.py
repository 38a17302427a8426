"""`python -m posttrain.rollout.server MODEL`: a server for trainers on this machine or others, behind its token."""

from __future__ import annotations

import argparse
import asyncio
import os
import secrets
import sys
from collections.abc import Sequence
from pathlib import Path

from posttrain.errors import ModelError, PosttrainError
from posttrain.recipe import Hardware, Sampler
from posttrain.rollout.server import ServerOptions
from posttrain.rollout.server.launch import DEFAULT, Server
from posttrain.rollout.server.proxy import listen, require_token
from posttrain.rollout.server.replica import Address, Replica
from posttrain.rollout.vllm import EngineOptions


def options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m posttrain.rollout.server", description=__doc__)
    parser.add_argument("model", type=Path, help="folder of the model that is trained: config, weights, tokenizer")
    parser.add_argument("--host", default="127.0.0.1", help="where the proxy listens; 0.0.0.0 for other machines")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"], default="bfloat16")
    parser.add_argument("--max-length", type=int, required=True, help="tokens of the longest prompt and response")
    parser.add_argument("--max-sequences", type=int, default=128)
    parser.add_argument("--memory", type=float, default=0.9, help="the card's share; on a CPU, GiB of cache")
    parser.add_argument("--tensor-parallel", type=int, default=1)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--start-timeout", type=float, default=600.0, metavar="SECONDS")
    return parser.parse_args(arguments)


async def serve(asked: argparse.Namespace, token: str, settings: ServerOptions = DEFAULT) -> None:
    """Until the server ends. Raises ModelError with the end of its log."""
    sampler = Sampler(
        tensor_parallel=asked.tensor_parallel,
        memory=asked.memory,
        max_sequences=asked.max_sequences,
        compile=asked.compile,
    )
    hardware = Hardware(device=asked.device, dtype=asked.dtype, sampler=sampler)
    engine = EngineOptions(asked.device, asked.dtype, asked.max_length, hardware)
    server = Server(asked.model, engine, options=settings)
    replica = Replica(Address(server.url), server)
    try:
        # A port that is taken is known before the engine is loaded.
        runner = await listen(replica.address, token, asked.host, asked.port)
        server.start()
        print(f"starting; log: {server.log}", file=sys.stderr, flush=True)
        await replica.ready(asked.start_timeout)
        print(f"ready at http://{asked.host}:{asked.port}", file=sys.stderr, flush=True)
        while not (ended := server.ended()):
            await asyncio.sleep(1)
        await runner.cleanup()
        raise ModelError(ended)
    finally:
        await replica.close()
        server.close()


def main(arguments: Sequence[str] | None = None) -> int:
    asked = options(arguments)
    try:
        token = os.environ.get("POSTTRAIN_TOKEN")
        if token is None:
            token = secrets.token_urlsafe(32)
            print(f"POSTTRAIN_TOKEN={token}", flush=True)
        asyncio.run(serve(asked, require_token(asked.host, token)))
    except PosttrainError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
