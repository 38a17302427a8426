"""The generating side: what an engine holds, and how many sequences it has room for."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from posttrain.planner.activations import WIDE
from posttrain.planner.machine import Machine
from posttrain.planner.memory import Placement
from posttrain.planner.shape import Shape
from posttrain.planner.work import Work
from posttrain.recipe import Recipe

GIB = 2**30
PREFILLED = {"cpu": 4096, "cuda": 8192}
"""Tokens of one pass of the engine (`max_num_batched_tokens`): vLLM's own on a GPU, ours on a CPU."""


@dataclass(frozen=True)
class Engine:
    """One rank of an engine."""

    weights: float
    working: float
    """Intermediate states of a prefill, and the logits that are sampled from."""
    cache: float
    """Bytes for keys and values."""
    of_token: float
    """Keys and values of one token."""
    length: int
    """Prompt and response of a sequence."""
    asked: int
    """Sequences that are decoded at one time, where there is room."""

    @property
    def tokens(self) -> int:
        """Whose keys and values there is room for."""
        return max(0, int(self.cache / self.of_token))

    @property
    def concurrency(self) -> int:
        """Sequences of full length that are decoded at one time."""
        return min(self.asked, self.tokens // self.length)

    @property
    def wanted(self) -> float:
        """Bytes for keys and values of all that are asked for."""
        return self.asked * self.length * self.of_token

    def terms(self) -> dict[str, float]:
        """Bytes by what they are."""
        return {"engine weights": self.weights, "KV cache": self.cache, "engine working": self.working}


def engine_of(recipe: Recipe, shape: Shape, work: Work, placement: Placement, machine: Machine) -> Engine:
    """One rank of the recipe's engine. On a GPU the cache fills what the engine's share of the card leaves."""
    sampler, span, e = recipe.hardware.sampler, placement.span, placement.itemsize
    matrices = shape.parameters / span
    heads = min(span, shape.kv_heads)
    weights = matrices * e
    replicas = max(1, placement.ranks // span)
    asked = max(1, min(sampler.max_sequences, ceil(work.sequences / replicas)))
    width = shape.experts.active * shape.experts.width if shape.experts else shape.width
    states = PREFILLED[placement.device] * (4 * shape.hidden + (2 * width + shape.queries) / span) * e
    working = states + asked * shape.vocabulary * (e / span + 2 * WIDE)
    if recipe.rollout.engine != "vllm":
        # Keys and values of the sequences that are decoded together, and nothing set aside.
        cache: float = asked * (work.prompt + work.response) * shape.kv_bytes(e)
    elif placement.device == "cpu":
        cache = sampler.memory * GIB
    else:
        cache = max(0.0, sampler.memory * machine.memory - weights - working)
    return Engine(weights, working, cache, shape.kv_bytes(e) / heads, work.prompt + work.response, asked)


def touched(shape: Shape, together: int) -> float:
    """Parameters that one decoding pass of `together` tokens reads: of n experts with k active, a token leaves one out
    with probability 1 - k/n.
    """
    dense: float = shape.parameters - (0 if shape.tied else shape.embedding_parameters)
    if shape.experts is None:
        return dense
    routed = shape.layers * 3 * shape.experts.count * shape.experts.width * shape.hidden
    missed = (1 - shape.experts.active / shape.experts.count) ** together
    return dense - routed * missed
