"""Attention over sequences in one row that is computed only where it is allowed: no mask, no padding between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

NAME = "posttrain_trees"
"""As a model's config names it."""
WIDE_UP_TO = 256
"""Queries of a sequence up to which torch's attention on a CPU is faster in fp32 than in bf16, forwards and backwards
together: .45 of the time for 64 queries, .9 for 256, 1.2 for 512 (`benchmarks/attention.py`).
"""


@dataclass(frozen=True)
class Tree:
    """Consecutive tokens of a row: `shared` ones, then those of each branch, which sees the shared ones and itself."""

    shared: int
    branches: tuple[int, ...]

    @property
    def size(self) -> int:
        return self.shared + sum(self.branches)


def attend(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    trees: tuple[Tree, ...] | None = None,
    **settings: Any,
) -> tuple[Tensor, None]:
    """transformers' attention function: `query [1, H, N, D]`, `key` and `value [1, H', N, D]` to `[1, N, H, D]`.

    `trees` cover the N tokens; without them it is the library's own causal attention.
    """
    if trees is None:
        found: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **settings)
        return found
    sizes = [tree.size for tree in trees]
    parts = zip(trees, *(x[0].split(sizes, dim=1) for x in (query, key, value)), strict=True)
    kernel = partial(
        _kernel,
        dropout_p=settings.get("dropout", 0.0),
        scale=settings.get("scaling"),
        enable_gqa=query.shape[1] != key.shape[1],
    )
    out = [_one(tree, q, k, v, kernel) for tree, q, k, v in parts]
    return torch.cat(out, dim=1).transpose(0, 1)[None], None


def _one(tree: Tree, query: Tensor, key: Tensor, value: Tensor, kernel: Callable[..., Tensor]) -> Tensor:
    """`[H, T, D]` of one tree: its shared tokens causally, then all branches at once, filled up to the longest."""
    shared, longest = tree.shared, max(tree.branches)
    if not shared and len(tree.branches) == 1:
        return kernel(query[None], key[None], value[None], is_causal=True)[0]
    # What fills a branch up lies behind its own tokens, so that causality hides it from them.
    queries, *own = (_branches(x, tree) for x in (query, key, value))
    if not shared:
        said = kernel(queries, *own, is_causal=True)
        return torch.cat([said[i, :, :length] for i, length in enumerate(tree.branches)], dim=1)
    first = [x[None, :, :shared] for x in (query, key, value)]
    seen = [torch.cat([f.expand(len(tree.branches), -1, -1, -1), o], 2) for f, o in zip(first[1:], own, strict=True)]
    allowed = torch.ones(longest, shared + longest, dtype=torch.bool, device=query.device).tril(shared)
    said = kernel(queries, *seen, attn_mask=allowed)
    found = [said[i, :, :length] for i, length in enumerate(tree.branches)]
    return torch.cat([kernel(*first, is_causal=True)[0], *found], dim=1)


def _kernel(query: Tensor, key: Tensor, value: Tensor, **settings: Any) -> Tensor:
    """torch's own attention, in fp32 where that is faster."""
    if query.device.type != "cpu" or query.dtype != torch.bfloat16 or query.shape[-2] > WIDE_UP_TO:
        return scaled_dot_product_attention(query, key, value, **settings)
    return scaled_dot_product_attention(query.float(), key.float(), value.float(), **settings).to(query.dtype)


def _branches(states: Tensor, tree: Tree) -> Tensor:
    """`[H, T, D]` to `[branches, H, longest, D]`, what is missing filled with zeros."""
    branches = states[:, tree.shared :]
    if len(set(tree.branches)) == 1:
        return branches.unflatten(1, (len(tree.branches), tree.branches[0])).transpose(0, 1)
    parts = [part.transpose(0, 1) for part in branches.split(tree.branches, dim=1)]
    return pad_sequence(parts, batch_first=True).transpose(1, 2)


AttentionInterface.register(NAME, attend)
