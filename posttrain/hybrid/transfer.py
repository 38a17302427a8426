"""The executor of a plan on one rank: it copies and sends what the plan says, in rounds, and knows no model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
import torch.distributed as dist
from torch import Tensor

from posttrain.errors import ModelError, SyncError
from posttrain.hybrid.plan import Message, Move, Plan, schedule
from posttrain.hybrid.plan.boxes import extent
from posttrain.rollout import Piece

CAP = 256 * 2**20
"""Bytes that a rank sends, and that it receives, in one round."""

Local = Callable[[str], Tensor]
"""A rank's own part of a tensor by its name, contiguous and flat."""


@dataclass(frozen=True)
class Part:
    """What one rank does in one round: at most one message to each rank, and one from each."""

    copies: Sequence[Move]
    sends: Sequence[Message]
    receives: Sequence[Message]


class Transfer:
    """One rank's rounds, worked out once for all syncs; tensors live on `device` in `dtype`.

    Raises ModelError for a plan in bytes of another dtype.
    """

    def __init__(self, plan: Plan, rank: int, dtype: torch.dtype, device: str, cap: int = CAP) -> None:
        if any(s.tensor.itemsize != dtype.itemsize for s in plan.shipments):
            raise ModelError(f"the plan's elements are not those of {dtype}, which has {dtype.itemsize} bytes")
        self.dtype, self.device = dtype, device
        self.parts: list[Part] = []
        for each in schedule(plan, cap).rounds:
            arriving = each.messages(destination=rank)
            sent = [m for m in each.messages(source=rank) if not m.local]
            copies = [move for m in arriving if m.local for move in m.moves]
            self.parts.append(Part(copies, sent, [m for m in arriving if not m.local]))
        t = rank % plan.generation.tensor
        boxes = {name: parameter.padding(t) for name, parameter in plan.parameters.items()}
        self.padding = {name: box for name, box in boxes.items() if box is not None}
        self.bound = plan.traffic()[rank].bound
        """The least that this rank could receive, in bytes."""
        self.received = 0
        """Bytes that came from other ranks in the latest sync."""

    def pieces(self, local: Local) -> Iterator[Piece]:
        """Every piece of this rank's engine parameters. All ranks exhaust it together.

        A piece is a view of what `local` gave or of a round's buffer: it is to be read before weights change.
        """
        self.received = 0
        for name, box in self.padding.items():
            zeros = torch.zeros(extent(box), dtype=self.dtype, device=self.device)
            yield name, tuple(slice(start, stop) for start, stop in box), zeros
        for part in self.parts:
            yield from self._round(part, _Held(local))

    def _round(self, part: Part, held: _Held) -> Iterator[Piece]:
        incoming = [(m, self._buffer(m)) for m in part.receives]
        operations = [dist.P2POp(dist.irecv, buffer, m.source) for m, buffer in incoming]
        for message in part.sends:
            operations.append(dist.P2POp(dist.isend, self._packed(message, held), message.destination))
        flying = dist.batch_isend_irecv(operations) if operations else []
        # What is here already is taken while the rest is on its way.
        for move in part.copies:
            yield move.parameter, move.slices, held.view(move).reshape(extent(move.region))
        for work in flying:
            work.wait()
        for message, buffer in incoming:
            self.received += buffer.nbytes
            for move, flat in zip(message.moves, buffer.split(_sizes(message)), strict=True):
                yield move.parameter, move.slices, flat.view(extent(move.region))

    def _buffer(self, message: Message) -> Tensor:
        return torch.empty(sum(_sizes(message)), dtype=self.dtype, device=self.device)

    def _packed(self, message: Message, held: _Held) -> Tensor:
        buffer = self._buffer(message)
        for move, flat in zip(message.moves, buffer.split(_sizes(message)), strict=True):
            flat.view(move.shape).copy_(held.view(move))
        return buffer


class _Held:
    """Tensors that one round needs: each is asked for once, as asking may cast it."""

    def __init__(self, local: Local) -> None:
        self.local, self.found = local, dict[str, Tensor]()

    def view(self, move: Move) -> Tensor:
        if move.tensor not in self.found:
            self.found[move.tensor] = self.local(move.tensor)
        own = self.found[move.tensor]
        last = move.offset + sum((n - 1) * s for n, s in zip(move.shape, move.strides, strict=True))
        if last >= own.numel():
            raise SyncError(
                f"{move.tensor}: this rank stores {own.numel()} elements, and the plan takes number {last}: it was "
                "made for another layout"
            )
        return own.as_strided(move.shape, move.strides, own.storage_offset() + move.offset)


def _sizes(message: Message) -> list[int]:
    return [prod(move.shape) for move in message.moves]
