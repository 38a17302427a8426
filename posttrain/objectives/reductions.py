"""From per-token losses of a micro-batch to its share of the optimiser step's loss.

The denominators are the whole step's, computed before the first backward pass and passed in, so that the sum over
micro-batches does not depend on how they were cut.
"""

import torch
from torch import Tensor


def per_segment(values: Tensor, mask: Tensor, segment: Tensor) -> tuple[Tensor, Tensor]:
    """`[N]` values to `[S]` sums over masked tokens and `[S]` counts of them."""
    size = int(segment.max()) + 1 if len(segment) else 0
    weight = mask.to(values.dtype)
    zeros = torch.zeros(size, dtype=values.dtype, device=values.device)
    return zeros.scatter_add(0, segment, values * weight), zeros.scatter_add(0, segment, weight)


def token_mean(loss: Tensor, mask: Tensor, segment: Tensor, total_tokens: int, total_sequences: int) -> Tensor:
    """`[N]` to `[]`: every token of the step weighs the same (DAPO, 2503.14476, eq. 8)."""
    return (loss * mask.to(loss.dtype)).sum() / max(total_tokens, 1)


def sequence_mean(loss: Tensor, mask: Tensor, segment: Tensor, total_tokens: int, total_sequences: int) -> Tensor:
    """`[N]` to `[]`: mean over each response's tokens, then over responses (GRPO, 2402.03300, eq. 3)."""
    total, count = per_segment(loss, mask, segment)
    return (total / count.clamp(min=1)).sum() / max(total_sequences, 1)


def sequence_sum(loss: Tensor, mask: Tensor, segment: Tensor, total_tokens: int, total_sequences: int) -> Tensor:
    """`[N]` to `[]`: a response is one action, so its tokens add up; mean over responses (RLOO, 2402.14740)."""
    return (loss * mask.to(loss.dtype)).sum() / max(total_sequences, 1)


def constant(
    loss: Tensor, mask: Tensor, segment: Tensor, total_tokens: int, total_sequences: int, constant_length: int
) -> Tensor:
    """`[N]` to `[]`: sum over tokens / (length x responses); no length bias (Dr. GRPO, 2503.20783)."""
    return (loss * mask.to(loss.dtype)).sum() / (constant_length * max(total_sequences, 1))


def group_mean(loss: Tensor, total_groups: int) -> Tensor:
    """`[K]` losses of whole groups to `[]`: every group of the step weighs the same."""
    return loss.sum() / max(total_groups, 1)
