"""AdamW on full-precision masters, its schedule, and the clipping of gradients: one optimiser step of one model."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import nn
from transformers import get_scheduler

from posttrain.errors import TrainingError
from posttrain.learner.masters import Masters
from posttrain.recipe import Optimizer


class Stepper:
    """Moves the trainable parameters of a module. Policy and critic have one each."""

    def __init__(self, module: nn.Module, settings: Optimizer, total_updates: int, what: str = "policy") -> None:
        self.masters, self.settings, self.what = Masters(module), settings, what
        self.optimizer = torch.optim.AdamW(
            self.masters.parameters,
            lr=settings.learning_rate,
            betas=settings.betas,
            eps=settings.epsilon,
            weight_decay=settings.weight_decay,
            fused=True,
        )
        schedule = {"constant": "constant_with_warmup"}.get(settings.schedule, settings.schedule)
        self.scheduler = get_scheduler(schedule, self.optimizer, settings.warmup_steps, total_updates)
        self.updates = 0

    def step(self) -> tuple[float, float]:
        """One optimiser step, none where nothing was accumulated; the gradient's norm before clipping, and the learning
        rate. Raises TrainingError for a gradient that is not finite, the weights left as they are.
        """
        if all(p.grad is None for p in self.masters.parameters):
            return 0.0, self.scheduler.get_last_lr()[0]
        norm = float(nn.utils.clip_grad_norm_(self.masters.parameters, self.settings.clip_norm))
        if not math.isfinite(norm):
            raise TrainingError(
                f"the gradient norm of update {self.updates + 1} of the {self.what} is {norm}; the weights were left "
                "as they are. Lower its learning_rate, or look at the step's roll-outs"
            )
        rate = self.scheduler.get_last_lr()[0]
        self.optimizer.step()
        self.scheduler.step()
        self.discard()
        self.masters.publish()
        self.updates += 1
        return norm, rate

    def discard(self) -> None:
        """Forget what was accumulated."""
        self.masters.zero_grad()

    def state(self) -> dict[str, Any]:
        """Everything the next step depends on; tensors are the live ones."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "updates": self.updates,
            "trained": [p.detach() for p in self.masters.parameters],
        }

    def snapshot(self) -> dict[str, Any]:
        """`state` in copies, to come back to."""
        return copy.deepcopy(self.state())

    @torch.no_grad()
    def load(self, state: dict[str, Any]) -> None:
        """Continue from a state, bit for bit."""
        self.discard()
        for parameter, value in zip(self.masters.parameters, state["trained"], strict=True):
            parameter.copy_(value)
        self.masters.publish()
        # Without a copy the optimiser would go on in the state's own tensors, and change what it came from.
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self.scheduler.load_state_dict(state["scheduler"])
        self.updates = state["updates"]
