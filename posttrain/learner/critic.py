"""The value function: a backbone of its own with a head, or a head on the policy's hidden states."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from posttrain.learner.backbone import predictors
from posttrain.learner.layout import Laid
from posttrain.learner.stepper import Stepper
from posttrain.recipe import Critic as Settings
from posttrain.recipe import Optimizer


class Critic:
    """`model` is a transformers sequence classifier whose `score` head has one output per value bin, or, on the
    policy's backbone, that head alone.
    """

    def __init__(
        self, model: Any, settings: Settings, optimizer: Optimizer, total_updates: int, frozen: bool = False
    ) -> None:
        self.settings, self.own = settings, settings.backbone == "own"
        self.model = model
        self.head: nn.Linear = model.score if self.own else model
        # In bf16 a value would have two and a half digits.
        self.head.to(torch.promote_types(self.head.weight.dtype, torch.float32))
        if frozen:
            model.requires_grad_(False)
        changes = {"learning_rate": settings.learning_rate, "clip_norm": settings.clip_norm}
        self.stepper = None if frozen else Stepper(model, optimizer.model_copy(update=changes), total_updates, "critic")
        """None where it is frozen."""

    def outputs(self, laid: Laid, policy_hidden: Tensor | None) -> Tensor:
        """`[M, B]`: what the head says of the state before each masked token. `policy_hidden [M, H]` is read where the
        critic has no backbone of its own.
        """
        if self.own:
            decoder = getattr(self.model, self.model.base_model_prefix)
            hidden = predictors(decoder, laid, self.head.weight.device)
        else:
            assert policy_hidden is not None
            hidden = policy_hidden.detach() if self.settings.stop_gradient else policy_hidden
        return functional.linear(hidden.to(self.head.weight.dtype), self.head.weight)

    def save(self, folder: Path) -> None:
        """Write what AutoModelForSequenceClassification loads, or the head alone; nothing of a frozen one."""
        if self.stepper is None:
            return
        if self.own:
            self.model.save_pretrained(folder / "critic")
        torch.save(self.stepper.state(), folder / "critic.pt")

    def load(self, folder: Path) -> None:
        if self.stepper is not None:
            self.stepper.load(torch.load(folder / "critic.pt", map_location="cpu", weights_only=True))
