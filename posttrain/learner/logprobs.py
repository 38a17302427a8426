"""Hidden states to log-probabilities of chosen tokens, without ever holding `[tokens, vocabulary]`."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor

from posttrain.learner.sums import add_into
from posttrain.logits import rows_of_a_block


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
        self.height = rows_of_a_block(hidden.device.type, len(weight))
        self._table = torch.empty(
            0 if self.wide == weight.dtype else min(self.height, rows),
            len(weight),
            dtype=self.wide,
            device=hidden.device,
        )

    def __call__(self, part: slice) -> Iterator[tuple[slice, Tensor, Tensor]]:
        """Of a chunk, block by block: which positions, their logits `[block, V]` in fp32 at least, overwritten by the
        next block's, and where in `product` they stand, for slopes to be written there.
        """
        count = len(self.hidden[part])
        torch.mm(self.hidden[part], self.weight.t(), out=self.product[:count])
        for at in range(0, count, self.height):
            rows = self.product[at : min(at + self.height, count)]
            table = rows if self.wide == rows.dtype else self._table[: len(rows)].copy_(rows)
            if self.temperature != 1.0:
                table.div_(self.temperature)
            yield slice(part.start + at, part.start + at + len(rows)), table, rows


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
        spare: Tensor | None = None
        for part, table, _ in chain.from_iterable(map(logits, _chunks(len(targets), chunk))):
            logprobs[part] = table.gather(1, targets[part, None])[:, 0]
            if extras.uniform:
                uniform[part] = table.mean(-1)
            largest = table.amax(-1, keepdim=True)
            # With x = logit - largest: log Z = log sum exp x, entropy = log Z - sum x exp x / Z.
            shifted = table.sub_(largest)
            spare = torch.empty_like(table) if spare is None else spare
            weights = torch.exp(shifted, out=spare[: len(table)])
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
        for chunk in _chunks(len(targets), ctx.chunk):
            for part, table, rows in logits(chunk):
                table.sub_(normaliser[part, None])
                # d H / d logit = -p (log p + H)
                seek = (table + entropy[part, None]).mul_(grads[1][part, None]) if ctx.extras.entropy else None
                slope = table.exp_().neg_()
                if seek is not None:
                    seek.mul_(slope)
                slope.mul_(grad[part, None])
                slope.scatter_add_(1, targets[part, None], grad[part, None].to(slope.dtype))
                if seek is not None:
                    slope.add_(seek)
                _put(rows, slope.div_(ctx.temperature) if ctx.temperature != 1.0 else slope)
            gradients.add(chunk, logits.product[: len(hidden[chunk])])
        return gradients.hidden, gradients.weight, None, None, None, None


def _chunks(count: int, chunk: int) -> Iterator[slice]:
    return (slice(start, start + chunk) for start in range(0, count, chunk))


def _put(rows: Tensor, slope: Tensor) -> None:
    """Slopes in the head's dtype, where the logits stood."""
    if slope.data_ptr() != rows.data_ptr():
        rows.copy_(slope)


class _Gradients:
    """Gradients of hidden states and head, gathered from the slopes of one chunk of logits after another."""

    def __init__(self, hidden: Tensor, weight: Tensor, wants_weight: bool) -> None:
        self.states, self.head, self.wants_weight = hidden, weight, wants_weight
        self.wide = torch.promote_types(hidden.dtype, torch.float32)
        self.hidden = torch.empty_like(hidden)
        self._sum: Tensor | None = None

    def add(self, part: slice, slope: Tensor) -> None:
        """`slope [chunk, V]` is d loss / d logits before the temperature, in the head's dtype."""
        self.hidden[part] = slope @ self.head
        if self.wants_weight:
            # Chunks add up in fp32: in bf16 the sum would depend on how many chunks there are.
            step = slope.t() @ self.states[part]
            if self._sum is None:
                self._sum = step.to(self.wide)
            else:
                add_into(self._sum, step)

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
        for span in _chunks(len(hidden), chunk):
            for (part, own, _), (_, others, _) in zip(policy(span), reference(span), strict=True):
                table = own.log_softmax(-1)
                out[part] = (table.exp() * (table - others.log_softmax(-1))).sum(-1)
        ctx.save_for_backward(hidden, weight, other, other_weight, out)
        ctx.temperature, ctx.chunk = temperature, chunk
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, other, other_weight, out = ctx.saved_tensors
        policy = _Logits(hidden, weight, ctx.temperature, ctx.chunk)
        reference = _Logits(other, other_weight, ctx.temperature, ctx.chunk)
        gradients = _Gradients(hidden, weight, ctx.needs_input_grad[1])
        for chunk in _chunks(len(hidden), ctx.chunk):
            for (part, own, rows), (_, others, _) in zip(policy(chunk), reference(chunk), strict=True):
                table = own.log_softmax(-1)
                # d KL / d logit = p (log p - log q - KL)
                slope = (table - others.log_softmax(-1)).sub_(out[part, None]).mul_(table.exp())
                _put(rows, slope.mul_(grads[0][part, None] / ctx.temperature))
            gradients.add(chunk, policy.product[: len(hidden[chunk])])
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
