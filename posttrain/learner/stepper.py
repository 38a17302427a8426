"""AdamW on full-precision masters, its schedule, and the clipping of gradients: one optimiser step of one model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import get_scheduler

from posttrain.errors import TrainingError
from posttrain.learner.masters import Masters, Movable
from posttrain.learner.sharding import Sharding, full
from posttrain.recipe import Optimizer

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class State:
    """Everything the next optimiser step depends on."""

    numbers: dict[str, Any]
    """What is the same on every rank, and small."""
    tensors: dict[str, Tensor]
    """By kind and parameter, `trained/NAME`, `exp_avg/NAME`, `exp_avg_sq/NAME`: whole, or this rank's shards."""

    def copied(self) -> State:
        """The same in memory of its own."""
        return State(dict(self.numbers), {name: t.detach().clone() for name, t in self.tensors.items()})


class Steps(Protocol):
    """Optimiser steps of one model."""

    updates: int

    @property
    def masters(self) -> Movable: ...

    def step(self) -> tuple[float, float]:
        """One optimiser step, none where nothing was accumulated; the gradient's norm before clipping, and the learning
        rate. Raises TrainingError for a gradient that is not finite, the weights left as they are.
        """

    def discard(self) -> None:
        """Forget what was accumulated."""

    def state(self) -> State:
        """Everything the next step depends on."""

    def room(self, numbers: dict[str, Any]) -> State:
        """Memory, laid out as this rank holds it, for a state whose `numbers` are known."""

    def load(self, state: State) -> None:
        """Continue from a state, bit for bit."""


def schedule_of(settings: Optimizer) -> str:
    """The schedule by the name that transformers has for it."""
    return {"constant": "constant_with_warmup"}.get(settings.schedule, settings.schedule)


def refuse_norm(norm: float, update: int, what: str) -> NoReturn:
    """Raises TrainingError for a gradient that is not finite."""
    raise TrainingError(
        f"the gradient norm of update {update} of the {what} is {norm}; the weights were left as they are. Lower its "
        "learning_rate, or look at the step's roll-outs"
    )


class Stepper:
    """Implements `Steps`. Moves the trainable parameters of a module. Policy and critic have one each."""

    def __init__(
        self, module: nn.Module, settings: Optimizer, total_updates: int, sharding: Sharding, what: str = "policy"
    ) -> None:
        self.masters, self.settings, self.what, self.sharding = Masters(module), settings, what, sharding
        # Shards and whole tensors are not stepped, nor their norms stacked, in one operation.
        masters = self.masters.parameters
        parts = [[p for p in masters if isinstance(p, DTensor) is sharded] for sharded in (True, False)]
        self._parts = [part for part in parts if part]
        self.optimizer = torch.optim.AdamW(
            [{"params": part} for part in self._parts],
            lr=settings.learning_rate,
            betas=settings.betas,
            eps=settings.epsilon,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        self.scheduler = get_scheduler(schedule_of(settings), self.optimizer, settings.warmup_steps, total_updates)
        self.updates = 0

    def step(self) -> tuple[float, float]:
        if not self._reduced():
            return 0.0, self.scheduler.get_last_lr()[0]
        norm = self._clipped()
        if not math.isfinite(norm):
            refuse_norm(norm, self.updates + 1, self.what)
        rate = self.scheduler.get_last_lr()[0]
        self.optimizer.step()
        self.scheduler.step()
        self.discard()
        self.masters.publish()
        self.updates += 1
        return norm, rate

    def _clipped(self) -> float:
        """Scale gradients down to the limit; their norm before."""
        parts = [present for part in self._parts if (present := [p for p in part if p.grad is not None])]
        norms = [full(nn.utils.get_total_norm([p.grad for p in part if p.grad is not None])) for part in parts]
        norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))
        for part in parts:
            nn.utils.clip_grads_with_norm_(part, self.settings.clip_norm, norm)
        return float(norm)

    def _reduced(self) -> bool:
        """Make gradients sums over the ranks. Whether there are any."""
        parameters = self.masters.parameters
        present = self.sharding.world.gather([p.grad is not None for p in parameters])
        anywhere = [any(of_one) for of_one in zip(*present, strict=True)]
        for parameter, there in zip(parameters, anywhere, strict=True):
            if there and parameter.grad is None:
                # This rank had no micro-batch, or none that reached the parameter.
                parameter.grad = torch.zeros_like(parameter)
        self.sharding.reduce([p.grad for p in parameters if p.grad is not None])
        return any(anywhere)

    def discard(self) -> None:
        self.masters.zero_grad()

    def state(self) -> State:
        """Everything the next step depends on; tensors are the live ones."""
        tensors, steps = {}, {}
        for name, parameter in self.masters.named():
            tensors[f"trained/{name}"] = parameter.detach()
            moments = self.optimizer.state.get(parameter)
            if moments:
                steps[name] = float(moments["step"])
                tensors |= {f"{kind}/{name}": moments[kind] for kind in MOMENTS}
        return State({"steps": steps, "scheduler": self.scheduler.state_dict(), "updates": self.updates}, tensors)

    def room(self, numbers: dict[str, Any]) -> State:
        tensors = {}
        for name, parameter in self.masters.named():
            tensors[f"trained/{name}"] = torch.empty_like(parameter.detach())
            if name in numbers["steps"]:
                tensors |= {f"{kind}/{name}": torch.empty_like(parameter.detach()) for kind in MOMENTS}
        return State(numbers, tensors)

    @torch.no_grad()
    def load(self, state: State) -> None:
        self.discard()
        self.optimizer.state.clear()
        for name, parameter in self.masters.named():
            parameter.copy_(state.tensors[f"trained/{name}"])
            if name in state.numbers["steps"]:
                step = torch.tensor(state.numbers["steps"][name], dtype=torch.float32, device=parameter.device)
                # Without a copy the optimiser would go on in the state's own tensors, and change what it came from.
                moments = {kind: state.tensors[f"{kind}/{name}"].clone() for kind in MOMENTS}
                self.optimizer.state[parameter] = {"step": step, **moments}
        self.masters.publish()
        # Parts share one schedule; how many there are is the strategy's.
        count = len(self._parts)
        found = state.numbers["scheduler"].items()
        schedule = {k: v[:1] * count if isinstance(v, list) else v for k, v in found}
        self.scheduler.load_state_dict(schedule)
        for group in self.optimizer.param_groups:
            group["lr"] = self.scheduler.get_last_lr()[0]
        self.updates = state.numbers["updates"]
