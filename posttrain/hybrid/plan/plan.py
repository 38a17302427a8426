"""The plan: which rank sends which slice to which rank, so that every engine rank gets what it holds and no more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from posttrain.errors import ModelError, RecipeError
from posttrain.hybrid.plan.boxes import Box, Shape
from posttrain.hybrid.plan.families import EMBEDDING, HEAD, Architecture
from posttrain.hybrid.plan.generation import Generation
from posttrain.hybrid.plan.landing import Landing, Tensor, land_all
from posttrain.hybrid.plan.moves import Move
from posttrain.hybrid.plan.template import Delivery, Kind, Template, crossings, deliver
from posttrain.hybrid.plan.training import Training


@dataclass(frozen=True, slots=True)
class Parameter:
    """One of the engine's parameters: its shape on a rank, bytes of an element, and how it is cut."""

    shape: Shape
    itemsize: int
    landing: Landing

    def padding(self, t: int) -> Box | None:
        """What no tensor fills on rank t of the tensor parallelism; the engine wants zeros there."""
        rows = self.landing.cut.padding(t)
        if rows is None:
            return None
        dim = self.landing.cut.dim + len(self.shape) - len(self.landing.cut.local(self.shape))
        return tuple(rows if d == dim else (0, n) for d, n in enumerate(self.shape))


@dataclass(frozen=True, slots=True)
class Shipment:
    """One tensor's way: its template, and which of the template's tensors it is."""

    tensor: Tensor
    landing: Landing
    template: Template
    index: int

    def moves(self, delivery: Delivery) -> Iterator[Move]:
        for stretch in delivery.crossing.stretches:
            yield stretch.bound(self.tensor.name, self.landing.parameter, self.landing.slot, self.tensor.itemsize)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of one engine rank: what it holds (without padding), of that copied in its process and received, and the
    least that any plan could have it receive: what it holds less what its process stores already.
    """

    holds: int
    local: int
    received: int
    bound: int


@dataclass(frozen=True)
class Plan:
    """All of a resharding that follows from layouts and shapes; the same on every rank that works it out."""

    training: Training
    generation: Generation
    shipments: tuple[Shipment, ...]
    parameters: Mapping[str, Parameter]
    aliases: Mapping[str, str]
    """Names that are another parameter's storage in the engine, where it has them at all: nothing is sent for them."""

    @property
    def nbytes(self) -> int:
        """Of the checkpoint, each tensor once."""
        return sum(s.tensor.nbytes for s in self.shipments)

    def moves(self, source: int | None = None, destination: int | None = None) -> Iterator[tuple[int, int, Move]]:
        """(training rank, engine rank, move), in the order of the checkpoint; all, or those of one rank or pair."""
        for shipment in self.shipments:
            for sender, delivery in shipment.template.routes(shipment.index).of(source, destination):
                for move in shipment.moves(delivery):
                    yield sender, delivery.destination, move

    def templates(self) -> list[Template]:
        return list({id(s.template): s.template for s in self.shipments}.values())

    def traffic(self) -> list[Traffic]:
        """Per engine rank."""
        local, received = Counter[int](), Counter[int]()
        for template in self.templates():
            for delivery in template.deliveries:
                found = local if delivery.local else received
                found[delivery.destination] += delivery.crossing.nbytes * template.count
        traffic = []
        for g in range(self.generation.ranks):
            t = g % self.generation.tensor
            holds = sum(template.held(t) * template.count for template in self.templates())
            stored = 0
            if self.generation.colocated:
                stored = sum(template.at_hand(t, g) * template.count for template in self.templates())
            traffic.append(Traffic(holds, local[g], received[g], holds - stored))
        return traffic

    def sent(self) -> list[int]:
        """Bytes that each training rank sends to other processes."""
        found = Counter[int]()
        for template in self.templates():
            for delivery in template.deliveries:
                if not delivery.local:
                    rounds, rest = divmod(template.count, len(delivery.senders))
                    for index, rank in enumerate(delivery.senders):
                        found[rank] += (rounds + (index < rest)) * delivery.crossing.nbytes
        return [found[rank] for rank in range(self.training.ranks)]


def make_plan(
    tensors: Iterable[Tensor],
    architecture: Architecture,
    training: Training,
    generation: Generation,
    ties: Mapping[str, str] | None = None,
) -> Plan:
    """The plan for a checkpoint's tensors, by their names and whole shapes. `ties`: names that are another tensor's
    storage in the trainer (lm_head.weight: model.embed_tokens.weight); they may or may not be among the tensors.

    Raises RecipeError for numbers of ranks that cannot be, ModelError for a tensor that is unknown or missing.
    """
    _refuse_worlds(training, generation)
    sent, aliases = _without_aliases(list(tensors), architecture, dict(ties or {}))
    landings = land_all((tensor for tensor, _ in sent), architecture, generation.tensor)
    kinds = [
        Kind(tensor.shape, tensor.itemsize, training.dim(stored), landing.cut)
        for (tensor, stored), landing in zip(sent, landings, strict=True)
    ]
    templates = {}
    for kind, count in Counter(kinds).items():
        pieces = training.pieces(kind.shape, kind.dim)
        templates[kind] = Template(kind, count, tuple(crossings(kind, pieces, generation.tensor)))
    deliver(list(templates.values()), generation)
    seen = Counter[Kind]()
    shipments = []
    for (tensor, stored), landing, kind in zip(sent, landings, kinds, strict=True):
        source = Tensor(stored, tensor.shape, tensor.itemsize)
        shipments.append(Shipment(source, landing, templates[kind], seen[kind]))
        seen[kind] += 1
    return Plan(training, generation, tuple(shipments), _parameters(shipments), aliases)


def _refuse_worlds(training: Training, generation: Generation) -> None:
    mistakes = [
        f"{key}: {getattr(generation, field)} cannot be; at least 1 is needed"
        for key, field in (("tensor_parallel", "tensor"), ("replicas", "replicas"))
        if getattr(generation, field) < 1
    ]
    if not mistakes and generation.colocated and training.ranks != generation.ranks:
        mistakes.append(
            f"tensor_parallel: {generation.tensor} x {generation.replicas} replicas = {generation.ranks} engine ranks, "
            f"but {training.ranks} training processes; colocated, every process holds one of each, so tensor_parallel "
            f"can be {_divisors(training.ranks)}"
        )
    if mistakes:
        raise RecipeError(mistakes, "generation layout")


def _divisors(number: int) -> str:
    return ", ".join(f"{n} (x {number // n})" for n in range(1, number + 1) if number % n == 0)


def _without_aliases(
    tensors: list[Tensor], architecture: Architecture, ties: dict[str, str]
) -> tuple[list[tuple[Tensor, str]], dict[str, str]]:
    """Each tensor to be landed with the name under which the trainer stores it, and the engine's own aliases."""
    by_name = {tensor.name: tensor for tensor in tensors}
    if len(by_name) < len(tensors):
        twice = sorted(name for name, n in Counter(t.name for t in tensors).items() if n > 1)
        raise ModelError(f"{', '.join(twice[:3])}: named twice among the tensors to be sent")
    for alias, name in ties.items():
        if name not in by_name:
            raise ModelError(f"{alias}: tied to {name}, which is not among the tensors to be sent")
        by_name[alias] = Tensor(alias, by_name[name].shape, by_name[name].itemsize)
    if not architecture.tied:
        return [(tensor, ties.get(name, name)) for name, tensor in by_name.items()], {}
    if HEAD in by_name and ties.get(HEAD) != EMBEDDING:
        raise ModelError(
            f"{HEAD}: a tensor of its own in the trainer, but with tie_word_embeddings the engine's is its embedding; "
            "untie the engine's config or tie the trainer's head"
        )
    by_name.pop(HEAD, None)
    return [(tensor, ties.get(name, name)) for name, tensor in by_name.items()], {HEAD: EMBEDDING}


def _parameters(shipments: Sequence[Shipment]) -> dict[str, Parameter]:
    """Raises ModelError where a parameter would be left partly unfilled, be filled twice, or have two shapes."""
    found: dict[str, Parameter] = {}
    filled: dict[str, Counter[tuple[int | None, int]]] = {}
    for shipment in shipments:
        landing, tensor = shipment.landing, shipment.tensor
        local = Parameter(landing.local(tensor.shape), tensor.itemsize, landing)
        first = found.setdefault(landing.parameter, local)
        if first.shape != local.shape or first.landing.cut.parts != landing.cut.parts:
            raise ModelError(
                f"{tensor.name}: makes {landing.parameter} {list(local.shape)} on a rank, which other tensors make "
                f"{list(first.shape)}"
            )
        filled.setdefault(landing.parameter, Counter()).update((landing.slot, i) for i in landing.cut.filled)
    for name, parameter in found.items():
        slots = [None] if parameter.landing.slot is None else range(parameter.landing.slots)
        wanted = {(slot, i) for slot in slots for i in range(len(parameter.landing.cut.parts))}
        missing = sorted(wanted - set(filled[name]), key=str)
        if missing:
            slot, index = missing[0]
            of_expert = "" if slot is None else f" of expert {slot}"
            raise ModelError(
                f"{name}: no tensor fills part {index + 1} of {len(parameter.landing.cut.parts)}{of_expert} "
                f"({len(missing)} missing in all); the checkpoint's tensors are incomplete"
            )
        if max(filled[name].values()) > 1:
            raise ModelError(f"{name}: filled by two tensors of the checkpoint")
    return found
