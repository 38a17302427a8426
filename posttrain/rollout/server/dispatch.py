"""Which server answers which request: the one with the least work for what it can do, and none beyond what it can."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar


class Worker(Protocol):
    """Whatever answers requests, `capacity` of them at one time."""

    capacity: int


W = TypeVar("W", bound=Worker)


@dataclass(eq=False)
class _Seat(Generic[W]):
    worker: W
    outstanding: int = 0
    open: bool = True


class NobodyError(Exception):
    """No worker is left to take a request."""


class Dispatch(Generic[W]):
    """Least outstanding requests, weighted by capacity; ties go to the first. To be used within one event loop."""

    def __init__(self, workers: Sequence[W]) -> None:
        self._seats = [_Seat(worker) for worker in workers]
        self._changed = asyncio.Condition()

    async def take(self) -> W:
        """A worker with room, waited for if need be; `give` it back. Raises NobodyError once all are closed."""
        async with self._changed:
            while True:
                present = [seat for seat in self._seats if seat.open]
                if not present:
                    raise NobodyError
                free = [seat for seat in present if seat.outstanding < seat.worker.capacity]
                if free:
                    least = min(free, key=lambda seat: seat.outstanding / seat.worker.capacity)
                    least.outstanding += 1
                    return least.worker
                await self._changed.wait()

    async def give(self, worker: W) -> None:
        async with self._changed:
            self._seat(worker).outstanding -= 1
            self._changed.notify()

    async def close(self, worker: W) -> None:
        """No request for this worker any more."""
        async with self._changed:
            self._seat(worker).open = False
            self._changed.notify_all()

    def outstanding(self, worker: W) -> int:
        return self._seat(worker).outstanding

    def _seat(self, worker: W) -> _Seat[W]:
        return next(seat for seat in self._seats if seat.worker is worker)
