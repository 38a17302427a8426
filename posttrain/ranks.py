"""Several processes connected through torch.distributed: gloo between CPUs, NCCL between GPUs."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from posttrain.world import LAUNCHER, Alone, World, launched, local_rank

T = TypeVar("T")
BUCKET = 64 * 2**20
"""Bytes that are added up in one message."""
POLL = 0.5
"""Seconds between two looks at the launcher."""


class Ranks:
    """Implements `World`. Where nothing has been exchanged for `patience` seconds, each rank prints the stack of all
    its threads and ends: a collective that hangs shows where every rank stands.
    """

    def __init__(self, patience: float) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._patience, self.waited = patience, 0.0
        self._alive()

    def _alive(self) -> None:
        # Also armed between exchanges: a sharded model's own collectives lie there.
        faulthandler.dump_traceback_later(self._patience, exit=True, file=sys.stderr)

    @contextlib.contextmanager
    def _exchanging(self) -> Iterator[None]:
        self._alive()
        started = time.perf_counter()
        yield
        self.waited += time.perf_counter() - started
        self._alive()

    def gather(self, value: T) -> list[T]:
        out: list[Any] = [None] * self.size
        with self._exchanging():
            dist.all_gather_object(out, value)
        return out

    def shared(self, make: Callable[[], T]) -> T:
        made: list[Any] = [make() if self.rank == 0 else None]
        with self._exchanging():
            dist.broadcast_object_list(made, src=0)
        found: T = made[0]
        return found

    @torch.no_grad()
    def add(self, tensors: Sequence[Tensor]) -> None:
        with self._exchanging():
            for part in _buckets(tensors):
                flat = torch.cat([t.reshape(-1) for t in part])
                dist.all_reduce(flat)
                for tensor, total in zip(part, flat.split([t.numel() for t in part]), strict=True):
                    tensor.copy_(total.view_as(tensor))

    def wait(self) -> None:
        with self._exchanging():
            dist.barrier()


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one dtype together, in order, up to a number of bytes."""
    part: list[Tensor] = []
    for tensor in tensors:
        size = sum(t.nbytes for t in part) + tensor.nbytes
        if part and (size > BUCKET or tensor.dtype != part[0].dtype):
            yield part
            part = []
        part.append(tensor)
    if part:
        yield part


def _end_with(launcher: int) -> None:
    """End this rank when what started it is gone, however that ended: nobody else would end a rank that waits."""
    while os.getppid() == launcher:
        time.sleep(POLL)
    os._exit(1)


@contextlib.contextmanager
def connected(device: str, patience: float) -> Iterator[World]:
    """The world this process belongs to: that of its launcher, or itself alone.

    `patience` bounds in seconds how long nothing may be exchanged between its ranks.
    """
    if not launched():
        yield Alone()
        return
    if LAUNCHER in os.environ:
        threading.Thread(target=_end_with, args=(int(os.environ[LAUNCHER]),), name="launcher", daemon=True).start()
    if device == "cuda":
        torch.cuda.set_device(local_rank())
    backend = "cpu:gloo,cuda:nccl" if device == "cuda" else "gloo"
    # The stacks are wanted first: the group's own limit comes later than ours.
    dist.init_process_group(backend, timeout=timedelta(seconds=2 * patience))
    try:
        world = Ranks(patience)
        yield world
        world.wait()
    finally:
        faulthandler.cancel_dump_traceback_later()
        # An engine in this process has groups of its own, and leaves all of them when the process ends.
        if "vllm" not in sys.modules:
            dist.destroy_process_group()
