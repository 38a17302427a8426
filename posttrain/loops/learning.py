"""A step's groups to updates of the weights: annotate, assign credit, pack, accumulate, step."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from posttrain.algorithms.credit import assign_credit
from posttrain.algorithms.table import Algorithm
from posttrain.data.packing import pack
from posttrain.hybrid.parity import ParityGate
from posttrain.learner import Learner
from posttrain.metrics import Report
from posttrain.types import Annotation, Group, Sample


@dataclass(frozen=True)
class Updates:
    """How a step's samples become optimiser steps."""

    minibatches: int
    epochs: int
    max_tokens: int

    @property
    def several(self) -> bool:
        return self.minibatches * self.epochs > 1


@dataclass
class Learnt:
    """What learning left for the record: samples with the log-probabilities each update's loss was made of."""

    samples: list[Sample] = field(default_factory=list)
    updates: list[list[tuple[int, Tensor]]] = field(default_factory=list)
    """Per sample: (update of the step, `[T]` log-probabilities)."""
    report: Report = field(default_factory=Report)


def learn(
    learner: Learner,
    algorithm: Algorithm,
    groups: Sequence[Group],
    updates: Updates,
    gate: ParityGate | None,
    step: int,
) -> Learnt:
    """Update the weights from a step's groups. The gate, where given, is held before the first update."""
    started = time.perf_counter()
    annotations = annotate(learner, algorithm, groups, updates.several)
    samples, report = assign_credit(algorithm, groups, annotations, updates.max_tokens)
    out = Learnt(samples, [[] for _ in samples], report)
    for number, part in enumerate(_parts(samples, len(groups), updates)):
        if not any(bool(samples[i].mask.any()) for i in part):
            out.report += Report.sum("learn/skipped_updates", 1)
            continue
        for batch in pack([samples[i] for i in part], learner.packing):
            about, logprobs = learner.accumulate(batch, algorithm)
            out.report += about
            for index, values in zip(batch.index.tolist(), logprobs.split(batch.lengths.tolist()), strict=True):
                out.updates[part[index]].append((number, values))
        if number == 0 and gate is not None:
            seen = [i for i in part if out.updates[i]]
            gate.check([samples[i].rollout for i in seen], [out.updates[i][0][1] for i in seen], step)
        out.report += learner.step()
    seconds = time.perf_counter() - started
    tokens = sum(len(s.rollout.tokens) for s in samples) * updates.epochs
    out.report += Report.sum("learn/seconds", seconds) + Report.mean("learn/tokens_per_second", tokens, seconds)
    return out


def annotate(learner: Learner, algorithm: Algorithm, groups: Sequence[Group], several: bool) -> list[Annotation]:
    """What the row's needs ask the learner for, and no more: one Annotation per group."""
    rollouts = [r for group in groups for r in group.rollouts]
    needs = algorithm.needs
    previous = learner.logprobs(rollouts) if needs.previous and several else None
    reference = learner.logprobs(rollouts, "reference") if needs.reference else None
    out, at = [], 0
    for group in groups:
        part = slice(at, at + len(group.rollouts))
        out.append(Annotation(previous and previous[part], reference and reference[part]))
        at = part.stop
    return out


def _parts(samples: Sequence[Sample], groups: int, updates: Updates) -> Iterator[list[int]]:
    """Indices of the samples of each update: whole groups, as evenly as they go, every epoch anew."""
    edges = torch.linspace(0, groups, updates.minibatches + 1).round().long().tolist()
    for _ in range(updates.epochs):
        for low, high in pairwise(edges):
            yield [i for i, sample in enumerate(samples) if low <= sample.group < high]
