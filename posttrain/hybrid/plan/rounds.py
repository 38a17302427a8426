"""A plan in rounds: what may be in flight at a time, so that no rank's buffers outgrow a cap."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from posttrain.errors import RecipeError
from posttrain.hybrid.plan.boxes import volume
from posttrain.hybrid.plan.moves import Message, Move
from posttrain.hybrid.plan.plan import Plan, Shipment
from posttrain.hybrid.plan.template import Delivery, Template

Pair = tuple[int, int]
Share = tuple[int, int]
"""(part, of how many)."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a share of a tensor puts on the wires: bytes by sender, by receiver, and between whom."""

    sent: Mapping[int, int]
    received: Mapping[int, int]
    pairs: frozenset[Pair]

    most: int
    """Bytes of the busiest rank in its busier direction."""

    @classmethod
    def of(cls, sent: Mapping[int, int], received: Mapping[int, int], pairs: Iterable[Pair]) -> Load:
        most = max((*sent.values(), *received.values()), default=0)
        return cls(dict(sent), dict(received), frozenset(pairs), most)


@dataclass(frozen=True, slots=True)
class Round:
    """Shares of tensors that travel together. Every rank works it out alike, so both ends pack in the same order."""

    shares: tuple[tuple[Shipment, Share], ...]
    load: Load

    def messages(self, source: int | None = None, destination: int | None = None) -> list[Message]:
        """All messages, or those of one training rank, one engine rank, or a pair; by their ends. What stays in a
        process is one too (`local`): it is in the answers for both ends.
        """
        moves: dict[Pair, list[Move]] = defaultdict(list)
        local: dict[Pair, bool] = {}
        for shipment, (part, parts) in self.shares:
            for sender, delivery in shipment.template.routes(shipment.index).of(source, destination):
                pair = sender, delivery.destination
                whole = shipment.moves(delivery)
                cut = whole if parts == 1 else (move.part(part, parts) for move in whole)
                moves[pair] += [move for move in cut if move is not None]
                local[pair] = delivery.local
        return [Message(*pair, local[pair], tuple(moves[pair])) for pair in sorted(moves) if moves[pair]]


@dataclass(frozen=True, slots=True)
class Schedule:
    """The rounds of a plan under a cap on what one rank sends, and on what it receives, in a round."""

    cap: int
    rounds: tuple[Round, ...]
    colocated: bool

    @property
    def messages(self) -> int:
        """Between processes, in all rounds."""
        return sum(len(r.load.pairs) for r in self.rounds)

    @property
    def busiest(self) -> int:
        """The most messages that one rank receives."""
        found = Counter(destination for r in self.rounds for _, destination in r.load.pairs)
        return max(found.values(), default=0)

    @property
    def peak(self) -> int:
        """The most bytes of buffers that one process needs at a time: what it sends and receives in a round."""
        return max((_peak(r.load, self.colocated) for r in self.rounds), default=0)


def _peak(load: Load, colocated: bool) -> int:
    if not colocated:
        return load.most
    ranks = load.sent.keys() | load.received.keys()
    return max((load.sent.get(r, 0) + load.received.get(r, 0) for r in ranks), default=0)


def schedule(plan: Plan, cap: int) -> Schedule:
    """Tensors in the order of the checkpoint, as many in a round as fit under `cap` bytes a rank and direction; one
    that does not fit is cut into shares. A cap below what single rows need is exceeded by them (`peak` says so).
    """
    if cap < 1:
        raise RecipeError([f"cap: {cap} bytes cannot be a bucket; tens of MiB are usual"], "schedule")
    loads = _Loads(cap)
    rounds: list[Round] = []
    waiting: list[tuple[Shipment, Share]] = []
    total = _Total()
    for shipment in plan.shipments:
        for share, load in loads.of(shipment.template, shipment.index):
            if waiting and not total.takes(load, cap):
                rounds.append(Round(tuple(waiting), total.load()))
                waiting, total = [], _Total()
            waiting.append((shipment, share))
            total.add(load)
    if waiting:
        rounds.append(Round(tuple(waiting), total.load()))
    return Schedule(cap, tuple(rounds), plan.generation.colocated)


class _Total:
    """The loads of a round. Tensors of a kind share theirs, so few are added up, and only where the sum matters."""

    def __init__(self) -> None:
        self.loads: dict[int, tuple[Load, int]] = {}
        self.bound = 0
        """No rank has more."""

    def takes(self, load: Load, cap: int) -> bool:
        if self.bound + load.most <= cap:
            return True
        sent, received = self._sums()
        self.bound = max((*sent.values(), *received.values()), default=0)
        return all(sent[rank] + n <= cap for rank, n in load.sent.items()) and all(
            received[rank] + n <= cap for rank, n in load.received.items()
        )

    def add(self, load: Load) -> None:
        self.loads[id(load)] = load, self.loads.get(id(load), (load, 0))[1] + 1
        self.bound += load.most

    def _sums(self) -> tuple[Counter[int], Counter[int]]:
        sent, received = Counter[int](), Counter[int]()
        for load, count in self.loads.values():
            for total, part in ((sent, load.sent), (received, load.received)):
                for rank, n in part.items():
                    total[rank] += n * count
        return sent, received

    def load(self) -> Load:
        return Load.of(*self._sums(), set[Pair]().union(*(load.pairs for load, _ in self.loads.values())))


class _Loads:
    """The shares in which each variant of a template travels; worked out once."""

    def __init__(self, cap: int) -> None:
        self.cap = cap
        self.known: dict[tuple[int, int], list[tuple[Share, Load]]] = {}

    def of(self, template: Template, index: int) -> list[tuple[Share, Load]]:
        key = id(template), index % template.variants
        if key not in self.known:
            self.known[key] = self._shares(template, index)
        return self.known[key]

    def _shares(self, template: Template, index: int) -> list[tuple[Share, Load]]:
        whole = _load(template, index, (0, 1))
        count = -(-whole.most // self.cap)
        if count <= 1:
            return [((0, 1), whole)]
        stretches = [s for d in template.deliveries if not d.local for s in d.crossing.stretches]
        longest = max(max(s.shape) for s in stretches)
        while True:
            # Shares of whole rows are not quite equal: a few more may be needed than the bytes alone would say.
            count = min(count, longest)
            shares = [((part, count), _load(template, index, (part, count))) for part in range(count)]
            if count == longest or all(load.most <= self.cap for _, load in shares):
                return shares
            count += -(-count // 8)


def _load(template: Template, index: int, share: Share) -> Load:
    sent, received = Counter[int](), Counter[int]()
    pairs: set[Pair] = set()
    for sender, delivery in template.routes(index).all:
        if delivery.local:
            continue
        nbytes = _nbytes(delivery, share, template.kind.itemsize)
        if nbytes:
            sent[sender] += nbytes
            received[delivery.destination] += nbytes
            pairs.add((sender, delivery.destination))
    return Load.of(sent, received, pairs)


def _nbytes(delivery: Delivery, share: Share, itemsize: int) -> int:
    part, parts = share
    if parts == 1:
        return delivery.crossing.nbytes
    found = 0
    for stretch in delivery.crossing.stretches:
        rows = next((n for n in stretch.shape if n > 1), 1)
        found += volume(stretch.region) // rows * (rows * (part + 1) // parts - rows * part // parts)
    return found * itemsize
