"""Micro-batches to accumulated gradients, the same whatever the cut, for losses of tokens and of whole updates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from posttrain.algorithms.loss import batch_loss
from posttrain.algorithms.row import Algorithm
from posttrain.algorithms.scorer_loss import scorer_loss
from posttrain.algorithms.state import Coefficients
from posttrain.data.packing import join
from posttrain.errors import TrainingError
from posttrain.learner.sharding import Sharding
from posttrain.learner.sharing import read, turns
from posttrain.metrics import Report
from posttrain.types import Batch, Scored
from posttrain.world import everyone

Score = Callable[[Batch], Scored]
"""The learner's forward pass, with gradient."""
CONSTANT = ("uniform", "collision")
"""What is scored without gradient."""
Backward = Callable[[Tensor], None]
"""Adds the gradient of a scalar."""


@dataclass(frozen=True)
class Passes:
    """How a learner passes over its micro-batches."""

    score: Score
    backward: Backward
    sharding: Sharding
    release: Callable[[], None] = lambda: None
    """Called after passes that no backward pass follows."""
    skips: bool = True
    """Whether micro-batches that have no gradient are read without a backward pass."""


def accumulate(
    passes: Passes, batches: Sequence[Batch], algorithm: Algorithm, coefficients: Coefficients
) -> tuple[Report, list[Tensor]]:
    """Add the gradient of one optimiser step's loss over all its micro-batches, of which each rank takes its share.

    Returns what to report and the `[N]` log-probabilities of each micro-batch. An objective that sees the whole update
    at once takes two passes: first everything without gradient, then the loss and its slope at every token, then each
    micro-batch again with these slopes as coefficients. Raises TrainingError for a loss that is not finite.
    """
    if algorithm.whole and len(batches) > 1:
        return _in_two_passes(passes, batches, algorithm, coefficients)

    def told(batch: Batch) -> tuple[Tensor, tuple[Report, Tensor]]:
        scored = passes.score(batch)
        loss, about = _loss(algorithm, scored, batch, coefficients)
        return loss, (about, scored.logprobs.detach())

    learnt = [not algorithm.silent_at_zero or bool(b.advantages[b.mask].any()) for b in batches]
    active, silent = _divided(learnt, passes)
    found = {}
    if silent:
        with torch.no_grad():
            found = dict(
                zip(silent, read(passes.sharding, [batches[i] for i in silent], lambda b: told(b)[1]), strict=True)
            )
        passes.release()
    own = {}
    for turn in turns(passes.sharding, [batches[i] for i in active]):
        loss, about = told(turn.batch)
        passes.backward(loss if turn.number is not None else 0.0 * loss)
        if turn.number is not None:
            own[turn.number] = about
    found |= dict(zip(active, everyone(passes.sharding.world, own), strict=True))
    each = [found[i] for i in range(len(batches))]
    return sum((about for about, _ in each), Report()), [logprobs for _, logprobs in each]


def _divided(learnt: Sequence[bool], passes: Passes) -> tuple[list[int], list[int]]:
    """Numbers of the micro-batches with a backward pass, and of those without. One at least has it: an optimiser moves
    parameters whose gradient is 0 too, by its momentum.
    """
    active = [i for i, learns in enumerate(learnt) if learns or not passes.skips] or [0]
    return active, [i for i in range(len(learnt)) if i not in active]


def _in_two_passes(
    passes: Passes, batches: Sequence[Batch], algorithm: Algorithm, coefficients: Coefficients
) -> tuple[Report, list[Tensor]]:
    with torch.no_grad():
        first = read(passes.sharding, batches, passes.score)
    passes.release()
    whole, together = join(batches), _joined(first)
    loss, report = _loss(algorithm, together, whole, coefficients)
    leaves = {name: leaf for name, leaf in _tensors(together).items() if leaf.requires_grad}
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    sizes = [len(b.tokens) for b in batches]
    slopes = {n: g.split(sizes) for n, g in zip(leaves, found, strict=True) if g is not None}
    active, _ = _divided([any(bool(p[i].any()) for p in slopes.values()) for i in range(len(batches))], passes)
    for turn in turns(passes.sharding, [batches[i] for i in active]):
        again = _tensors(passes.score(turn.batch))
        at, share = (active[turn.number], 1.0) if turn.number is not None else (active[-1], 0.0)
        passes.backward(share * torch.stack([(again[name] * parts[at]).sum() for name, parts in slopes.items()]).sum())
    return report, [one.logprobs for one in first]


def _tensors(scored: Scored) -> dict[str, Tensor]:
    return {f.name: value for f in fields(Scored) if (value := getattr(scored, f.name)) is not None}


def _joined(parts: Sequence[Scored]) -> Scored:
    """What was said of all micro-batches as one, as leaves of a new graph."""
    joined = {name: torch.cat([_tensors(p)[name] for p in parts]) for name in _tensors(parts[0])}
    return Scored(**{n: v if n in CONSTANT else v.requires_grad_() for n, v in joined.items()})


def _loss(algorithm: Algorithm, scored: Scored, batch: Batch, coefficients: Coefficients) -> tuple[Tensor, Report]:
    """The loss of a policy or of a reward model. Micro-batches of an update, and the updates of a step, add up."""
    try:
        if algorithm.needs.scorer:
            loss, report = scorer_loss(algorithm, scored, batch)
        else:
            loss, report = batch_loss(algorithm, scored, batch, coefficients)
    except ValueError as error:
        raise TrainingError(f"algorithm.objective: {algorithm.objective.kind}: {error}") from None
    _require_finite(loss, scored, batch)
    if not algorithm.needs.scorer:
        entropy = float(scored.entropy.detach()[batch.mask].double().sum())
        report += Report.mean("learn/entropy", entropy, int(batch.mask.sum()))
    return loss, report + Report.sum("learn/loss", float(loss.detach()))


def _require_finite(loss: Tensor, scored: Scored, batch: Batch) -> None:
    """Name what was not finite, and where, in a loss that was not."""
    if bool(torch.isfinite(loss)):
        return
    named = {"log-probability": scored.logprobs, "advantage": batch.advantages, "engine": batch.behaviour}
    if scored.values is not None:
        named["value"] = scored.values.sum(-1)
    for name, values in named.items():
        wrong = (~torch.isfinite(values)).nonzero()[:, 0]
        if len(wrong):
            at = int(wrong[0])
            sample = int(batch.index[batch.segment[at]])
            raise TrainingError(
                f"the loss is not finite: {len(wrong)} {name} values, first at token {int(batch.position[at])} "
                f"(id {int(batch.tokens[at])}) of sample {sample}; nothing was updated"
            )
    raise TrainingError(
        "the loss is not finite though its inputs are: lower optimizer.learning_rate; nothing was updated"
    )
