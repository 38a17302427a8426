"""A recipe on a machine: each phase's memory, traffic and seconds, what does not fit, and what would."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from posttrain.algorithms.row import Algorithm
from posttrain.planner import pace, traffic
from posttrain.planner.engine import Engine, engine_of
from posttrain.planner.machine import Machine
from posttrain.planner.memory import Placement, computing, fullest, learning_terms
from posttrain.planner.shape import Shape
from posttrain.planner.work import Work, work_of
from posttrain.recipe import Recipe, published_apart

RESIDENT = ("weights", "masters", "moments", "references", "critic")
"""What the learner holds in every phase."""


@dataclass(frozen=True)
class Phase:
    """One phase on one device."""

    name: str
    memory: Mapping[str, float]
    """Bytes at the fullest moment, by what they are."""
    room: float
    seconds: Mapping[str, float]
    moved: float
    """Bytes that the busiest rank receives, or sends, from others."""
    note: str = ""

    @property
    def total(self) -> float:
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        return self.total <= self.room


@dataclass(frozen=True)
class Estimate:
    """What a recipe asks of a machine."""

    machine: Machine
    shape: Shape
    placement: Placement
    work: Work
    trained: int
    phases: tuple[Phase, ...]
    flops: float
    """Of the learning phase of a step."""
    publishing: traffic.Publishing | None
    engine: Engine | None
    mistakes: tuple[str, ...] = ()
    """What cannot be, whatever the memory."""
    advice: tuple[str, ...] = field(default=())

    @property
    def seconds(self) -> dict[str, float]:
        """Of a step, by what they are for."""
        return {name: s for phase in self.phases for name, s in phase.seconds.items()}

    @property
    def largest(self) -> str:
        """What most of a step's time goes to."""
        return max(self.seconds, key=self.seconds.__getitem__)

    @property
    def fits(self) -> bool:
        return not self.mistakes and all(phase.fits for phase in self.phases)

    @property
    def misfits(self) -> list[str]:
        """Each thing that does not fit, with its numbers."""
        return [
            *self.mistakes,
            *(
                f"{phase.name}: {phase.total / 1e9:.1f} GB on each device of {phase.room / 1e9:.1f} GB; most of it "
                f"{_most(phase.memory)}"
                for phase in self.phases
                if not phase.fits
            ),
        ]

    def tree(self) -> dict[str, Any]:
        """Everything, ready for JSON."""
        phases = [{**asdict(p), "total": p.total, "fits": p.fits} for p in self.phases]
        work = {**asdict(self.work), "sequences": self.work.sequences, "learnt_tokens": self.work.learnt}
        return {
            "machine": asdict(self.machine),
            "model": {**asdict(self.shape), "parameters": self.shape.parameters, "trained": self.trained},
            "placement": asdict(self.placement),
            "step": {**work, "positions": self.work.positions, "learning_flops": self.flops},
            "phases": phases,
            "publishing": asdict(self.publishing) if self.publishing else None,
            "engine": {**asdict(self.engine), "concurrency": self.engine.concurrency} if self.engine else None,
            "seconds": {"total": sum(self.seconds.values()), "largest": self.largest, **self.seconds},
            "fits": self.fits,
            "misfits": self.misfits,
            "advice": list(self.advice),
        }


def estimate(recipe: Recipe, row: Algorithm | None, shape: Shape, machine: Machine) -> Estimate:
    """What the recipe asks of the machine, without advice. `row` is None where the recipe only evaluates."""
    narrow = machine.rates.get("bfloat16", 0.0) >= machine.rates.get("float32", 0.0)
    placement = Placement.of(recipe, machine.device, narrow)
    work = work_of(recipe, row, shape.context)
    samples = row is None or row.needs.sampler or bool(recipe.rewards and recipe.data.eval)
    engine = engine_of(recipe, shape, work, placement, machine) if samples else None
    held, phases, flops, trained, moved = {}, [], 0.0, 0, None
    room = machine.room(placement.ranks)
    if row is not None:
        learning, flops, trained = _learning(recipe, row, shape, work, placement, machine)
        held = {name: size for name, size in learning.memory.items() if name in RESIDENT}
        if engine is not None and (placement.device == "cpu" or recipe.rollout.engine != "vllm"):
            # Only vLLM on a GPU can sleep.
            awake = {"engine weights": engine.weights, "KV cache": engine.cache * (recipe.rollout.engine == "vllm")}
            learning = replace(learning, memory={**learning.memory, **awake})
        phases.append(learning)
    if engine is not None:
        if row is not None:
            alone = trained if published_apart(recipe) else None
            moved = traffic.publishing(shape, placement, machine.per_machine, alone)
            memory = {**held, **engine.terms(), "tensors on their way": moved.buffers}
            seconds = {"publishing": pace.publishing_seconds(moved, placement, machine)}
            phases.append(Phase("publishing", memory, room, seconds, moved.received, _of_plan(moved)))
        seconds = pace.generating_seconds(shape, work, engine, placement, machine) if work.sampled else {}
        phases.append(Phase("generating", {**held, **engine.terms()}, room, seconds, 0.0, _of_engine(engine)))
    found = _mistakes(placement, engine, machine, recipe)
    return Estimate(machine, shape, placement, work, trained, tuple(phases), flops, moved, engine, tuple(found))


def _learning(
    recipe: Recipe,
    row: Algorithm,
    shape: Shape,
    work: Work,
    placement: Placement,
    machine: Machine,
) -> tuple[Phase, float, int]:
    terms = learning_terms(recipe, shape, work, placement, row)
    trained = computing(recipe, shape, work, placement).trained
    flops = pace.learning_flops(recipe, shape, work, row)
    sent = traffic.learning(shape, trained, work, placement)
    seconds = pace.learning_seconds(flops, sent, work, placement, machine)
    seconds["learning: optimiser"] = pace.optimiser_seconds(trained, work, placement, machine)
    size = work.micro_batch
    note = (
        f"fullest at: {fullest(recipe, shape, work, placement).name}; {work.passes} micro-batches of {size.rows} x "
        f"{size.length} positions for each of {work.updates} updates"
        + (f", so {placement.ranks - work.passes} ranks wait" if work.passes < placement.ranks else "")
    )
    return Phase("learning", terms, machine.room(placement.ranks), seconds, sent, note), flops, trained


def _of_plan(moved: traffic.Publishing) -> str:
    if moved.planned is None or moved.bound is None:
        return ""
    return (
        f"a rank needs {moved.planned / 1e9:.2f} GB of others by the resharding plan, {moved.bound / 1e9:.2f} at least"
    )


def _of_engine(engine: Engine) -> str:
    return (
        f"{engine.concurrency} of {engine.asked} sequences of {engine.length} tokens at one time on each engine; all "
        f"want {engine.wanted / 1e9:.2f} GB of keys and values"
    )


def _mistakes(placement: Placement, engine: Engine | None, machine: Machine, recipe: Recipe) -> list[str]:
    found = []
    if placement.ranks > machine.devices and not machine.shared:
        found.append(
            f"hardware.learner.processes: {placement.ranks}, but {machine.name} has {machine.devices} devices; lower it"
        )
    if machine.device == "cuda" and recipe.hardware.device == "cpu":
        found.append(f"hardware.device: cpu, but {machine.name} is described as cuda; use device: cuda")
    if engine is not None and engine.tokens < engine.length:
        found.append(
            f"hardware.sampler.memory: {recipe.hardware.sampler.memory:g} leaves room for the keys and values of "
            f"{engine.tokens} tokens beside {(engine.weights + engine.working) / 1e9:.1f} GB, but one sequence has "
            f"{engine.length}"
        )
    return found


def _most(memory: Mapping[str, float]) -> str:
    ordered = sorted(memory.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{name} {size / 1e9:.1f}" for name, size in ordered)
