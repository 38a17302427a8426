"""Hidden states to log-probabilities of chosen tokens, without ever holding `[tokens, vocabulary]`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _ChosenLogprobs(torch.autograd.Function):
    """Forward and backward by chunks of tokens: logits exist for one chunk at a time, in both directions."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, chunk: int
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logprobs = torch.empty(len(targets), dtype=wide, device=hidden.device)
        normaliser, entropy = torch.empty_like(logprobs), torch.empty_like(logprobs)
        for start in range(0, len(targets), chunk):
            part = slice(start, start + chunk)
            logits = (hidden[part] @ weight.t()).to(wide).div_(temperature)
            normaliser[part] = logits.logsumexp(-1)
            logprobs[part] = logits.gather(1, targets[part, None])[:, 0] - normaliser[part]
            probabilities = (logits - normaliser[part, None]).exp_()
            entropy[part] = normaliser[part] - probabilities.mul_(logits).sum(-1)
        ctx.save_for_backward(hidden, weight, targets, normaliser)
        ctx.temperature, ctx.chunk = temperature, chunk
        ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, normaliser = ctx.saved_tensors
        grad, wide = grads[0], normaliser.dtype
        grad_hidden = torch.empty_like(hidden)
        grad_weight: Tensor | None = None
        for start in range(0, len(targets), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            logits = (hidden[part] @ weight.t()).to(wide).div_(ctx.temperature)
            slope = logits.sub_(normaliser[part, None]).exp_().neg_()
            slope.scatter_add_(1, targets[part, None], torch.ones_like(targets[part, None], dtype=wide))
            slope = slope.mul_((grad[part] / ctx.temperature)[:, None]).to(weight.dtype)
            grad_hidden[part] = slope @ weight
            if ctx.needs_input_grad[1]:
                # Chunks add up in fp32: in bf16 the sum would depend on how many chunks there are.
                step = (slope.t() @ hidden[part]).to(wide)
                grad_weight = step if grad_weight is None else grad_weight.add_(step)
        return grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype), None, None, None


def chosen_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, chunk: int
) -> tuple[Tensor, Tensor]:
    """Log-probability and entropy of the tempered policy at M positions.

    `hidden [M, H]` states that predict `targets [M]`, `weight [V, H]` of the output head; `temperature` divides the
    logits, as the engine does. Returns (`[M]` log-probabilities, `[M]` entropies without gradient), in fp32 at least.
    """
    out = _ChosenLogprobs.apply(hidden, weight, targets, temperature, chunk)
    return out[0], out[1]
