"""Checkpoints of made-up models, a plan executed on integers, and the slow reference: gather, then slice.

The reference knows nothing of the plan: it cuts whole arrays the way torch, DeepSpeed and vLLM say they do.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from posttrain.hybrid.plan import Architecture, Plan, Tensor, Training

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Made:
    """A model by its sizes: enough to write down a checkpoint's names and shapes, and the engine's parameters."""

    family: str = "llama"
    layers: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 2
    hidden: int = 6
    intermediate: int = 8
    vocabulary: int = 70
    experts: int = 0
    stacked: bool = False
    """Experts in three dimensions, as transformers holds them in memory."""
    tied: bool = False
    bias: bool = False

    @property
    def architecture(self) -> Architecture:
        experts = self.experts
        return Architecture(self.family, self.heads, self.kv_heads, self.vocabulary, experts, self.tied)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        q, kv, hidden, inner = self.heads * self.head_dim, self.kv_heads * self.head_dim, self.hidden, self.intermediate
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocabulary, hidden)}
        for layer in range(self.layers):
            at = f"model.layers.{layer}."
            found[at + "input_layernorm.weight"] = (hidden,)
            if self.family == "phi3":
                found[at + "self_attn.qkv_proj.weight"] = (q + 2 * kv, hidden)
                found[at + "mlp.gate_up_proj.weight"] = (2 * inner, hidden)
            else:
                for name, rows in (("q", q), ("k", kv), ("v", kv)):
                    found[f"{at}self_attn.{name}_proj.weight"] = (rows, hidden)
                    if self.bias:
                        found[f"{at}self_attn.{name}_proj.bias"] = (rows,)
            found[at + "self_attn.o_proj.weight"] = (hidden, q)
            found |= {at + name: shape for name, shape in self._mlp()}
        found["model.norm.weight"] = (hidden,)
        if not self.tied:
            found["lm_head.weight"] = (self.vocabulary, hidden)
        return found

    def _mlp(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        hidden, inner = self.hidden, self.intermediate
        if not self.experts:
            yield "mlp.down_proj.weight", (hidden, inner)
            if self.family != "phi3":
                yield "mlp.gate_proj.weight", (inner, hidden)
                yield "mlp.up_proj.weight", (inner, hidden)
            return
        mixtral = self.family == "mixtral"
        block = "block_sparse_moe" if mixtral and not self.stacked else "mlp"
        yield f"{block}.gate.weight", (self.experts, hidden)
        if self.stacked:
            yield "mlp.experts.gate_up_proj", (self.experts, 2 * inner, hidden)
            yield "mlp.experts.down_proj", (self.experts, hidden, inner)
            return
        names = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
        for expert in range(self.experts):
            for name, shape in zip(names, ((inner, hidden), (inner, hidden), (hidden, inner)), strict=True):
                yield f"{block}.experts.{expert}.{name}.weight", shape

    def tensors(self, itemsize: int = 4) -> list[Tensor]:
        return [Tensor(name, shape, itemsize) for name, shape in self.shapes().items()]

    def arrays(self) -> Arrays:
        """Every element of the checkpoint has a number of its own, from 1."""
        numbers = itertools.count(1)
        return {
            name: np.fromiter(numbers, np.int64, int(np.prod(shape))).reshape(shape)
            for name, shape in self.shapes().items()
        }


def stored(array: np.ndarray, name: str, training: Training, rank: int) -> np.ndarray:
    """What a training rank has of a tensor, flat: cut for tensor parallelism, then for its shard."""
    t, group = rank % training.tensor, rank // training.tensor
    if training.tensor > 1:
        for pattern, dim in training.dims:
            if re.fullmatch(pattern, name):
                size = -(-array.shape[dim] // training.tensor)
                array = np.take(array, range(t * size, min((t + 1) * size, array.shape[dim])), axis=dim)
    if training.shards == "whole":
        return array.reshape(-1)
    count = training.ranks // training.tensor // training.replicas
    shard = group % count
    if training.shards == "rows":
        size = -(-array.shape[0] // count)
        return array[shard * size : (shard + 1) * size].reshape(-1)
    size = -(-array.size // count)
    padded = np.concatenate([array.reshape(-1), np.full(size * count - array.size, -7)])
    return padded[shard * size : (shard + 1) * size]


def execute(plan: Plan, arrays: Arrays, moves: Any = None) -> tuple[list[Arrays], list[Arrays]]:
    """The engine's parameters of every rank, zeros where nothing was written, and how often each element was."""
    target = [
        {n: np.zeros(p.shape, np.int64) for n, p in plan.parameters.items()} for _ in range(plan.generation.ranks)
    ]
    times = [{n: np.zeros(p.shape, np.int64) for n, p in plan.parameters.items()} for _ in range(plan.generation.ranks)]
    held: dict[tuple[int, str], np.ndarray] = {}
    for source, destination, move in plan.moves() if moves is None else moves:
        key = source, move.tensor
        if key not in held:
            held[key] = np.ascontiguousarray(stored(arrays[move.tensor], move.tensor, plan.training, source))
        flat = held[key]
        last = move.offset + sum((n - 1) * s for n, s in zip(move.shape, move.strides, strict=True))
        assert 0 <= move.offset <= last < flat.size
        view = np.lib.stride_tricks.as_strided(flat[move.offset :], move.shape, [8 * s for s in move.strides])
        place = target[destination][move.parameter][move.slices]
        place[...] = view.reshape(place.shape)
        times[destination][move.parameter][move.slices] += 1
    return target, times


def sliced(made: Made, arrays: Arrays, degree: int, t: int) -> Arrays:
    """The engine's parameters of one rank, from the gathered checkpoint."""
    found: Arrays = {}

    def rows(array: np.ndarray, axis: int = 0) -> np.ndarray:
        size = array.shape[axis] // degree
        return np.take(array, range(t * size, (t + 1) * size), axis=axis)

    def heads(array: np.ndarray, count: int) -> np.ndarray:
        by_head = array.reshape(count, made.head_dim, *array.shape[1:])
        mine = [h for h in range(count) if h * degree // count == t] if count >= degree else [t * count // degree]
        return np.concatenate([by_head[h] for h in mine])

    def vocabulary(array: np.ndarray) -> np.ndarray:
        padded = np.zeros((-(-made.vocabulary // 64) * 64, *array.shape[1:]), np.int64)
        padded[: made.vocabulary] = array
        return rows(padded)

    found["model.embed_tokens.weight"] = vocabulary(arrays["model.embed_tokens.weight"])
    found["model.norm.weight"] = arrays["model.norm.weight"]
    if not made.tied:
        found["lm_head.weight"] = vocabulary(arrays["lm_head.weight"])
    q, kv = made.heads * made.head_dim, made.kv_heads * made.head_dim
    for layer in range(made.layers):
        at = f"model.layers.{layer}."
        found[at + "input_layernorm.weight"] = arrays[at + "input_layernorm.weight"]
        found[at + "self_attn.o_proj.weight"] = rows(arrays[at + "self_attn.o_proj.weight"], 1)
        for kind in ("weight", "bias") if made.bias else ("weight",):
            if made.family == "phi3":
                one, two, three = np.split(arrays[at + "self_attn.qkv_proj.weight"], [q, q + kv])
            else:
                one, two, three = (arrays[f"{at}self_attn.{p}_proj.{kind}"] for p in "qkv")
            parts = [heads(one, made.heads), heads(two, made.kv_heads), heads(three, made.kv_heads)]
            found[f"{at}self_attn.qkv_proj.{kind}"] = np.concatenate(parts)
        found |= {at + name: array for name, array in _sliced_mlp(made, arrays, at, rows)}
    return found


def _sliced_mlp(made: Made, arrays: Arrays, at: str, rows: Any) -> Iterator[tuple[str, np.ndarray]]:
    if not made.experts:
        yield "mlp.down_proj.weight", rows(arrays[at + "mlp.down_proj.weight"], 1)
        if made.family == "phi3":
            gate, up = np.split(arrays[at + "mlp.gate_up_proj.weight"], 2)
        else:
            gate, up = arrays[at + "mlp.gate_proj.weight"], arrays[at + "mlp.up_proj.weight"]
        yield "mlp.gate_up_proj.weight", np.concatenate([rows(gate), rows(up)])
        return
    mixtral = made.family == "mixtral"
    block = "block_sparse_moe" if mixtral and not made.stacked else "mlp"
    to = "block_sparse_moe" if mixtral else "mlp"
    yield f"{to}.gate.weight", arrays[f"{at}{block}.gate.weight"]
    if made.stacked:
        both, down = arrays[at + "mlp.experts.gate_up_proj"], arrays[at + "mlp.experts.down_proj"]
        gates, ups = both[:, : made.intermediate], both[:, made.intermediate :]
    else:
        names = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
        gates, ups, down = (
            np.stack([arrays[f"{at}{block}.experts.{e}.{name}.weight"] for e in range(made.experts)]) for name in names
        )
    w13 = [np.concatenate([rows(gate), rows(up)]) for gate, up in zip(gates, ups, strict=True)]
    yield f"{to}.experts.routed_experts.w13_weight", np.stack(w13)
    yield f"{to}.experts.routed_experts.w2_weight", np.stack([rows(d, 1) for d in down])
