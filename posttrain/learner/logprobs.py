"""Hidden states to log-probabilities of chosen tokens, without ever holding `[tokens, vocabulary]`."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Extras(NamedTuple):
    """What is wanted beside log-probabilities and entropies: nothing that is not used is computed."""

    entropy: bool = False
    """A gradient through the entropies."""
    uniform: bool = False
    """Log-probabilities averaged over the vocabulary."""
    collision: bool = False
    """The log of the probability that two draws are the same token."""


class Chosen(NamedTuple):
    """Of M positions, `[M]` each: log-probability of the target, entropy, and what else was asked for."""

    logprobs: Tensor
    entropy: Tensor
    uniform: Tensor
    collision: Tensor


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
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, chunk: int, extras: Extras
    ) -> tuple[Tensor, ...]:
        logits = _Logits(hidden, weight, temperature, chunk)
        logprobs = torch.empty(len(targets), dtype=logits.wide, device=hidden.device)
        normaliser, entropy = torch.empty_like(logprobs), torch.empty_like(logprobs)
        uniform, collision = torch.zeros_like(logprobs), torch.zeros_like(logprobs)
        for start in range(0, len(targets), chunk):
            part = slice(start, start + chunk)
            table = logits(part)
            logprobs[part] = table.gather(1, targets[part, None])[:, 0]
            if extras.uniform:
                uniform[part] = table.mean(-1)
            largest = table.amax(-1, keepdim=True)
            # With x = logit - largest: log Z = log sum exp x, entropy = log Z - sum x exp x / Z.
            shifted = table.sub_(largest)
            weights = shifted.exp()
            total = weights.sum(-1)
            if extras.collision:
                collision[part] = weights.square().sum(-1).log() - 2 * total.log()
            entropy[part] = total.log() - weights.mul_(shifted).sum(-1) / total
            normaliser[part] = total.log() + largest[:, 0]
        ctx.save_for_backward(hidden, weight, targets, normaliser, entropy)
        ctx.temperature, ctx.chunk, ctx.extras = temperature, chunk, extras
        ctx.mark_non_differentiable(*(() if extras.entropy else (entropy,)), uniform, collision)
        return logprobs.sub_(normaliser), entropy, uniform.sub_(normaliser), collision

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, targets, normaliser, entropy = ctx.saved_tensors
        grad, logits = grads[0], _Logits(hidden, weight, ctx.temperature, ctx.chunk)
        gradients = _Gradients(hidden, weight, ctx.needs_input_grad[1])
        for start in range(0, len(targets), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            table = logits(part).sub_(normaliser[part, None])
            # d H / d logit = -p (log p + H)
            seek = (table + entropy[part, None]).mul_(grads[1][part, None]) if ctx.extras.entropy else None
            slope = table.exp_().neg_()
            if seek is not None:
                seek.mul_(slope)
            slope.mul_(grad[part, None])
            slope.scatter_add_(1, targets[part, None], grad[part, None].to(slope.dtype))
            if seek is not None:
                slope.add_(seek)
            gradients.add(part, slope.div_(ctx.temperature), logits.product)
        return gradients.hidden, gradients.weight, None, None, None, None


class _Gradients:
    """Gradients of hidden states and head, gathered from the slopes of one chunk of logits after another."""

    def __init__(self, hidden: Tensor, weight: Tensor, wants_weight: bool) -> None:
        self.states, self.head, self.wants_weight = hidden, weight, wants_weight
        self.hidden = torch.empty_like(hidden)
        self._sum: Tensor | None = None

    def add(self, part: slice, slope: Tensor, buffer: Tensor) -> None:
        """`slope [chunk, V]` is d loss / d logits before the temperature; `buffer` has the head's dtype."""
        narrow = slope if slope.dtype == self.head.dtype else buffer[: len(slope)].copy_(slope)
        self.hidden[part] = narrow @ self.head
        if self.wants_weight:
            # Chunks add up in fp32: in bf16 the sum would depend on how many chunks there are.
            step = (narrow.t() @ self.states[part]).to(slope.dtype)
            self._sum = step if self._sum is None else self._sum.add_(step)

    @property
    def weight(self) -> Tensor | None:
        return None if self._sum is None else self._sum.to(self.head.dtype)


class _ExactKl(torch.autograd.Function):
    """KL(policy || reference) over the whole vocabulary, by chunks of tokens."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, other: Tensor, other_weight: Tensor, temperature: float, chunk: int
    ) -> Tensor:
        policy, reference = (
            _Logits(hidden, weight, temperature, chunk),
            _Logits(other, other_weight, temperature, chunk),
        )
        out = torch.empty(len(hidden), dtype=policy.wide, device=hidden.device)
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            table = policy(part).log_softmax(-1)
            out[part] = (table.exp() * (table - reference(part).log_softmax(-1))).sum(-1)
        ctx.save_for_backward(hidden, weight, other, other_weight, out)
        ctx.temperature, ctx.chunk = temperature, chunk
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, other, other_weight, out = ctx.saved_tensors
        policy = _Logits(hidden, weight, ctx.temperature, ctx.chunk)
        reference = _Logits(other, other_weight, ctx.temperature, ctx.chunk)
        gradients = _Gradients(hidden, weight, ctx.needs_input_grad[1])
        for start in range(0, len(hidden), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            table = policy(part).log_softmax(-1)
            # d KL / d logit = p (log p - log q - KL)
            slope = (table - reference(part).log_softmax(-1)).sub_(out[part, None]).mul_(table.exp())
            gradients.add(part, slope.mul_(grads[0][part, None] / ctx.temperature), policy.product)
        return gradients.hidden, gradients.weight, None, None, None, None


def chosen_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, chunk: int, extras: Extras | None = None
) -> Chosen:
    """Log-probability and entropy of the tempered policy at M positions.

    `hidden [M, H]` states that predict `targets [M]`, `weight [V, H]` of the output head; `temperature` divides the
    logits, as the engine does. What is returned is in fp32 at least.
    """
    return Chosen(*_ChosenLogprobs.apply(hidden, weight, targets, temperature, chunk, extras or Extras()))


def exact_kl(
    hidden: Tensor, weight: Tensor, other: Tensor, other_weight: Tensor, temperature: float, chunk: int
) -> Tensor:
    """`[M]` KL(policy || reference) of the tempered next-token distributions, with the policy's gradient.

    `hidden [M, H]` and `weight [V, H]` are the policy's, `other [M, H']` and `other_weight [V, H']` the reference's.
    Exact for each state; how the states come about is not differentiated.
    """
    return _ExactKl.apply(hidden, weight, other, other_weight, temperature, chunk)
