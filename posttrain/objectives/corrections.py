"""Weights for the gap between the engine that sampled and the trainer that learns. Never differentiated."""

import torch
from torch import Tensor


def none(gap: Tensor) -> Tensor:
    """`[N]` trainer minus engine log-probabilities to `[N]` ones: trust the engine."""
    return torch.ones_like(gap)


def truncated_importance(gap: Tensor, importance_cap: float = 2.0) -> Tensor:
    """`[N]` trainer minus engine log-probabilities to `[N]` weights min(exp(gap), cap).

    Token-level truncated importance sampling between the sampling and the learning engine (IMPALA's truncation,
    1802.01561, with the engine's distribution as behaviour policy).
    """
    return gap.exp().clamp(max=importance_cap)
