"""A module of the tests as several ranks on this machine."""

from __future__ import annotations

import time
from contextlib import ExitStack

from posttrain.build.launch import kept_port
from tests.forked import ROOT, Forked


def on_ranks(module: str, *arguments: str, count: int = 2, seconds: float = 900.0) -> str:
    """What the first rank prints. AssertionError with what every rank said where one fails.

    Each argument has a port of its own in PORTS, for modules that make a world for each.
    """
    with ExitStack() as stack:
        ports = [str(stack.enter_context(kept_port())) for _ in (None, *arguments)]
        shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": ports[0]}
        shared |= {"PORTS": " ".join(ports[1:]), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        ranks = [
            Forked(module, *arguments, environment={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(count)
        ]
        until = time.monotonic() + seconds
        try:
            codes = [rank.wait(max(until - time.monotonic(), 0.0)) for rank in ranks]
        finally:
            for rank in ranks:
                rank.kill()
    said = [rank.said() for rank in ranks]
    assert not any(codes), "\n".join(f"{code}: {err[-3000:]}" for code, (_, err) in zip(codes, said, strict=True))
    return said[0][0]
