"""The training side: what any learner can do. It knows nothing of the engine that samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from posttrain.algorithms.table import Algorithm
    from posttrain.data.packing import Packing
    from posttrain.metrics import Report
    from posttrain.types import Batch, Rollout

Policy = Literal["policy", "reference"]


class Learner(Protocol):
    """Holds the trained weights. `version` counts optimiser steps and names the weights wherever they go."""

    version: int
    packing: Packing
    temperature: float
    """Of the roll-outs: log-probabilities are those of the tempered policy, as the engine's are."""
    dtype: torch.dtype

    def logprobs(self, rollouts: Sequence[Rollout], policy: Policy = "policy") -> list[Tensor]:
        """`[T]` log-probabilities per rollout, 0 outside its mask, without gradient."""

    def logits(self, rollout: Rollout, dtype: torch.dtype | None = None, head: Tensor | None = None) -> Tensor:
        """`[M, V]` untempered logits of a rollout's masked tokens, for a diagnosis: in another dtype, or through
        another output head `[V, H]`, where given.
        """

    def accumulate(self, batch: Batch, algorithm: Algorithm) -> tuple[Report, Tensor]:
        """Add a Batch's gradient. Returns what to report and the `[N]` log-probabilities the loss was made of."""

    def step(self) -> Report:
        """One optimiser step over what was accumulated; the version goes up by one."""

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the policy as (name in its checkpoint, full tensor), tied aliases included."""

    def save(self, folder: Path) -> None:
        """Write `policy/`, which transformers and vLLM load, and everything else the next step needs."""

    def load(self, folder: Path) -> None:
        """Continue from what `save` wrote, bit for bit."""
