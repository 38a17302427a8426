"""The training side: what any learner can do. It knows nothing of the engine that samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from posttrain.algorithms.row import Algorithm
    from posttrain.algorithms.state import Coefficients
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
        """`[T]` log-probabilities per rollout, or `[T, R]` under R references; 0 outside its mask, without gradient."""

    def uniform(self, rollouts: Sequence[Rollout]) -> list[Tensor]:
        """`[T]` log-probabilities averaged over the vocabulary, where a token of the mask is predicted."""

    def values(self, rollouts: Sequence[Rollout]) -> list[Tensor]:
        """`[T + 1, B]` outputs of the critic at the state before each token of the mask, and after the last token."""

    def logits(self, rollout: Rollout, dtype: torch.dtype | None = None, head: Tensor | None = None) -> Tensor:
        """`[M, V]` untempered logits of a rollout's masked tokens, for a diagnosis: in another dtype, or through
        another output head `[V, H]`, where given.
        """

    def accumulate(
        self, batches: Sequence[Batch], algorithm: Algorithm, coefficients: Coefficients
    ) -> tuple[Report, list[Tensor]]:
        """Add the gradient of one optimiser step, cut into `batches`. Returns what to report and, for each Batch, the
        `[N]` log-probabilities the loss was made of.
        """

    def step(self, policy: bool = True) -> Report:
        """One optimiser step over what was accumulated, of the critic too; the version goes up by one. With `policy`
        False only the critic moves, and the version stays.
        """

    def discard(self) -> None:
        """Forget what was accumulated."""

    def snapshot(self) -> dict[str, Any]:
        """The policy and its optimiser as they are, in copies."""

    def roll_back(self, snapshot: dict[str, Any]) -> None:
        """Put the policy, its optimiser and its version back."""

    def refresh_reference(self, decay: float, momentum: float = 0.0) -> None:
        """Move the first reference to decay x itself + (1 - decay) x the policy; the policy itself then goes on by
        `momentum` x what it has moved since the reference was last it.
        """

    def reference_weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the first reference, as `weights` has the policy's."""

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor of the policy as (name in its checkpoint, full tensor), tied aliases included."""

    def save(self, folder: Path) -> None:
        """Write `policy/`, which transformers and vLLM load, and everything else the next step needs."""

    def load(self, folder: Path) -> None:
        """Continue from what `save` wrote, bit for bit."""
