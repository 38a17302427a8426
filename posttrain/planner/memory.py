"""Bytes of each device in each phase, by what they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from posttrain.algorithms.row import Algorithm
from posttrain.planner.activations import WIDE, Activations
from posttrain.planner.learning import Computing, Moment, peak
from posttrain.planner.shape import Shape
from posttrain.planner.work import Work
from posttrain.recipe import Recipe

ITEMSIZES = {"bfloat16": 2, "float32": 4, "float64": 8}
PARTIAL = 2
"""Layers that FSDP2 has brought together at one time: the one that computes, and the next."""


@dataclass(frozen=True)
class Placement:
    """How a recipe's models lie over the devices."""

    strategy: str
    ranks: int
    span: int
    """Ranks of an engine."""
    itemsize: int
    """Bytes of a number that is computed with."""
    device: str

    @classmethod
    def of(cls, recipe: Recipe, device: str, narrow: bool = True) -> Placement:
        """`narrow`: whether the machine multiplies faster in bfloat16, which decides what `auto` is."""
        hardware = recipe.hardware
        dtype = hardware.dtype if hardware.dtype != "auto" else "bfloat16" if narrow else "float32"
        ranks = hardware.learner.processes
        return cls(hardware.learner.strategy, ranks, hardware.sampler.tensor_parallel, ITEMSIZES[dtype], device)

    @property
    def sharded(self) -> bool:
        """Whether a rank keeps a part of each parameter only."""
        return self.strategy in ("fsdp2", "zero3") and self.ranks > 1

    @property
    def zero(self) -> bool:
        """Whether masters are copies of their own, whatever the dtype, cut over the ranks."""
        return self.strategy.startswith("zero") and self.ranks > 1

    @property
    def share(self) -> float:
        """Of each parameter, what lies on one rank of the learner."""
        return 1 / self.ranks if self.sharded else 1.0

    @property
    def share_of_gradients(self) -> float:
        return 1 / self.ranks if self.sharded or (self.zero and self.strategy == "zero2") else 1.0

    @property
    def share_of_state(self) -> float:
        """Of masters and moments."""
        return 1 / self.ranks if self.sharded or self.zero else 1.0

    @property
    def stored(self) -> int:
        """Bytes of a parameter where it is kept: FSDP2's shards are their own masters."""
        return max(WIDE, self.itemsize) if self.sharded and not self.zero else self.itemsize


def computing(recipe: Recipe, shape: Shape, work: Work, placement: Placement) -> Computing:
    """How the policy learns."""
    learner = recipe.hardware.learner
    return Computing(
        shape,
        Activations(shape, work.micro_batch, placement.itemsize, recipe.model.lora),
        learner.logit_chunk,
        placement.device,
        learner.gradient_checkpointing,
        accumulates=work.passes > placement.ranks,
    )


def state_terms(shape: Shape, trained: int, placement: Placement) -> dict[str, float]:
    """Weights, masters and AdamW's two moments of a model of which `trained` parameters learn."""
    wide = max(WIDE, placement.itemsize)
    separate = placement.zero or (placement.itemsize < WIDE and not placement.sharded)
    adapters = trained if trained < shape.parameters else 0
    weights = shape.parameters * placement.stored + adapters * wide
    return {
        "weights": weights * placement.share,
        "masters": trained * wide * placement.share_of_state if separate and (placement.zero or not adapters) else 0.0,
        "moments": 2 * trained * wide * placement.share_of_state,
    }


def learning_terms(
    recipe: Recipe, shape: Shape, work: Work, placement: Placement, row: Algorithm | None = None
) -> dict[str, float]:
    """Of one device while it learns, at the fullest moment; what an engine keeps is not among them."""
    policy = computing(recipe, shape, work, placement)
    moment = peak(policy, placement.share_of_gradients)
    terms = state_terms(shape, policy.trained, placement)
    terms |= {"gradients": moment.gradients, "activations": moment.activations, "logits": moment.logits}
    if placement.sharded:
        terms["gathered"] = gathered(shape, placement)
    if row is not None:
        terms |= companions(recipe, row, shape, policy, placement)
    return terms


def gathered(shape: Shape, placement: Placement) -> float:
    """What FSDP2 or ZeRO-3 has brought together: embeddings and head during the whole pass, layers one after the other,
    and the gradient of one in the model's dtype and in fp32 on its way to its shards.
    """
    e, wide = placement.itemsize, max(WIDE, placement.itemsize)
    ends = shape.parameters - shape.layers * shape.layer_parameters
    return ends * e + shape.layer_parameters * (PARTIAL * e + e + wide)


def companions(
    recipe: Recipe, row: Algorithm, shape: Shape, policy: Computing, placement: Placement
) -> Mapping[str, float]:
    """Frozen references, and a critic of the policy's size where it has a backbone of its own, with its own pass."""
    found: dict[str, float] = {}
    if row.needs.reference:
        copies = sum(p.path is not None or recipe.model.lora is None for p in recipe.reference.policies)
        found["references"] = copies * shape.parameters * placement.stored * placement.share
    if row.needs.critic and recipe.critic.backbone == "own":
        trained = 0 if row.frozen_values else shape.parameters
        size = shape.parameters * placement.stored * placement.share
        if trained:
            size = sum(state_terms(shape, trained, placement).values())
            size += trained * max(WIDE, placement.itemsize) * placement.share_of_gradients
        # Its graph lives beside the policy's until the one backward pass.
        whole = Activations(shape, policy.activations.size, placement.itemsize)
        found["critic"] = size + (shape.layers * whole.layer() + whole.around() if trained else 0.0)
    return found


def fullest(recipe: Recipe, shape: Shape, work: Work, placement: Placement) -> Moment:
    """The moment of a micro-batch at which the policy takes most."""
    return peak(computing(recipe, shape, work, placement), placement.share_of_gradients)
