"""Hidden states to log-probabilities of chosen tokens, without ever holding `[tokens, vocabulary]`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class _Logits:
    """Tempered logits of one chunk of positions after another, in buffers that are used again.

    Fresh memory for every chunk would cost as much time as the arithmetic on a CPU.
    """

    def __init__(self, hidden: Tensor, weight: Tensor, temperature: float, chunk: int) -> None:
        self.hidden, self.weight, self.temperature = hidden, weight, temperature
        self.wide = torch.promote_types(hidden.dtype, torch.float32)
        rows = min(chunk, len(hidden))
        self.product = torch.empty(rows, len(weight), dtype=weight.dtype, device=hidden.device)
        self.table = self.product if self.wide == weight.dtype else torch.empty_like(self.product, dtype=self.wide)

    def __call__(self, part: slice) -> Tensor:
        """`[chunk, V]` in fp32 at least; overwritten by the next call."""
        count = len(self.hidden[part])
        torch.mm(self.hidden[part], self.weight.t(), out=self.product[:count])
        table = self.table[:count]
        if self.table is not self.product:
            table.copy_(self.product[:count])
        return table if self.temperature == 1.0 else table.div_(self.temperature)


class _ChosenLogprobs(torch.autograd.Function):
    """Forward and backward by chunks of tokens: logits exist for one chunk at a time, in both directions."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, chunk: int
    ) -> tuple[Tensor, Tensor]:
        logits = _Logits(hidden, weight, temperature, chunk)
        logprobs = torch.empty(len(targets), dtype=logits.wide, device=hidden.device)
        normaliser, entropy = torch.empty_like(logprobs), torch.empty_like(logprobs)
        for start in range(0, len(targets), chunk):
            part = slice(start, start + chunk)
            table = logits(part)
            logprobs[part] = table.gather(1, targets[part, None])[:, 0]
            largest = table.amax(-1, keepdim=True)
            # With x = logit - largest: log Z = log sum exp x, entropy = log Z - sum x exp x / Z.
            shifted = table.sub_(largest)
            weights = shifted.exp()
            total = weights.sum(-1)
            entropy[part] = total.log() - weights.mul_(shifted).sum(-1) / total
            normaliser[part] = total.log() + largest[:, 0]
        ctx.save_for_backward(hidden, weight, targets, normaliser)
        ctx.temperature, ctx.chunk = temperature, chunk
        ctx.mark_non_differentiable(entropy)
        return logprobs.sub_(normaliser), entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, normaliser = ctx.saved_tensors
        grad, logits = grads[0], _Logits(hidden, weight, ctx.temperature, ctx.chunk)
        grad_hidden = torch.empty_like(hidden)
        grad_weight: Tensor | None = None
        for start in range(0, len(targets), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            slope = logits(part).sub_(normaliser[part, None]).exp_().neg_()
            slope.scatter_add_(1, targets[part, None], torch.ones_like(targets[part, None], dtype=logits.wide))
            slope.mul_((grad[part] / ctx.temperature)[:, None])
            narrow = slope if slope.dtype == weight.dtype else logits.product[: len(slope)].copy_(slope)
            grad_hidden[part] = narrow @ weight
            if ctx.needs_input_grad[1]:
                # Chunks add up in fp32: in bf16 the sum would depend on how many chunks there are.
                step = (narrow.t() @ hidden[part]).to(logits.wide)
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
