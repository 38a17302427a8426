"""Optimiser steps of a tiny learner, and what a test looks at afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from posttrain.algorithms.row import Algorithm
from posttrain.algorithms.state import RowState, Terms
from posttrain.algorithms.table import ALGORITHMS
from posttrain.data.packing import pack
from posttrain.learner.policy import PolicyLearner
from posttrain.metrics import Report
from posttrain.types import Sample

TERMS = Terms(max_tokens=12)
GRPO = ALGORITHMS["grpo"]


def accumulated(
    learner: PolicyLearner, batch: Sequence[Sample], algorithm: Algorithm = GRPO, terms: Terms = TERMS
) -> Report:
    """Add the gradient of one optimiser step over the samples."""
    batches = list(pack(batch, learner.packing))
    return learner.accumulate(batches, algorithm, RowState.of(algorithm).coefficients(terms))[0]


def one_step(learner: PolicyLearner, batch: Sequence[Sample], algorithm: Algorithm = GRPO) -> dict[str, float]:
    report = accumulated(learner, batch, algorithm)
    return (report + learner.step()).values()


def policy_gradient(learner: PolicyLearner) -> Tensor:
    return torch.cat([p.grad.flatten() for p in learner.stepper.masters.parameters])


def loss(report: Report) -> float:
    return report.values()["learn/loss"]


def checksum(model: Any) -> float:
    return sum(float(p.detach().double().sum()) for p in model.parameters())
