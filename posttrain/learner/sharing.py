"""Micro-batches divided among the ranks, and what each found of them known to all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from posttrain.learner.sharding import Sharding
from posttrain.types import Batch
from posttrain.world import everyone, mine

T = TypeVar("T")


@dataclass(frozen=True)
class Turn:
    """One pass of this rank. `number` is None where it has no micro-batch left but must keep step with the others."""

    number: int | None
    batch: Batch


def turns(sharding: Sharding, batches: Sequence[Batch]) -> Iterator[Turn]:
    """This rank's passes over `batches`, which all ranks know."""
    own = mine(sharding.world, len(batches))
    for number in own:
        yield Turn(number, batches[number])
    if sharding.lockstep:
        rounds = -(-len(batches) // sharding.world.size)
        for _ in range(rounds - len(own)):
            # The last one is the shortest.
            yield Turn(None, batches[-1])


def read(sharding: Sharding, batches: Sequence[Batch], function: Callable[[Batch], T]) -> list[T]:
    """`function` of every micro-batch, computed by different ranks, on all of them. Without gradient."""
    found: dict[int, T] = {}
    for turn in turns(sharding, batches):
        value = function(turn.batch)
        if turn.number is not None:
            found[turn.number] = value
    return everyone(sharding.world, found)
