"""Blocks of a recipe about models: the policy that is trained, and what stands beside it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator


class Block(BaseModel):
    """A part of a recipe. Values cannot change once it is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, validate_default=True)


class Lora(Block):
    """Train low-rank adapters instead of all weights (2106.09685)."""

    rank: PositiveInt = 16
    alpha: float = Field(32.0, gt=0)
    """The adapter's output is scaled by alpha / rank."""
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Module names that get an adapter."""


class Model(Block):
    """The checkpoint that is trained."""

    path: str
    """A hub id, a folder, a .gguf file, or pkg://package/file for a file inside an installed Python package."""
    revision: str | None = None
    trust_remote_code: bool = False
    max_length: PositiveInt | None = None
    """Longest prompt plus completion in tokens; the model's own limit where empty."""
    lora: Lora | None = None


class Critic(Block):
    """The value function, for algorithms that have one. Its loss is the algorithm's `critic` cell."""

    backbone: Literal["own", "shared"] = "own"
    """A model of its own, or a head on the policy's hidden states."""
    path: str | None = None
    """Where its own backbone starts: a reward model or critic (with its head), or any model; the policy where empty."""
    revision: str | None = None
    learning_rate: float = Field(1e-5, gt=0)
    """At its peak; the schedule is the optimizer's."""
    clip_norm: float = Field(1.0, gt=0)
    warmup_steps: int = Field(0, ge=0)
    """First steps in which the critic learns and the policy stays as it is."""
    stop_gradient: bool = True
    """With a shared backbone: the value loss trains the head alone."""

    @model_validator(mode="after")
    def _path_needs_a_backbone(self) -> Critic:
        if self.path is not None and self.backbone == "shared":
            raise ValueError(
                f"critic.path is {self.path!r}, but critic.backbone: shared has no model of its own to load"
            )
        return self


class ReferencePolicy(Block):
    """One policy that training is held near."""

    path: str | None = None
    """A model with the same tokenizer; the policy as training finds it where empty."""
    revision: str | None = None
    share: float = Field(1.0, gt=0)
    """Its part in the penalty, relative to the others'."""


class Reference(Block):
    """The reference policies, for algorithms with a KL penalty or an objective against them."""

    policies: tuple[ReferencePolicy, ...] = Field((ReferencePolicy(),), min_length=1)
    refresh: Literal["never", "average", "copy"] = "never"
    """How the first one follows the policy: not at all, as a moving average, or by becoming it."""
    every: PositiveInt = 1
    """Steps between refreshes."""
    decay: float = Field(0.99, ge=0, lt=1)
    """What a moving average keeps of itself each time."""
    momentum: float = Field(0.0, ge=0, lt=1)
    """At each copy the policy goes on by so much of the way it came since the copy before (2410.06293)."""
    cache: bool = False
    """Compute the reference's log-probabilities of given responses once, and keep them on disk."""
