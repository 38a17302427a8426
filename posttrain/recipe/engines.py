"""Blocks of a recipe about what generates: engines in the learning processes, or servers apart from them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from posttrain.recipe.policies import Block


class Servers(Block):
    """Engines in processes of their own, here or on other machines."""

    addresses: tuple[str, ...] = ()
    """Of servers that run already, `http://host:port`; none: they are started here."""
    token_from: str | None = None
    """The environment variable with what the proxies before them ask for: a token is not written into a recipe."""
    replicas: PositiveInt = 1
    """How many are started here."""
    restarts: int = Field(3, ge=0)
    """How often in a run those may be started again."""
    start_timeout: PositiveFloat = 600.0
    """Seconds until one started here must answer."""
    answer_timeout: PositiveFloat = 1200.0
    """Seconds one response may take before its server counts as lost. With several ranks less than `hardware.patience`,
    as the other ranks wait for it.
    """


class Sampler(Block):
    """The generating side."""

    placement: Literal["colocated", "servers"] = "colocated"
    """colocated: in the processes that learn; servers: apart from them."""
    servers: Servers = Servers()
    sync: Literal["auto", "planned", "gathered"] = "auto"
    """planned: each rank receives only what its part of the engine holds; gathered: all weights are brought together on
    every rank; auto: planned where a plan covers model and layouts. A run says at its start which, and why.
    """
    adapters: Literal["auto", "merged", "apart"] = "auto"
    """How a policy with model.lora is published. merged: whole, the adapter added into copies of the weights; apart:
    the base once, then for each version the adapter alone; auto: apart where a probe at the start finds that the engine
    serves it as exactly as merged weights. A run says which, and why.
    """
    tensor_parallel: PositiveInt = 1
    memory: float = Field(1.0, gt=0)
    """For the key-value cache: GiB on a CPU; on a GPU, at most 1, the engine's share of the card."""
    max_sequences: PositiveInt = 128
    """Sequences decoded at one time."""
    compile: bool = False
    """Let the engine compile its graph: slower to start, faster to decode."""

    @model_validator(mode="after")
    def _read(self) -> Sampler:
        if self.placement == "colocated" and self.servers != Servers():
            raise ValueError("hardware.sampler.servers: nothing reads it; set placement: servers, or leave it out")
        if self.servers.addresses and self.servers.replicas > 1:
            raise ValueError(
                f"hardware.sampler.servers.replicas: {self.servers.replicas}, but those at addresses run already; "
                "leave one out"
            )
        return self
