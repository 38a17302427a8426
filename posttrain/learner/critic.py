"""The value function: a backbone of its own with a head, or a head on the policy's hidden states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from posttrain.learner.backbone import predictors
from posttrain.learner.computation import said_by
from posttrain.learner.layout import Laid
from posttrain.learner.sharding import WHOLE, Asking, Reader, Sharding, full
from posttrain.learner.state import read_numbers, read_tensors, write_numbers, write_tensors
from posttrain.models.checkpoint import merged_weights
from posttrain.recipe import Critic as Settings
from posttrain.recipe import Optimizer

NUMBERS = "critic.pt"


class Critic:
    """`model` is a transformers sequence classifier whose `score` head has one output per value bin, or, on the
    policy's backbone, that head alone.
    """

    def __init__(
        self, model: Any, settings: Settings, optimizer: Optimizer, total_updates: int, sharding: Sharding = WHOLE
    ) -> None:
        self.settings, self.own, self.sharding = settings, settings.backbone == "own", sharding
        self.model = model
        self.head: nn.Linear = model.score if self.own else model
        # The optimiser's steps would be lost in bf16, unless it has masters.
        self.head.to(torch.promote_types(self.head.weight.dtype, torch.float32))
        trained = any(p.requires_grad for p in model.parameters())
        changes = {"learning_rate": settings.learning_rate, "clip_norm": settings.clip_norm}
        own = optimizer.model_copy(update=changes)
        self.reader: Asking = Reader(model)
        if self.own:
            self.reader = sharding.place(Reader(model), list(self.head.parameters()), own if trained else None)
        self.stepper = sharding.stepper(self.reader, own, total_updates, "critic") if trained else None
        """None where it is frozen."""

    def outputs(self, laid: Laid, policy_hidden: Tensor | None) -> Tensor:
        """`[M, B]`: what the head says of the state before each masked token. `policy_hidden [M, H]` is read where the
        critic has no backbone of its own.
        """
        if self.own:
            decoder = getattr(self.model, self.model.base_model_prefix)
            # The head too is inside the pass: where it is cut over the ranks, it is whole there alone.
            return self.reader(lambda: said_by(self.head, predictors(decoder, laid, self.head.weight.device)))
        assert policy_hidden is not None
        return said_by(self.head, policy_hidden.detach() if self.settings.stop_gradient else policy_hidden)

    def save(self, folder: Path) -> None:
        """Write what AutoModelForSequenceClassification loads, or the head alone; nothing of a frozen one."""
        if self.stepper is None:
            return
        world = self.sharding.world
        if self.own:
            tensors = {name: tensor.cpu() for name, tensor in merged_weights(self.model, full, self.sharding.opened)}
            if world.rank == 0:
                self.model.save_pretrained(folder / "critic", state_dict=tensors)
        state = self.stepper.state()
        write_tensors(folder / "critic-learner", state.tensors, world)
        write_numbers(folder, state.numbers, world, NUMBERS)

    def load(self, folder: Path) -> None:
        if self.stepper is not None:
            room = self.stepper.room(read_numbers(folder, NUMBERS))
            read_tensors(folder / "critic-learner", room.tensors, self.sharding.world)
            self.stepper.load(room)
