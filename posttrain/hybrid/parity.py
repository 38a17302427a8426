"""The parity gate: engine and trainer must give the sampled tokens the same log-probabilities, or training stops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from posttrain.errors import ParityError
from posttrain.hybrid.diagnosis import probable_cause
from posttrain.learner import Learner
from posttrain.types import Rollout


@dataclass(frozen=True)
class Bound:
    """What two correct engines may differ by in a dtype, per sampled token, in nats."""

    mean: float
    largest: float


BOUNDS = {
    torch.float64: Bound(1e-6, 1e-5),
    torch.float32: Bound(1e-4, 1e-3),
    torch.bfloat16: Bound(0.1, 2.0),
    torch.float16: Bound(0.02, 0.5),
}


class ParityGate:
    """Compares what the engine said of its tokens with what the trainer says under the same weights."""

    def __init__(self, learner: Learner, dtype: torch.dtype, original_head: Callable[[], Tensor | None]) -> None:
        self.learner, self.bound, self.original_head = learner, BOUNDS[dtype], original_head

    def check(self, rollouts: Sequence[Rollout], logprobs: Sequence[Tensor], step: int) -> None:
        """`logprobs` are the trainer's, `[T]` per rollout. Raises ParityError with the ten worst tokens and the
        probable cause when the mean or the largest absolute gap is beyond the dtype's bound.
        """
        gaps = [self._gaps(rollout, values) for rollout, values in zip(rollouts, logprobs, strict=True)]
        flat = torch.cat([g[torch.tensor(r.mask)] for g, r in zip(gaps, rollouts, strict=True)])
        if not len(flat):
            return
        mean, largest = float(flat.abs().mean()), float(flat.abs().max())
        if mean <= self.bound.mean and largest <= self.bound.largest:
            return
        order = sorted(range(len(rollouts)), key=lambda i: -float(gaps[i].abs().mean()))
        cause = probable_cause(self.learner, [rollouts[i] for i in order[:4]], self.original_head)
        raise ParityError(
            f"step {step}: engine and trainer disagree about the sampled tokens: mean gap {mean:.3g} nats (bound "
            f"{self.bound.mean:g}), largest {largest:.3g} (bound {self.bound.largest:g}); nothing was updated.\n"
            f"Probable cause: {cause}\n{worst_tokens(rollouts, gaps)}"
        )

    def _gaps(self, rollout: Rollout, logprobs: Tensor) -> Tensor:
        assert rollout.logprobs is not None
        mask = torch.tensor(rollout.mask)
        gap = torch.tensor(rollout.logprobs, dtype=torch.float64) - logprobs.double()
        return torch.where(mask, gap, torch.zeros_like(gap))


def worst_tokens(rollouts: Sequence[Rollout], gaps: Sequence[Tensor], count: int = 10) -> str:
    """A table of the tokens with the largest gaps: which roll-out, where, which id, both log-probabilities."""
    found = [(abs(float(gap[t])), i, t) for i, gap in enumerate(gaps) for t in range(len(gap)) if rollouts[i].mask[t]]
    lines = ["  roll-out  token      id   engine  trainer      gap"]
    for _, i, t in sorted(found, reverse=True)[:count]:
        engine = (rollouts[i].logprobs or ())[t]
        gap = float(gaps[i][t])
        lines.append(f"  {i:8d} {t:6d} {rollouts[i].tokens[t]:7d} {engine:8.4f} {engine - gap:8.4f} {gap:8.4f}")
    return "\n".join(lines)
