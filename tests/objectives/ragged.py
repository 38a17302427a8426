"""Micro-batches as a stranger would make them: ragged, masked anyhow, with sequences of one token or of none."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import NamedTuple

import numpy
import torch
from hypothesis import strategies as st
from torch import Tensor

from posttrain.objectives.tokens import Tokens


class Batch(NamedTuple):
    log_ratio: Tensor
    advantages: Tensor
    tokens: Tokens

    def masked(self) -> list[int]:
        return self.tokens.mask.nonzero().squeeze(-1).tolist()

    def members(self, i: int) -> list[int]:
        """The masked tokens of the sequence of token i."""
        return [j for j in self.masked() if self.tokens.segment[j] == self.tokens.segment[i]]


def build(lengths: list[int], mask: list[bool], seed: int, scale: float, shared: bool = False) -> Batch:
    """Values of one seed; old and new probabilities stay below 1; some log-ratios and advantages are exactly 0.

    With `shared`, a sequence's tokens have one advantage.
    """
    random = numpy.random.default_rng(seed)
    total = sum(lengths)
    segment = numpy.repeat(numpy.arange(len(lengths)), lengths)
    log_ratio = random.normal(size=total) * scale * (random.random(total) > 0.1)
    logprobs = numpy.minimum(log_ratio, 0) - random.exponential(size=total)
    if shared:
        advantages = (random.normal(size=len(lengths)) * (random.random(len(lengths)) > 0.1))[segment]
    else:
        advantages = random.normal(size=total) * (random.random(total) > 0.1)
    wide = [torch.tensor(v, dtype=torch.float64) for v in (log_ratio, logprobs, advantages, random.normal(size=total))]
    tokens = Tokens(wide[1], torch.tensor(mask, dtype=torch.bool), torch.tensor(segment), wide[3])
    return Batch(wide[0], wide[2], tokens)


@st.composite
def batches(draw: st.DrawFn, shared: bool = False) -> Batch:
    lengths = draw(st.lists(st.integers(1, 7), min_size=1, max_size=5))
    mask = draw(st.lists(st.booleans(), min_size=sum(lengths), max_size=sum(lengths)))
    return build(lengths, mask, draw(st.integers(0, 2**32 - 1)), draw(st.sampled_from([0.05, 0.3, 1.0])), shared)


def garbage(batch: Batch) -> Batch:
    """The same batch with anything finite outside the mask."""
    log_ratio, advantages, tokens = batch
    mask = tokens.mask
    assert tokens.uniform is not None
    tokens = tokens._replace(logprobs=tokens.logprobs.where(mask, -1e6), uniform=tokens.uniform.where(mask, 1e6))
    return Batch(log_ratio.where(mask, 30.0), advantages.where(mask, 1e6), tokens)


def call(function: Callable[..., Tensor], batch: Batch, **parameters: float) -> Tensor:
    """Pass the tokens to a formula that asks for them."""
    if "tokens" in inspect.signature(function).parameters:
        return function(batch.log_ratio, batch.advantages, batch.tokens, **parameters)
    return function(batch.log_ratio, batch.advantages, **parameters)


def measured(function: Callable[..., Tensor], batch: Batch, **parameters: float) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of the masked tokens, and the gradients of their sum in the log-ratios and in the log-probabilities."""
    log_ratio = batch.log_ratio.clone().requires_grad_()
    logprobs = batch.tokens.logprobs.clone().requires_grad_()
    loss = call(function, Batch(log_ratio, batch.advantages, batch.tokens._replace(logprobs=logprobs)), **parameters)
    assert loss.shape == log_ratio.shape
    assert bool(loss.isfinite().all())
    total = (loss * batch.tokens.mask).sum() + 0 * (log_ratio.sum() + logprobs.sum())
    by_ratio, by_logprob = torch.autograd.grad(total, (log_ratio, logprobs))
    return loss.detach()[batch.tokens.mask], by_ratio, by_logprob


def policy_gradient(function: Callable[..., Tensor], batch: Batch, **parameters: float) -> Tensor:
    """The gradient in the policy's log-probabilities, where the log-ratio is the difference to the previous ones."""
    _, by_ratio, by_logprob = measured(function, batch, **parameters)
    return by_ratio + by_logprob


Slow = Callable[..., tuple[float, float, float]]


def agrees(function: Callable[..., Tensor], slow: Slow, batch: Batch, parameters: dict[str, float]) -> None:
    """One masked token at a time: `slow` knows its value and its derivatives in log-ratio and log-probability."""
    loss, by_ratio, by_logprob = measured(function, batch, **parameters)
    rows = {i: slow(batch, i, **parameters) for i in batch.masked()}
    nothing = (0.0, 0.0, 0.0)
    found = [loss.tolist(), by_ratio.tolist(), by_logprob.tolist()]
    everywhere = range(len(by_ratio))
    expected = [
        [row[0] for row in rows.values()],
        [rows.get(i, nothing)[1] for i in everywhere],
        [rows.get(i, nothing)[2] for i in everywhere],
    ]
    for have, want in zip(found, expected, strict=True):
        numpy.testing.assert_allclose(have, want, rtol=1e-9, atol=1e-12)


def ignores_garbage(function: Callable[..., Tensor], batch: Batch, parameters: dict[str, float]) -> None:
    """What stands outside the mask changes neither values nor gradients by a bit."""
    for clean, dirty in zip(
        measured(function, batch, **parameters), measured(function, garbage(batch), **parameters), strict=True
    ):
        assert clean.tolist() == dirty.tolist()
