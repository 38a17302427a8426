"""How a learner's weights reach a sampler: tensor by tensor, whole on every rank, or each rank only what it holds."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Literal, Protocol, cast

from torch import Tensor

from posttrain.errors import ModelError, PosttrainError
from posttrain.hybrid.adapting import Apart, Counted
from posttrain.hybrid.plan import Architecture, Generation, Training, make_plan
from posttrain.hybrid.plan import Tensor as Shape
from posttrain.hybrid.transfer import CAP, Transfer
from posttrain.learner import Learner
from posttrain.learner.shards import Shards
from posttrain.metrics import Report
from posttrain.rollout import Fillable, Sampler
from posttrain.world import World

Way = Literal["auto", "planned", "gathered"]
Adapters = Literal["auto", "merged", "apart"]


class Publishing(Protocol):
    """Brings the learner's present weights into the sampler, all of them."""

    words: str
    """What a run's log says about it."""
    sent: int
    """Bytes of the newest publication that this process was given."""

    def publish(self, learner: Learner, sampler: Sampler) -> Report:
        """Raises SyncError where the sampler does not hold a complete set afterwards."""


class Gathered:
    """Every tensor is brought together on every rank and streamed into the engine's own loader."""

    def __init__(self, reason: str = "") -> None:
        self.words = "weights: gathered on every rank" + (f" ({reason})" if reason else "")
        self.sent = 0

    def publish(self, learner: Learner, sampler: Sampler) -> Report:
        started, counted = time.perf_counter(), Counted()
        sampler.load(counted(learner.weights()), learner.version)
        self.sent = counted.bytes
        return Report.sum("sync/seconds", time.perf_counter() - started)


class Planned:
    """Each rank receives what its part of the engine holds and it does not store itself, and nothing else.

    Learner and sampler share the ranks. Raises ModelError, with the reason, where no plan covers them, RecipeError for
    layouts that cannot be.
    """

    def __init__(self, learner: Learner, sampler: Sampler, world: World, cap: int = CAP) -> None:
        shards, parts = _shards(learner), getattr(sampler, "parts", None)
        if parts is None:
            raise ModelError("the engine takes whole tensors by their names")
        sizes = [Shape(name, shape, shards.dtype.itemsize) for name, shape in shards.shapes.items()]
        plan = make_plan(
            sizes,
            replace(Architecture.of(shards.config), tied=not parts.own_head),
            Training(world.size, shards.layout),
            Generation(parts.span, world.size // parts.span),
            shards.ties,
        )
        probe: Tensor = shards.local(next(iter(shards.shapes)))
        self.shards, self.sent = shards, 0
        self.transfer = Transfer(plan, world.rank, shards.dtype, probe.device.type, cap)
        most = max(traffic.received for traffic in plan.traffic())
        self.words = f"weights: {plan.training} to {plan.generation}, at most {most:,} bytes received by a rank"

    def publish(self, learner: Learner, sampler: Sampler) -> Report:
        started = time.perf_counter()
        cast(Fillable, sampler).fill(self.transfer.pieces(self.shards.local), learner.version)
        self.sent = self.transfer.received
        return (
            Report.sum("sync/seconds", time.perf_counter() - started)
            + Report.sum("sync/bytes_received", self.transfer.received)
            + Report.sum("sync/bytes_bound", self.transfer.bound)
        )


def _shards(learner: Learner) -> Shards:
    give = getattr(learner, "shards", None)
    if give is None:
        raise ModelError("the learner says nothing of how its tensors are stored")
    found: Shards = give()
    return found


def choose(way: Way, learner: Learner, sampler: Sampler, world: World, adapters: Adapters | None = None) -> Publishing:
    """`adapters` is None for a policy without one; else `auto` is apart where learner and engine can and a probe
    agrees. Of whole weights, `auto` is planned where a plan covers learner and sampler, else gathered. `words` give the
    reason. Raises ModelError where apart or planned is asked for and cannot be.
    """
    if adapters in ("auto", "apart") and way != "planned":
        try:
            return Apart(learner, sampler)
        except PosttrainError as error:
            if adapters == "apart":
                raise ModelError(f"hardware.sampler.adapters: apart, but {error}; use merged or auto") from None
            return Gathered(f"the adapter merged: {error}")
    if way == "gathered":
        return Gathered()
    try:
        return Planned(learner, sampler, world)
    except PosttrainError as error:
        reason = str(error)
        if way == "planned":
            raise ModelError(f"hardware.sampler.sync: planned, but {reason}; use gathered or auto") from None
    # Every rank has the same model and layout, and so the same reason.
    return Gathered(reason)
