"""The moments of a learning step at which memory may be largest, and how much each takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from posttrain.logits import rows_of_a_block
from posttrain.planner.activations import WIDE, Activations
from posttrain.planner.shape import Shape


@dataclass(frozen=True)
class Computing:
    """How one model computes and learns."""

    shape: Shape
    activations: Activations
    chunk: int
    """Tokens whose logits exist at one time."""
    device: str
    checkpointing: bool
    accumulates: bool
    """Whether gradients of earlier micro-batches are there already."""
    entropy: bool = False
    """Whether a gradient goes through the entropies."""

    @property
    def itemsize(self) -> int:
        return self.activations.itemsize

    @property
    def wide(self) -> int:
        """Bytes of masters, gradients and of what must be precise."""
        return max(WIDE, self.itemsize)

    @property
    def adapted(self) -> bool:
        return self.activations.lora is not None

    @property
    def trained(self) -> int:
        """Parameters that learn."""
        lora = self.activations.lora
        return self.shape.adapter_parameters(lora.rank, lora.targets) if lora else self.shape.parameters


@dataclass(frozen=True)
class Moment:
    """Bytes at one moment of a micro-batch."""

    name: str
    gradients: float
    activations: float
    logits: float

    @property
    def total(self) -> float:
        return self.gradients + self.activations + self.logits


def peak(computing: Computing, share: float = 1.0) -> Moment:
    """The largest of all moments of a micro-batch. `share` of the gradients lies on this rank."""
    return max(_moments(computing, share), key=lambda moment: moment.total)


def _moments(computing: Computing, share: float) -> Iterator[Moment]:
    shape, kept = computing.shape, computing.activations
    every = kept.entering() if computing.checkpointing else kept.layer()
    there = computing.trained * computing.wide * share
    before = there if computing.accumulates else 0.0
    states = shape.layers * every + kept.around()
    grown, logits = head(computing)
    yield Moment("logits, forward", before, states, logits[0])
    # The states that predict, and of their gradient as much: where they are picked from, all positions have one.
    picked = kept.size.predicted * shape.hidden * computing.itemsize
    yield Moment("logits, backward", before + grown, states + picked, logits[1])
    held = 0.0 if computing.adapted else shape.embedding_parameters * computing.itemsize
    layer = computing.trained / shape.layers if computing.adapted else shape.layer_parameters
    single = layer if computing.adapted else max(shape.width, shape.queries) * shape.hidden
    for done in range(shape.layers):
        fresh = single * computing.itemsize if computing.accumulates else (done + 1) * layer * computing.wide * share
        rest = (shape.layers - done) * every + (kept.layer() if computing.checkpointing else 0)
        yield Moment(f"backward of layer {shape.layers - done}", before + held + fresh, rest + kept.working(), 0.0)
    # A tied embedding's gradient meets the head's only now.
    yield Moment("backward of the embedding", there + (2 * held if before else held), kept.entering(), 0.0)


def head(computing: Computing) -> tuple[float, tuple[float, float]]:
    """Bytes of the head's gradient while it is gathered, and of logits in the forward and the backward pass: a buffer
    in the head's dtype; of a block of them, one in fp32 where that is another, and one of weights, or of slopes of the
    entropy.
    """
    shape, e, wide = computing.shape, computing.itemsize, computing.wide
    predicted = computing.activations.size.predicted
    rows = min(computing.chunk, predicted)
    block = min(rows, rows_of_a_block(computing.device, shape.vocabulary)) * shape.vocabulary * wide
    buffers = rows * shape.vocabulary * e + (0 if e == wide else block)
    backward = buffers + block * computing.entropy
    if computing.adapted:
        return 0.0, (buffers + block, backward)
    # From the second chunk on its product stands beside the sum.
    beside = 0 if predicted <= computing.chunk else wide + (e if e < wide else 0)
    return float(shape.embedding_parameters * (wide + beside)), (buffers + block, backward)
