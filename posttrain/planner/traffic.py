"""Bytes that one rank sends or receives in a step, by what they are for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

from posttrain.errors import PosttrainError
from posttrain.hybrid.plan import Architecture, Generation, Tensor, Training, make_plan
from posttrain.planner.activations import WIDE
from posttrain.planner.memory import Placement
from posttrain.planner.shape import Shape
from posttrain.planner.work import Work

LAYOUTS: Mapping[str, Literal["rows", "flat"]] = {"fsdp2": "rows", "zero3": "flat"}
"""How a strategy cuts a tensor."""


@dataclass(frozen=True)
class Publishing:
    """One publication of the weights, bytes of the busiest rank."""

    received: float
    """By bringing every tensor together on every rank, as is done."""
    copied: float
    """From the learner's memory into the engine's."""
    planned: int | None
    """Of a plan in which each engine rank receives only what it holds; None where the family's cuts are not known."""
    bound: int | None
    """The least that any plan could have it receive."""
    buffers: float
    """Memory for tensors on their way."""


def publishing(shape: Shape, placement: Placement, machine_ranks: int, adapter: int | None = None) -> Publishing:
    """What it takes to bring the learner's weights into the engines. `machine_ranks`: ranks of one machine; `adapter`:
    parameters of one that is published apart, of which an engine takes a whole one.
    """
    e, ranks = placement.itemsize, placement.ranks
    if adapter is not None:
        sent = float(adapter * e)
        return Publishing(sent * (ranks - 1) / ranks if placement.sharded else 0.0, 2 * sent, None, None, sent)
    whole = shape.parameters * e
    received = whole * (ranks - 1) / ranks if placement.sharded else 0.0
    buffers = shape.largest * e * (2 if placement.sharded else 1)
    planned = bound = None
    if ranks > 1:
        planned, bound = _planned(shape, placement, machine_ranks)
    return Publishing(received, 2 * whole / placement.span, planned, bound, buffers)


@cache
def _planned(shape: Shape, placement: Placement, machine_ranks: int) -> tuple[int | None, int | None]:
    tensors = [Tensor(name, size, placement.itemsize) for name, size in shape.tensors()]
    experts = shape.experts.count if shape.experts else 0
    architecture = Architecture(shape.family, shape.heads, shape.kv_heads, shape.vocabulary, experts, shape.tied)
    training = Training(placement.ranks, LAYOUTS[placement.strategy] if placement.sharded else "whole")
    replicas = placement.ranks // placement.span
    per_machine = machine_ranks if placement.ranks % machine_ranks == 0 else None
    try:
        plan = make_plan(tensors, architecture, training, Generation(placement.span, replicas, True, per_machine))
    except (PosttrainError, KeyError):
        return None, None
    traffic = plan.traffic()
    return max(t.received for t in traffic), max(t.bound for t in traffic)


def learning(shape: Shape, trained: int, work: Work, placement: Placement) -> float:
    """Of one rank in all optimiser steps of a step. FSDP2 brings the weights together for the forward and for the
    backward pass of each micro-batch and scatters gradients in fp32; copies add their gradients up once an update.
    """
    ranks, e, wide = placement.ranks, placement.itemsize, max(WIDE, placement.itemsize)
    if ranks == 1:
        return 0.0
    other = (ranks - 1) / ranks
    if placement.sharded:
        passes = -(-work.passes // ranks)
        return work.updates * passes * other * (2 * e * shape.parameters + wide * trained)
    return work.updates * 2 * other * wide * trained
