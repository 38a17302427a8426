"""The reference's log-probabilities of given responses, computed once and kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from posttrain.data.rows import track
from posttrain.metrics.durable import sync
from posttrain.types import Group, Rollout
from posttrain.world import ALONE, World

Compute = Callable[[Sequence[Rollout]], list[Tensor]]
CHUNK = 64
"""Groups whose log-probabilities are computed at a time."""


class ReferenceCache:
    """`[T, R]` log-probabilities by group. The file is named after everything they depend on, so that another data set,
    tokenizer, reference or dtype never meets it.
    """

    def __init__(
        self, folder: Path, groups: Sequence[Group], what: str, compute: Compute, world: World = ALONE
    ) -> None:
        """`what` names the references and how they are computed; `compute` gives `[T, R]` for roll-outs, on all ranks
        together.
        """
        digest = hashlib.sha256(what.encode())
        for group in groups:
            for rollout in group.rollouts:
                digest.update(f"{group.prompt.id}{rollout.tokens}{rollout.mask}\n".encode())
        self.file = folder / f"reference-{digest.hexdigest()[:16]}.safetensors"
        if not world.shared(lambda: self._whole() is not None):
            self._write(groups, compute, world)
        flat = load_file(self.file)
        self._found = {
            group.prompt.id: [flat[f"{i}.{k}"] for k in range(len(group.rollouts))] for i, group in enumerate(groups)
        }

    def of(self, group: Group) -> list[Tensor]:
        """One `[T, R]` per response."""
        return self._found[group.prompt.id]

    def _whole(self) -> dict[str, Tensor] | None:
        """What the file holds; None where there is none, or a damaged one."""
        try:
            return load_file(self.file)
        except (FileNotFoundError, SafetensorError):
            return None

    def _write(self, groups: Sequence[Group], compute: Compute, world: World) -> None:
        found: dict[str, Tensor] = {}
        for start in track(range(0, len(groups), CHUNK), "reference log-probabilities"):
            part = range(start, min(start + CHUNK, len(groups)))
            names = [f"{i}.{k}" for i in part for k in range(len(groups[i].rollouts))]
            values = compute([r for i in part for r in groups[i].rollouts])
            found |= {name: value.contiguous() for name, value in zip(names, values, strict=True)}
        if world.rank == 0:
            partial = self.file.with_name(f".{self.file.name}.partial")
            save_file(found, partial)
            sync(partial)
            partial.rename(self.file)
            sync(self.file.parent)
        world.wait()
