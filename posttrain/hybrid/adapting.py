"""Publishing an adapter apart from its base, and the probe that says whether an engine serves it exactly."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor

from posttrain.errors import ModelError, PosttrainError
from posttrain.hybrid.parity import BOUNDS
from posttrain.learner import Learner
from posttrain.metrics import Report
from posttrain.models.adapters import Adapter, Noisy
from posttrain.rollout import Adaptable, Request, Sampler
from posttrain.types import Prompt, Rollout, Sampling

PROBE = Sampling(temperature=1.0, max_tokens=16)
PROMPTS = 4
"""Responses that two ways of publishing are compared by."""
UNPUBLISHED = -(2**31) + 1
"""The version of weights that the probe makes up: no policy has it."""


class Counted:
    """Passes streams of (name, tensor) on, and counts their bytes."""

    def __init__(self) -> None:
        self.bytes = 0
        self.dtype: torch.dtype | None = None

    def __call__(self, stream: Iterator[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in stream:
            self.bytes += tensor.numel() * tensor.itemsize
            self.dtype = tensor.dtype
            yield name, tensor


class Apart:
    """The engine is given the base once, and then the adapter of each version alone.

    Raises ModelError, with the reason, where learner or engine cannot, or where the probe finds that the engine's
    responses under an adapter are not those under merged weights.
    """

    def __init__(self, learner: Learner, sampler: Sampler) -> None:
        adapter = _adapter(learner)
        reason = getattr(sampler, "unadapted", "the engine takes whole weights by their names")
        if reason is not None:
            raise ModelError(reason)
        found, once, each = _probed(adapter, sampler)
        self.sent = 0
        self.words = (
            f"weights: the adapter apart, {each:,} bytes a version, after {once:,} of its base (probe: {found})"
        )

    def publish(self, learner: Learner, sampler: Sampler) -> Report:
        started, counted = time.perf_counter(), Counted()
        adapter, engine = _adapter(learner), cast(Adaptable, sampler)
        if not engine.based:
            engine.hold(counted(adapter.base()))
        engine.attach(counted(adapter.tensors()), learner.version)
        self.sent = counted.bytes
        return Report.sum("sync/seconds", time.perf_counter() - started)


def _adapter(learner: Learner) -> Adapter:
    give = getattr(learner, "adapter", None)
    if give is None:
        raise ModelError("the learner has no adapter to give")
    found: Adapter = give()
    return found


def _probed(adapter: Adapter, sampler: Sampler) -> tuple[str, int, int]:
    """Words about the agreement, and the bytes of the base and of an adapter; the sampler holds the base afterwards.
    Raises ModelError where an adapter of noise beside the base is not what it is when it is merged.
    """
    noisy, engine, once, each = Noisy(adapter), cast(Adaptable, sampler), Counted(), Counted()
    try:
        sampler.wake()
        sampler.load(noisy.merged(), UNPUBLISHED)
        merged = _drawn(sampler, "merged")
        engine.hold(once(adapter.base()))
        engine.attach(each(noisy.tensors()), UNPUBLISHED)
        apart = _drawn(sampler, "apart")
        engine.attach(((n, torch.zeros_like(t)) for n, t in noisy.tensors()), UNPUBLISHED)
        base = _drawn(sampler, "base")
    except PosttrainError as error:
        raise ModelError(f"the engine failed on an adapter that was made up: {error}") from error
    assert once.dtype is not None
    bound, gaps, share = BOUNDS[once.dtype], _gaps(merged, apart), 0.25
    said, mean, largest = sum(sum(r.mask) for r in merged), float(gaps.mean()), float(gaps.max())
    figures = f"mean gap {mean:.3g} nats, largest {largest:.3g} in {len(gaps)} of {said} tokens"
    if len(gaps) < share * said or not mean <= bound.mean or not largest <= bound.largest:
        raise ModelError(f"with an adapter apart the engine is not what it is with merged weights: {figures}")
    unmoved = _gaps(merged, base)
    if len(unmoved) == said and float(unmoved.max()) <= 2 * largest:
        raise ModelError(f"an adapter of noise changes nothing in the engine: {figures}")
    return figures, once.bytes, each.bytes


def _drawn(sampler: Sampler, purpose: str) -> list[Rollout]:
    asked = [tuple(2 + (7 * i + 11 * number) % 60 for i in range(8)) for number in range(PROMPTS)]
    prompts = [Prompt(id=f"probe/{number}", tokens=tokens, text="") for number, tokens in enumerate(asked)]
    return sampler.generate([Request(p, seed, f"probe-{purpose}") for seed, p in enumerate(prompts)], PROBE)


def _gaps(one: Sequence[Rollout], other: Sequence[Rollout]) -> Tensor:
    """Between the log-probabilities of the tokens, in nats, as far as both have said the same."""
    found = [0.0]
    for a, b in zip(one, other, strict=True):
        assert a.logprobs is not None
        assert b.logprobs is not None
        for t, said in enumerate(a.mask):
            if t >= len(b.tokens) or a.tokens[t] != b.tokens[t]:
                break
            if said:
                found.append(abs(a.logprobs[t] - b.logprobs[t]))
    return torch.tensor(found[1:] or [float("nan")], dtype=torch.float64)
