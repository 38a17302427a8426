"""A module of the tests as several ranks on this machine."""

from __future__ import annotations

import socket
import time

from tests.forked import ROOT, Forked


def on_ranks(module: str, *arguments: str, count: int = 2, seconds: float = 900.0) -> str:
    """What the first rank prints. AssertionError with what every rank said where one fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
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
