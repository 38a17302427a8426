"""A copy of what was published, in shared memory, for a server that is lost: the trainer need not give it again."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from torch import Tensor

from posttrain.rollout.server.bucket import Bucket, read


class Kept:
    """A stream of weights that can be begun again at any time, also where it broke off half-way."""

    def __init__(self, weights: Iterator[tuple[str, Tensor]]) -> None:
        self._bucket = Bucket(0)
        self._rest = self._copied(weights)

    def _copied(self, weights: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in weights:
            self._bucket.put(name, tensor)
            yield name, tensor

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """From the first tensor: those that have passed before from the copy, then the others."""
        past = read(**self._bucket.index()) if self._bucket.entries else iter(())
        return itertools.chain(past, self._rest)

    def close(self) -> None:
        self._bucket.close()
