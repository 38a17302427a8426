"""What autograd keeps of a forward pass, and what passes need beside: bytes, derived from transformers' Llama."""

from __future__ import annotations

from dataclasses import dataclass

from posttrain.planner.shape import Shape
from posttrain.recipe import Lora

WIDE = 4
"""Bytes of what is computed in fp32 whatever the model's dtype."""


@dataclass(frozen=True)
class Pass:
    """One micro-batch as it is laid out."""

    rows: int
    length: int
    """Positions of a row."""
    predicted: int
    """Positions whose next token is learnt."""
    masked: bool
    """Whether attention is given a mask, because sequences share a row."""
    copied: int | None = None
    """Keys that attention copies so that each response has its prompt's, where it is told what lies in a row."""

    @property
    def positions(self) -> int:
        return self.rows * self.length


@dataclass(frozen=True)
class Activations:
    """Bytes of one pass through a decoder in elements of `itemsize` bytes."""

    shape: Shape
    size: Pass
    itemsize: int
    lora: Lora | None = None

    def layer(self) -> int:
        """Kept by one layer until its backward pass.

        A norm keeps its input and the normalised states, both where gradients of its weight are wanted, and its output
        is the projections' input. In fewer than 32 bits the input is a copy in fp32. Attention keeps queries, keys,
        values, its output and a logarithm per head; with a mask, keys and values are repeated for every head, and the
        mask becomes numbers, anew in each layer; without padding, outputs are put together once more, and keys and
        values of responses lie behind copies of their prompts'. The MLP keeps gate, its activation, up and their
        product.
        """
        shape, t, e = self.shape, self.size.positions, self.itemsize
        trained = self.lora is None
        source = WIDE if e < WIDE else e
        norms = shape.norms * shape.hidden * (source + e + (e if trained else 0))
        keys = shape.queries if self.repeats else shape.keys
        attention = (2 * shape.queries + 2 * keys) * e + shape.heads * WIDE
        copied = 0
        if self.size.copied is not None:
            attention += shape.queries * e
            copied = 2 * shape.keys * e * self.size.copied
        adapters = 0
        if self.lora is not None:
            bound = shape.adapted(self.lora.targets)
            # Adapters are fp32: under a narrower model each has its input in fp32, and its rank's states.
            copies = sum(size[1] for _, size in bound) * WIDE if e < WIDE else 0
            adapters = copies + len(bound) * self.lora.rank * WIDE
        return t * (norms + attention + self.mlp * e + adapters) + self.mask + copied

    @property
    def repeats(self) -> bool:
        """Whether keys and values are copied for every head of queries, as attention with a mask wants them."""
        return self.shape.heads != self.shape.kv_heads and self.size.masked

    @property
    def mask(self) -> int:
        """The mask as numbers, which each layer keeps."""
        return self.size.rows * self.size.length**2 * self.itemsize if self.size.masked else 0

    @property
    def mlp(self) -> int:
        """Numbers that the MLP of one layer keeps of a token. Routed tokens are gathered, once for each expert."""
        experts = self.shape.experts
        if experts is None:
            return 4 * self.shape.width
        return experts.active * (4 * experts.width + 2 * self.shape.hidden) + 4 * experts.shared + experts.count

    def working(self) -> int:
        """The most that a layer's backward pass has beside what is kept: gradients of both factors of the MLP's
        product, and the incoming one.
        """
        experts = self.shape.experts
        width = experts.active * experts.width + experts.shared if experts else self.shape.width
        return self.size.positions * (2 * width + self.shape.hidden) * self.itemsize

    def around(self) -> int:
        """Kept around the layers: the angles, the last norm, its output, and the states that predict."""
        shape, t, e = self.shape, self.size.positions, self.itemsize
        source = WIDE if e < WIDE else e
        last = shape.hidden * (source + (e if self.lora is None else 0))
        mask = self.size.rows * self.size.length**2 if self.size.masked else 0
        return t * (2 * shape.head_size * e + last) + self.size.predicted * shape.hidden * e + mask

    def entering(self) -> int:
        """A layer's input, all that checkpointing keeps of it."""
        return self.size.positions * self.shape.hidden * self.itemsize
