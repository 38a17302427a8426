"""Seconds of a step, by the slower of arithmetic and memory in each part of it."""

from __future__ import annotations

from math import ceil

from posttrain.algorithms.row import Algorithm
from posttrain.planner.activations import WIDE
from posttrain.planner.engine import Engine, touched
from posttrain.planner.machine import Machine
from posttrain.planner.memory import Placement
from posttrain.planner.shape import Shape
from posttrain.planner.traffic import Publishing
from posttrain.planner.work import Work
from posttrain.recipe import Recipe

OPTIMISER = 7
"""Numbers in fp32 that AdamW reads (weight, gradient, two moments) or writes (weight, two moments)."""


def learning_flops(recipe: Recipe, shape: Shape, work: Work, row: Algorithm | None) -> float:
    """Of a step on all ranks together. A backward pass is two forward passes, one where the weights are frozen, and
    another forward pass where activations are computed anew; logits are computed anew in any case.
    """
    size = work.micro_batch
    passes = work.updates * work.passes
    context = size.length if size.masked else size.length / 2
    frozen = recipe.model.lora is not None
    body = size.positions * shape.flops(context, head=False)
    head = 2.0 * size.predicted * shape.embedding_parameters
    learn = body * (1 + (1 if frozen else 2) + recipe.hardware.learner.gradient_checkpointing)
    learn += head * (2 + (1 if frozen else 2))
    total = passes * learn
    # Passes without gradient see each response once, however many updates follow.
    reads = passes / recipe.optimizer.epochs * (body + head)
    if row is not None:
        if row.needs.reference:
            total += len(recipe.reference.policies) * reads
        if row.needs.trainer or (row.needs.previous and work.updates > 1):
            total += reads
        if row.needs.critic and recipe.critic.backbone == "own":
            total += passes * body * (1 if row.frozen_values else 3) + reads
    return total


def learning_seconds(flops: float, sent: float, work: Work, placement: Placement, machine: Machine) -> dict[str, float]:
    """Arithmetic and traffic of the learning phase. FSDP2 sends while it computes."""
    ranks = placement.ranks
    # Micro-batches are not cut: where they do not divide, some ranks wait.
    compute = flops * ceil(work.passes / ranks) / work.passes / machine.rate(placement.itemsize, ranks)
    send = sent / machine.send_rate(ranks) if sent else 0.0
    if placement.sharded:
        return {"learning: arithmetic": compute, "learning: links, not hidden": max(0.0, send - compute)}
    return {"learning: arithmetic": compute, "learning: links": send}


def optimiser_seconds(trained: int, work: Work, placement: Placement, machine: Machine) -> float:
    """AdamW of one rank in all updates of a step: it only reads and writes."""
    moved = work.updates * OPTIMISER * trained * max(WIDE, placement.itemsize) * placement.share_of_state
    return moved / machine.read_rate(placement.ranks)


def generating_seconds(
    shape: Shape, work: Work, engine: Engine, placement: Placement, machine: Machine
) -> dict[str, float]:
    """Prefill of the prompts, once for each group, and decoding in rounds of as many sequences as there is room for."""
    span, ranks = placement.span, placement.ranks
    replicas = max(1, ranks // span)
    rate, read = machine.rate(placement.itemsize, ranks), machine.read_rate(ranks)
    prompts = ceil(work.prompts / replicas) * work.prompt
    prefill = prompts * shape.flops(work.prompt / 2, head=False) / span / rate
    together = max(1, engine.concurrency)
    rounds = ceil(work.sequences / replicas / together)
    context = work.prompt + work.response / 2
    moved = touched(shape, together) * placement.itemsize / span + together * context * engine.of_token
    computed = together * shape.flops(context) / span / rate
    steps = rounds * work.response
    decode = steps * max(moved / read, computed)
    if span > 1:
        # Two sums over the ranks in each layer, of one hidden state a sequence.
        decode += steps * 4 * shape.layers * together * shape.hidden * placement.itemsize / machine.send_rate(span)
    return {"generating: prefill": prefill, "generating: decoding": decode}


def publishing_seconds(moved: Publishing, placement: Placement, machine: Machine) -> float:
    """Gathering over the links, then copies in memory."""
    links = moved.received / machine.send_rate(placement.ranks) if moved.received else 0.0
    return links + moved.copied / machine.read_rate(placement.ranks)
