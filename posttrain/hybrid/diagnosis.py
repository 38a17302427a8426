"""Why engine and trainer disagree: each known fault is a hypothesis that predicts the engine's numbers, and the one
that does is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from posttrain.learner import Learner
from posttrain.types import Rollout

EXPLAINED = 0.2
"""A hypothesis is believed when what it leaves of the gap is less than this share."""
ROUNDED = 0.75
"""The same for another dtype: two computations in it share the size of their rounding, not every digit."""

TEMPERATURES = [round(0.1 + 0.05 * i, 2) for i in range(39)]
TOP_P = [0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.92, 0.95, 0.97, 0.98, 0.99]
TOP_K = [*range(1, 65), 80, 100, 128, 200, 256]
MIN_P = [0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3]


@dataclass(frozen=True)
class Hypothesis:
    """A named fault and the mean absolute gap to the engine that it would leave."""

    cause: str
    left: float
    enough: float = EXPLAINED
    """The largest share of the gap that it may leave and be believed."""


def probable_cause(learner: Learner, rollouts: Sequence[Rollout], original_head: Callable[[], Tensor | None]) -> str:
    """The fault that best predicts what the engine said of `rollouts`, in words; or that no known one does."""
    engine = torch.cat([_said(r, torch.tensor(r.logprobs, dtype=torch.float64)) for r in rollouts])
    logits = torch.cat([learner.logits(r) for r in rollouts]).double()
    ids = torch.cat([_said(r, torch.tensor(r.tokens)) for r in rollouts])
    temperature = learner.temperature

    def left(table: Tensor) -> float:
        return float((table.log_softmax(-1).gather(1, ids[:, None])[:, 0] - engine).abs().mean())

    present = left(logits / temperature)
    found = [
        *_temperature(logits, temperature, left),
        *_filters(logits / temperature, left),
        *_template(learner, rollouts, left),
        *_head(learner, rollouts, original_head, left),
        *_dtype(learner, rollouts, left, logits.log_softmax(-1).gather(1, ids[:, None])[:, 0], present),
    ]
    best = min(found, key=lambda h: (h.left > h.enough * present, h.left))
    if best.left <= best.enough * present:
        return f"{best.cause} (leaves {best.left:.2g} of a mean gap of {present:.2g} nats)"
    return (
        f"none of the known ones (the nearest, {best.cause.split(':')[0]}, leaves {best.left:.2g} of {present:.2g} "
        "nats): the engine may hold other weights, or compute this architecture differently"
    )


def _said(rollout: Rollout, values: Tensor) -> Tensor:
    return values[torch.tensor(rollout.mask)]


def _temperature(logits: Tensor, temperature: float, left: Callable[[Tensor], float]) -> Iterator[Hypothesis]:
    for value in TEMPERATURES:
        if abs(value - temperature) > 0.01:
            yield Hypothesis(
                f"temperature: the engine reports log-probabilities at {value:g}, the trainer at {temperature:g}",
                left(logits / value),
            )


def _filters(tempered: Tensor, left: Callable[[Tensor], float]) -> Iterator[Hypothesis]:
    """Filters keep a head of the sorted distribution and renormalise it."""
    ordered = tempered.sort(-1, descending=True).values
    mass = ordered.softmax(-1)
    before = mass.cumsum(-1) - mass
    text = "filters: the engine renormalises over what {} keeps, the trainer over the whole vocabulary"
    for k in [k for k in TOP_K if k < tempered.shape[1]]:
        yield Hypothesis(text.format(f"top_k {k}"), left(_cut(tempered, ordered[:, k - 1])))
    for p in TOP_P:
        last = (before < p).sum(-1) - 1
        yield Hypothesis(text.format(f"top_p {p:g}"), left(_cut(tempered, ordered.gather(1, last[:, None])[:, 0])))
    for m in MIN_P:
        floor = ordered[:, 0] + torch.tensor(m, dtype=tempered.dtype).log()
        yield Hypothesis(text.format(f"min_p {m:g}"), left(_cut(tempered, floor)))


def _cut(table: Tensor, floor: Tensor) -> Tensor:
    return table.masked_fill(table < floor[:, None], float("-inf"))


def _template(learner: Learner, rollouts: Sequence[Rollout], left: Callable[[Tensor], float]) -> Iterator[Hypothesis]:
    """The engine may have seen the prompt with its first token twice, without it, or with the end of it missing."""
    for what, change in (
        ("with its first token doubled (two BOS?)", lambda prompt: (prompt[0], *prompt)),
        ("without its first token (no BOS?)", lambda prompt: prompt[1:]),
        ("without its last token", lambda prompt: prompt[:-1]),
        ("without its last two tokens", lambda prompt: prompt[:-2]),
        ("without its last three tokens", lambda prompt: prompt[:-3]),
    ):
        changed = [_reprompted(r, change) for r in rollouts]
        if all(r is not None for r in changed):
            logits = torch.cat([learner.logits(r) for r in changed if r is not None]).double()
            yield Hypothesis(f"template: the engine saw the prompt {what}", left(logits / learner.temperature))


def _reprompted(rollout: Rollout, change: Callable[[tuple[int, ...]], tuple[int, ...]]) -> Rollout | None:
    said = rollout.mask.index(True)
    prompt = change(rollout.tokens[:said])
    if not prompt:
        return None
    mask = (False,) * len(prompt) + rollout.mask[said:]
    return replace(rollout, tokens=prompt + rollout.tokens[said:], mask=mask, logprobs=None, versions=None)


def _head(
    learner: Learner,
    rollouts: Sequence[Rollout],
    original_head: Callable[[], Tensor | None],
    left: Callable[[Tensor], float],
) -> Iterator[Hypothesis]:
    head = original_head()
    if head is not None:
        logits = torch.cat([learner.logits(r, head=head) for r in rollouts]).double()
        yield Hypothesis(
            "tied head: the engine's output head is still the one of the checkpoint it started from",
            left(logits / learner.temperature),
        )


def _dtype(
    learner: Learner,
    rollouts: Sequence[Rollout],
    left: Callable[[Tensor], float],
    own: Tensor,
    present: float,
) -> Iterator[Hypothesis]:
    """`own [M]`: the trainer's untempered log-probabilities. Rounding must move them about as far as the gap is."""
    ids = torch.cat([_said(r, torch.tensor(r.tokens)) for r in rollouts])
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        if dtype == learner.dtype:
            continue
        logits = torch.cat([learner.logits(r, dtype=dtype) for r in rollouts]).double()
        moved = float((logits.log_softmax(-1).gather(1, ids[:, None])[:, 0] - own).abs().mean())
        if present / 3 <= moved <= 3 * present:
            yield Hypothesis(
                f"dtype: the engine computes in {str(dtype).removeprefix('torch.')}, the trainer in "
                f"{str(learner.dtype).removeprefix('torch.')}",
                left(logits / learner.temperature),
                ROUNDED,
            )
