"""The generating side: what any sampler can do. It knows nothing of the learner that trains."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

from posttrain.types import Author, Prompt, Rollout, Sampling

if TYPE_CHECKING:
    from torch import Tensor

Piece: TypeAlias = "tuple[str, tuple[slice, ...], Tensor]"
"""A parameter of the engine as one of its ranks holds it, the region that is brought, and what belongs there."""


@dataclass(frozen=True, slots=True)
class Request:
    """One response to be drawn: its prompt, and the seed that makes it the same wherever and whenever it is drawn."""

    prompt: Prompt
    seed: int
    purpose: str = "train"
    """Requests of different purposes share no cached prefix, so that evaluating never changes what training draws."""
    author: Author = "policy"
    """Whose response is asked for."""


class Sampler(Protocol):
    """An engine. `version` names the weights it holds; None until a complete set has arrived, and then it refuses."""

    @property
    def version(self) -> int | None: ...

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Rollout]:
        """One Rollout per request, in order. Raises SyncError when the weights are incomplete."""

    def load(self, weights: Iterator[tuple[str, Tensor]], version: int) -> None:
        """Take a complete set of weights; `version` counts once every expected tensor has been consumed."""

    def sleep(self) -> None:
        """Give back what the training phase can use."""

    def wake(self) -> None:
        """Be ready to take weights and generate."""


Drawn: TypeAlias = Callable[[int, Rollout], None]
"""Hears each response and which of the requests it answers."""


class Streaming(Protocol):
    """What a sampler can do beside that knows of each response before all are drawn."""

    def stream(self, requests: Sequence[Request], sampling: Sampling, drawn: Drawn) -> list[Rollout]:
        """As `generate`, which it is in all else; `drawn` is called as soon as a response is there, in any order, and
        must be quick and raise nothing.
        """


@dataclass(frozen=True, slots=True)
class Parts:
    """How an engine's parameters lie over its processes, where each process can fill its own."""

    span: int
    """Ranks side by side, each with a slice of one engine."""
    own_head: bool
    """The output head is a parameter of its own, rather than the embedding."""


class Fillable(Protocol):
    """What a sampler can do beside whose `parts` are known."""

    @property
    def parts(self) -> Parts | None: ...

    def fill(self, pieces: Iterator[Piece], version: int) -> None:
        """Take a complete set of pieces of the parameters in this process; `version` counts once each parameter has all
        its elements. Raises SyncError otherwise. The engine's ranks call it together.
        """


class Adaptable(Protocol):
    """What a sampler can do beside that serves an adapter apart from the weights of its base."""

    @property
    def unadapted(self) -> str | None:
        """Why it can't; None where it can."""

    @property
    def based(self) -> bool:
        """Whether it holds a complete base, on which an adapter can be put."""

    def hold(self, base: Iterator[tuple[str, Tensor]]) -> None:
        """Take a complete set of weights that stays under every adapter, until `load` brings others."""

    def attach(self, adapter: Iterator[tuple[str, Tensor]], version: int) -> None:
        """Take a complete adapter in the place of the one before; `version` counts once every expected tensor has been
        consumed. Raises SyncError otherwise, and where there is no base.
        """


def request_seed(run_seed: int, purpose: str, step: int, prompt_id: str, sample: int) -> int:
    """A seed for one response, independent of batches, workers and Python's hash randomisation."""
    text = f"{run_seed}/{purpose}/{step}/{prompt_id}/{sample}"
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=7).digest(), "big")
