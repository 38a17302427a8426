"""A step's groups to updates of the weights: annotate, assign credit, pack, accumulate, step."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from posttrain.algorithms.credit import assign_credit
from posttrain.algorithms.row import Algorithm
from posttrain.algorithms.scorer_loss import label
from posttrain.algorithms.selection import widest_margins
from posttrain.algorithms.state import RowState, Terms
from posttrain.data.packing import pack
from posttrain.hybrid.parity import ParityGate
from posttrain.learner import Learner
from posttrain.loops.reference_cache import ReferenceCache
from posttrain.loops.reference_point import reference_point
from posttrain.loops.stopwatch import Stopwatch, untaught
from posttrain.loops.trust import TrustRegion
from posttrain.metrics import Report
from posttrain.objectives.corrections import effective_sample_size
from posttrain.recipe import Reference
from posttrain.types import Annotation, Group, Sample


class Beside(Protocol):
    """A term that is learnt beside a step's groups."""

    def accumulate(self, learner: Learner, step: int) -> Report:
        """Add the term's gradient to what the learner has accumulated."""


@dataclass(frozen=True)
class Updates:
    """How a step's samples become optimiser steps."""

    minibatches: int
    epochs: int
    warmup_steps: int = 0
    """First steps in which only the critic moves."""

    @property
    def several(self) -> bool:
        return self.minibatches * self.epochs > 1


@dataclass(frozen=True)
class Learning:
    """What learning needs beside the learner and a step's groups."""

    algorithm: Algorithm
    updates: Updates
    terms: Terms
    state: RowState
    beside: Sequence[Beside] = ()
    """What else is learnt in the same updates."""
    cache: ReferenceCache | None = None
    """The reference's log-probabilities, where they were computed before the run."""


@dataclass
class Learnt:
    """What learning left for the record: samples with the log-probabilities each update's loss was made of."""

    samples: list[Sample] = field(default_factory=list)
    updates: list[list[tuple[int, Tensor]]] = field(default_factory=list)
    """Per sample: (update of the step, `[T]` log-probabilities, or a reward model's scores)."""
    scores: bool = False
    """Whether the updates hold a reward model's scores."""
    report: Report = field(default_factory=Report)


def learn(learner: Learner, learning: Learning, groups: Sequence[Group], gate: ParityGate | None, step: int) -> Learnt:
    """Update the weights from a step's groups. The gate, where given, is held before the first update."""
    started, updates, algorithm, version = time.perf_counter(), learning.updates, learning.algorithm, learner.version
    learner, watch = Stopwatch.around(learner)
    samples, report, kept = _samples(learner, learning, groups)
    out = Learnt(samples, [[] for _ in samples], algorithm.needs.scorer, report)
    moves = step > updates.warmup_steps
    coefficients = learning.state.coefficients(learning.terms, policy=moves)
    trust = TrustRegion(learner, algorithm, coefficients)
    for number, part in enumerate(_parts(samples, kept, updates)):
        if not any(bool(samples[i].mask.any()) for i in part):
            out.report += Report.sum("learn/skipped_updates", 1)
            continue
        batches = list(pack([samples[i] for i in part], learner.packing))
        if algorithm.needs.mismatched:
            point = reference_point(learner, algorithm, [samples[i] for i in part], learning.terms.references)
            coefficients = replace(coefficients, baseline=point)
            out.report += Report.value("learn/reference_point", point)
        about, logprobs = learner.accumulate(batches, algorithm, coefficients)
        for batch, found in zip(batches, logprobs, strict=True):
            for index, values in zip(batch.index.tolist(), found.split(batch.lengths.tolist()), strict=True):
                out.updates[part[index]].append((number, values))
        seen = [i for i in part if out.updates[i] and _own(samples[i])]
        if number == 0 and gate is not None and seen:
            gate.check([samples[i].rollout for i in seen], [out.updates[i][0][1] for i in seen], step)
        present = [(samples[i], out.updates[i][-1][1]) for i in part if out.updates[i]]
        if number and not trust.allows(present):
            out.report += Report.sum("learn/stopped_updates", 1)
            break
        out.report += about
        for beside in learning.beside if moves else ():
            out.report += beside.accumulate(learner, step)
        taken, about = trust.step(moves, present)
        out.report += about
        if not taken:
            break
    out.report += trust.close([(s, u[0][1]) for s, u in zip(samples, out.updates, strict=True) if u])
    out.report += _mismatch(out, version)
    if moves:
        # While a critic warms up the policy rests, and nothing that is measured of it says how it moves.
        out.report += learning.state.adapt(algorithm, out.report, len(samples))
    out.report += watch.report + untaught(algorithm, samples)
    return _timed(out, started, updates.epochs)


def _timed(out: Learnt, started: float, epochs: int) -> Learnt:
    seconds = time.perf_counter() - started
    tokens = sum(len(s.rollout.tokens) for s in out.samples) * epochs
    out.report += Report.sum("learn/seconds", seconds) + Report.mean("learn/tokens_per_second", tokens, seconds)
    return out


def _samples(learner: Learner, learning: Learning, groups: Sequence[Group]) -> tuple[list[Sample], Report, int]:
    """A step's groups to what is learnt of them, and how many groups that is."""
    algorithm = learning.algorithm
    if algorithm.needs.scorer:
        return *label(algorithm, groups), len(groups)
    annotations = annotate(learner, algorithm, groups, learning.updates.several, learning.cache)
    kept = list(range(len(groups)))
    report = Report()
    if algorithm.selection.kind == "implicit_margin":
        kept, report = widest_margins(algorithm, groups, annotations, learning.terms.references)
    samples, about = assign_credit(
        algorithm, [groups[i] for i in kept], [annotations[i] for i in kept], learning.terms, learning.state
    )
    return samples, report + about, len(kept)


def refresh(learner: Learner, reference: Reference, step: int) -> None:
    """Move the first reference where a step is one of those after which it follows the policy."""
    if reference.refresh != "never" and step % reference.every == 0:
        average = reference.refresh == "average"
        learner.refresh_reference(reference.decay if average else 0.0, reference.momentum)


def annotate(
    learner: Learner,
    algorithm: Algorithm,
    groups: Sequence[Group],
    several: bool,
    cache: ReferenceCache | None = None,
) -> list[Annotation]:
    """What the row's needs ask the learner for, and no more: one Annotation per group."""
    rollouts = [r for group in groups for r in group.rollouts]
    needs = algorithm.needs
    noted = {
        "previous": learner.logprobs(rollouts) if (needs.previous and several) or needs.trainer else None,
        "reference": _references(learner, groups, cache) if needs.reference else None,
        "values": learner.values(rollouts) if needs.critic else None,
        "uniform": learner.uniform(rollouts) if needs.uniform and several else None,
    }
    out, at = [], 0
    for group in groups:
        part = slice(at, at + len(group.rollouts))
        out.append(Annotation(**{name: found and found[part] for name, found in noted.items()}))
        at = part.stop
    return out


def _references(learner: Learner, groups: Sequence[Group], cache: ReferenceCache | None) -> list[Tensor]:
    """`[T, R]` of every response."""
    if cache is not None:
        return [found for group in groups for found in cache.of(group)]
    return learner.logprobs([r for group in groups for r in group.rollouts], "reference")


def _mismatch(learnt: Learnt, version: int) -> Report:
    """How far engine and trainer were apart before the step's first update, wherever the trainer's log-probabilities
    from before it are known: `parity` under the same weights, `lag` where the engine's were older than `version`.
    """
    gaps = []
    for sample, updates in zip(learnt.samples, learnt.updates, strict=True):
        before = sample.previous
        if before is None and updates and updates[0][0] == 0:
            before = updates[0][1]
        if before is not None and _own(sample):
            assert sample.rollout.logprobs is not None
            gaps.append((before.double() - torch.tensor(sample.rollout.logprobs, dtype=torch.float64))[sample.mask])
    gap = torch.cat(gaps) if gaps else torch.zeros(0)
    if not len(gap):
        return Report()
    drawn = {v for s in learnt.samples if _own(s) for v in s.rollout.versions or () if v >= 0}
    behind = version - min(drawn, default=version)
    found = (
        Report.mean("mean_abs_gap", float(gap.abs().sum()), len(gap))
        + Report.maximum("max_abs_gap", float(gap.abs().max()))
        + Report.mean("kl_k3", float((gap.exp() - 1 - gap).sum()), len(gap))
        + Report.value("effective_sample_size", float(effective_sample_size(gap.exp())))
    )
    return (found + Report.value("versions", behind)).under("lag") if behind else found.under("parity")


def _own(sample: Sample) -> bool:
    """Whether the engine drew the response under the weights that are trained: not the data's, nor an opponent's."""
    return sample.rollout.author == "policy" and sample.rollout.logprobs is not None


def _parts(samples: Sequence[Sample], groups: int, updates: Updates) -> Iterator[list[int]]:
    """Indices of the samples of each update: whole groups, as evenly as they go, every epoch anew."""
    edges = torch.linspace(0, groups, updates.minibatches + 1).round().long().tolist()
    for _ in range(updates.epochs):
        for low, high in pairwise(edges):
            yield [i for i, sample in enumerate(samples) if low <= sample.group < high]
