"""The moves of one kind of tensor, worked out once for all tensors of the same shape that are stored and cut alike."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import lcm

from posttrain.hybrid.plan.boxes import Shape, corner, extent, intersection, rectangles, shifted, strides, volume
from posttrain.hybrid.plan.cuts import Cut
from posttrain.hybrid.plan.generation import Generation
from posttrain.hybrid.plan.moves import Stretch
from posttrain.hybrid.plan.training import Piece


@dataclass(frozen=True, slots=True)
class Kind:
    """What makes the moves of two tensors alike."""

    shape: Shape
    itemsize: int
    dim: int | None
    """Of the training side's tensor parallelism."""
    cut: Cut


@dataclass(frozen=True, slots=True)
class Crossing:
    """What one piece of the source layout holds of what one rank of the engine's tensor parallelism takes."""

    holders: tuple[int, ...]
    t: int
    stretches: tuple[Stretch, ...]
    nbytes: int


@dataclass(slots=True)
class Delivery:
    """A crossing to one engine rank: tensor k of the kind is sent by `senders[k % len(senders)]`."""

    crossing: Crossing
    destination: int
    senders: tuple[int, ...]
    local: bool


class Routes:
    """The deliveries of one tensor with their senders, by either end."""

    def __init__(self, deliveries: Sequence[Delivery], index: int) -> None:
        self.all = [(d.senders[index % len(d.senders)], d) for d in deliveries]
        self._from: dict[int, list[tuple[int, Delivery]]] = defaultdict(list)
        self._to: dict[int, list[tuple[int, Delivery]]] = defaultdict(list)
        for route in self.all:
            self._from[route[0]].append(route)
            self._to[route[1].destination].append(route)

    def of(self, source: int | None, destination: int | None) -> Sequence[tuple[int, Delivery]]:
        if source is None:
            return self.all if destination is None else self._to.get(destination, ())
        found = self._from.get(source, ())
        return found if destination is None else [r for r in found if r[1].destination == destination]


@dataclass(slots=True)
class Template:
    """A kind of tensor, how many there are, and its deliveries."""

    kind: Kind
    count: int
    crossings: tuple[Crossing, ...]
    deliveries: list[Delivery] = field(default_factory=list)
    variants: int = 1
    """After how many tensors of the kind the senders repeat."""
    _routes: dict[int, Routes] = field(default_factory=dict)

    def routes(self, index: int) -> Routes:
        variant = index % self.variants
        if variant not in self._routes:
            self._routes[variant] = Routes(self.deliveries, variant)
        return self._routes[variant]

    def held(self, t: int) -> int:
        """Bytes that rank t of the tensor parallelism takes of one such tensor."""
        boxes = (box for box, _ in self.kind.cut.landings(self.kind.shape, t))
        return sum(map(volume, boxes)) * self.kind.itemsize

    def at_hand(self, t: int, rank: int) -> int:
        """Bytes of that which training rank `rank` stores."""
        return sum(c.nbytes for c in self.crossings if c.t == t and rank in c.holders)


def crossings(kind: Kind, pieces: Sequence[Piece], degree: int) -> Iterator[Crossing]:
    """Every pair of a piece and a rank of the tensor parallelism that have something in common."""
    wanted = [list(kind.cut.landings(kind.shape, t)) for t in range(degree)]
    for piece in pieces:
        origin, shape = corner(piece.box), extent(piece.box)
        stored = origin, strides(shape), piece.start
        boxes = [shifted(box, origin) for box in rectangles(piece.start, piece.stop, shape)]
        for t, landings in enumerate(wanted):
            found = []
            for take, row in landings:
                # From the tensor's coordinates to the rank's parameter: only the dimension that is cut moves.
                by = tuple(row - take[d][0] if d == kind.cut.dim else 0 for d in range(len(take)))
                for box in boxes:
                    both = intersection(box, take)
                    if both is not None:
                        found.append((volume(both), Stretch.of(both, stored, shifted(both, by))))
            if found:
                elements = sum(size for size, _ in found)
                yield Crossing(piece.ranks, t, tuple(s for _, s in found), elements * kind.itemsize)


def deliver(templates: Sequence[Template], generation: Generation) -> None:
    """Choose who sends. A rank that stores what its engine rank takes copies it. Else holders on the same machine go
    before others, and the largest crossings come first, each from the holder that has sent least so far; a kind's
    tensors take turns among the holders. So no two ranks that hold everything differ by more than the largest crossing.
    """
    sent: dict[int, int] = defaultdict(int)
    remote: list[tuple[Template, Delivery]] = []
    for template in templates:
        for crossing in template.crossings:
            for replica in range(generation.replicas):
                g = replica * generation.tensor + crossing.t
                local = generation.colocated and g in crossing.holders
                senders = (g,) if local else generation.near(g, crossing.holders)
                delivery = Delivery(crossing, g, senders, local)
                template.variants = lcm(template.variants, len(senders))
                template.deliveries.append(delivery)
                if not local:
                    remote.append((template, delivery))
    remote.sort(key=lambda pair: -pair[1].crossing.nbytes)
    for template, delivery in remote:
        delivery.senders = tuple(sorted(delivery.senders, key=lambda rank: (sent[rank], rank)))
        rounds, rest = divmod(template.count, len(delivery.senders))
        for index, rank in enumerate(delivery.senders):
            sent[rank] += (rounds + (index < rest)) * delivery.crossing.nbytes
