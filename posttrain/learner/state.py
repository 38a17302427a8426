"""A learner's state on disk: small numbers in one file, tensors in torch's distributed format.

The format knows which part of a tensor lies where, so what was written by one number of ranks under one strategy is
read by any other.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posttrain.world import World

NUMBERS = "learner.pt"


def write_numbers(folder: Path, numbers: Mapping[str, Any], world: World, name: str = NUMBERS) -> None:
    """Written by the first rank."""
    if world.rank == 0:
        torch.save(dict(numbers), folder / name)


def read_numbers(folder: Path, name: str = NUMBERS) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(folder / name, map_location="cpu", weights_only=True)
    return found


def write_tensors(folder: Path, tensors: Mapping[str, Tensor], world: World) -> None:
    """Every rank writes what it alone holds; of what all hold, each writes a part. A collective."""
    with _quiet():
        _format().save(dict(tensors), checkpoint_id=folder, no_dist=world.size == 1)


def read_tensors(folder: Path, into: Mapping[str, Tensor], world: World) -> None:
    """Fill tensors in place, each with the part that it is. A collective."""
    with _quiet():
        _format().load(dict(into), checkpoint_id=folder, no_dist=world.size == 1)


def _format() -> Any:
    # Imported at the first checkpoint: no start waits for what launches ranks and writes beside them.
    import torch.distributed.checkpoint as dcp

    return dcp


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the remark that one process is alone."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield
