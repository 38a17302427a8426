"""Optimiser steps of a DeepSpeed engine, and their state as every other strategy writes and reads it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard, distribute_tensor
from transformers import get_scheduler

from posttrain.errors import TrainingError
from posttrain.learner.sharding import full
from posttrain.learner.stepper import MOMENTS, State, refuse_norm, schedule_of
from posttrain.recipe import Optimizer
from posttrain.world import World

T = TypeVar("T")


class Engine:
    """A reader in its DeepSpeed engine, which is shared by a world. `optimizer` is None where it is frozen."""

    def __init__(self, engine: Any, optimizer: torch.optim.Optimizer | None, world: World) -> None:
        self.engine, self.optimizer, self.world = engine, optimizer, world
        self.stage = int(engine.zero_optimization_stage())
        self.model = engine.module.model
        self.pending = False
        """Whether gradients were accumulated since the last step, or are about to be."""

    def __call__(self, ask: Callable[[], T]) -> T:
        found: T = self.engine(ask)
        # Every pass with gradient is followed by a backward pass, in one with other engines' where a loss has several.
        self.pending |= self.optimizer is not None and torch.is_grad_enabled()
        return found


@dataclass(frozen=True)
class Piece:
    """Which of a parameter's elements this rank has the master of: `count` from `start`, at `at` in the flat `master`,
    itself the key of the moments in the optimiser's state.
    """

    master: Tensor
    at: int
    start: int
    count: int

    def of(self, flat: Tensor) -> Tensor:
        return flat.view(-1)[self.at : self.at + self.count]


@dataclass(frozen=True)
class Copies:
    """Implements `Movable`: an engine's masters in rows of whole tensors, and what becomes of them when they moved."""

    parameters: list[Tensor]
    take: Callable[[Sequence[Tensor]], None]

    def publish(self) -> None:
        self.take(self.parameters)


class ZeroStepper:
    """Implements `Steps` over an engine. Its state goes to disk as FSDP2's does, in rows of whole tensors, each brought
    together and cut again by itself, so no rank ever holds more than one whole.
    """

    def __init__(self, reader: Engine, settings: Optimizer, total_updates: int, mesh: DeviceMesh, what: str) -> None:
        assert reader.optimizer is not None
        self.reader, self.mesh, self.what = reader, mesh, what
        self.world: World = reader.world
        self.engine, self.optimizer = reader.engine, reader.optimizer
        self._named = [(name, p) for name, p in reader.model.named_parameters() if p.requires_grad]
        self._pieces = {name: self._piece(p) for name, p in self._named}
        self.scheduler = get_scheduler(schedule_of(settings), self.optimizer, settings.warmup_steps, total_updates)
        self.updates = 0

    @property
    def masters(self) -> Copies:
        """A collective."""
        return Copies([self._rows(name, p, lambda master: master.detach()) for name, p in self._named], self._take)

    @torch.no_grad()
    def _take(self, rows: Sequence[Tensor]) -> None:
        for (name, parameter), moved in zip(self._named, rows, strict=True):
            whole = full(moved)
            self._fill(name, whole, lambda master: master)
            written(parameter, whole)

    def step(self) -> tuple[float, float]:
        rate = self.scheduler.get_last_lr()[0]
        if not self.reader.pending:
            return 0.0, rate
        self.engine.step()
        self.reader.pending = False
        if self.engine.optimizer.overflow:
            # The engine has dropped the gradients, and left the weights alone.
            refuse_norm(float("nan"), self.updates + 1, self.what)
        self.scheduler.step()
        self.updates += 1
        return float(self.engine.get_global_grad_norm()), rate

    def discard(self) -> None:
        if not self.reader.pending:
            return
        # An engine lets go of a gradient by a step alone: it is taken, and taken back.
        before = self.state().copied()
        self.engine.step()
        self.reader.pending = False
        self.load(before)

    def _piece(self, parameter: Any) -> Piece | None:
        """None where other ranks have all of it."""
        zero = self.engine.optimizer
        if self.reader.stage == 3:
            group, at, count = zero.grad_position[zero.get_param_id(parameter)]
            start = count * self.world.rank
            # The last part is filled up with zeros.
            count = max(0, min(count, parameter.ds_numel - start))
            return Piece(zero.fp32_partitioned_groups_flat[group], at, start, count)
        mapping = parameter._hp_mapping
        if mapping is None:
            return None
        at, held = mapping.hp_fragment_address.start, mapping.lp_fragment_address
        master = zero.single_partition_of_fp32_groups[mapping.param_group_index]
        return Piece(master, at, held.start, held.numel)

    def _shape(self, parameter: Any) -> torch.Size:
        return torch.Size(getattr(parameter, "ds_shape", parameter.shape))

    def _flats(self) -> list[Tensor]:
        """This rank's masters, each once."""
        return list({id(p): p for group in self.optimizer.param_groups for p in group["params"]}.values()) or [
            *self.engine.optimizer.fp32_partitioned_groups_flat
        ]

    def _rows(self, name: str, parameter: Any, flat_of: Callable[[Tensor], Tensor]) -> Tensor:
        """This rank's rows of a tensor whose pieces lie in `flat_of` the masters. A collective."""
        shape, piece = self._shape(parameter), self._pieces[name]
        whole = torch.zeros(shape.numel(), device=self.mesh.device_type)
        if piece is not None and piece.count:
            whole[piece.start : piece.start + piece.count] = piece.of(flat_of(piece.master)).to(whole)
        self.world.add([whole])
        return distribute_tensor(whole.view(shape), self.mesh, [Shard(0)], src_data_rank=None)

    @torch.no_grad()
    def state(self) -> State:
        """Everything the next step depends on, in copies. A collective."""
        tensors: dict[str, Tensor] = {}
        counts = [float(moments["step"]) for moments in self.optimizer.state.values() if "step" in moments]
        # A rank may hold no master at all.
        count = max(c for of_rank in self.world.gather(counts) for c in [0.0, *of_rank])
        for name, parameter in self._named:
            tensors[f"trained/{name}"] = self._rows(name, parameter, lambda master: master.detach())
            for kind in MOMENTS if count else ():
                tensors[f"{kind}/{name}"] = self._rows(name, parameter, lambda m: self.optimizer.state[m][kind])  # noqa: B023
        steps = {name: count for name, _ in self._named} if count else {}
        return State({"steps": steps, "scheduler": self.scheduler.state_dict(), "updates": self.updates}, tensors)

    def room(self, numbers: dict[str, Any]) -> State:
        kinds = ("trained", *(MOMENTS if numbers["steps"] else ()))
        tensors: dict[str, Tensor] = {}
        for name, parameter in self._named:
            for kind in kinds if name in numbers["steps"] else kinds[:1]:
                empty = torch.zeros(self._shape(parameter), device=self.mesh.device_type)
                tensors[f"{kind}/{name}"] = distribute_tensor(empty, self.mesh, [Shard(0)], src_data_rank=None)
        return State(numbers, tensors)

    @torch.no_grad()
    def load(self, state: State) -> None:
        """Continue from a state, bit for bit. A collective."""
        self.discard()
        steps = set(state.numbers["steps"].values())
        if len(steps) > 1:
            raise TrainingError(
                f"the checkpoint's parameters have taken different numbers of steps ({sorted(steps)}), and under ZeRO "
                "all have taken the same; go on from it with strategy ddp or fsdp2"
            )
        self.optimizer.state.clear()
        for master in self._flats() if steps else ():
            self.optimizer.state[master] = {
                "step": torch.tensor(max(steps), dtype=torch.float32, device=master.device),
                **{kind: torch.zeros_like(master) for kind in MOMENTS},
            }
        for name, parameter in self._named:
            whole = full(state.tensors[f"trained/{name}"])
            self._fill(name, whole, lambda master: master)
            written(parameter, whole)
            for kind in MOMENTS if name in state.numbers["steps"] else ():
                moment = full(state.tensors[f"{kind}/{name}"])
                self._fill(name, moment, lambda master: self.optimizer.state[master][kind])  # noqa: B023
        schedule = dict(state.numbers["scheduler"])
        count = len(self.optimizer.param_groups)
        self.scheduler.load_state_dict({k: v[:1] * count if isinstance(v, list) else v for k, v in schedule.items()})
        for group in self.optimizer.param_groups:
            group["lr"] = self.scheduler.get_last_lr()[0]
        self.updates = state.numbers["updates"]

    def _fill(self, name: str, whole: Tensor, flat_of: Callable[[Tensor], Tensor]) -> None:
        piece = self._pieces[name]
        if piece is not None and piece.count:
            part = whole.reshape(-1)[piece.start : piece.start + piece.count]
            piece.of(flat_of(piece.master).detach()).copy_(part)


def written(parameter: Any, whole: Tensor) -> None:
    """Round a whole tensor into a parameter, which may be cut over the ranks. A collective."""
    if not hasattr(parameter, "ds_id"):
        parameter.copy_(whole)
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
        parameter.copy_(whole)
