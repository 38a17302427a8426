"""The processes of a run. All execute the same program on the same data; which share of it they compute differs.

Samples, verdicts and log-probabilities are small: every rank knows them all, so a loop reads the same on one process
and on many, and only weights, gradients and forward passes are divided.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
PHASE_FILE = "POSTTRAIN_PHASE_FILE"
"""The environment variable that names a file in which a process notes what it is doing."""


LAUNCHER = "POSTTRAIN_LAUNCHER"
"""The environment variable with the process id of what started a rank here, which no rank outlives."""


class World(Protocol):
    """Everyone who takes part. Each method but `mine` is called by all ranks, in the same order."""

    rank: int
    size: int
    waited: float
    """Seconds so far in which this rank waited for others, or exchanged something with them, in a method below."""

    def gather(self, value: T) -> list[T]:
        """Every rank's value, by rank, on every rank."""

    def shared(self, make: Callable[[], T]) -> T:
        """What the first rank makes, on every rank; the others make nothing."""

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its sum over the ranks."""

    def wait(self) -> None:
        """Go on when all have come so far."""


class Alone:
    """A world of one process."""

    rank, size, waited = 0, 1, 0.0

    def gather(self, value: T) -> list[T]:
        return [value]

    def shared(self, make: Callable[[], T]) -> T:
        return make()

    def add(self, tensors: Sequence[Tensor]) -> None:
        """A sum of one."""

    def wait(self) -> None:
        """Nobody else is to come."""


ALONE = Alone()


def mine(world: World, count: int) -> range:
    """Which of `count` pieces of work are this rank's: every size-th, so that pieces sorted by size go evenly."""
    return range(world.rank, count, world.size)


def everyone(world: World, found: Mapping[int, T]) -> list[T]:
    """Pieces of work by number, done by different ranks, as one list on all of them."""
    whole: dict[int, T] = {}
    for part in world.gather(dict(found)):
        whole |= part
    return [whole[i] for i in sorted(whole)]


def launched() -> bool:
    """Whether a launcher (torchrun, accelerate, posttrain's own) started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


def main_process() -> bool:
    """Whether this process speaks for the run. Known before any rank is connected to the others."""
    return int(os.environ.get("RANK", "0")) == 0 if launched() else True


def local_rank() -> int:
    """This process's number on its machine, which is that of its device."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def note_phase(name: str) -> None:
    """Say what this process does from now on, where somebody wants to know."""
    file = os.environ.get(PHASE_FILE)
    if file:
        Path(file).write_text(name)
