"""Attention of one layer that is told what lies in a row, against the same rows under a mask, forwards and backwards.

python benchmarks/attention.py [ROUNDS]

Shapes are those of SmolLM2-135M (9 heads, 3 of keys and values, 64 wide): groups of eight responses of 64 tokens behind
one prompt. Then, in bf16, rows of one length with attention in fp32 against attention as the states come. The two
alternate; the fastest round of each counts, for what disturbs a round only makes it longer.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import SimpleNamespace

import torch
from torch import Tensor
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from posttrain.learner import attention
from posttrain.learner.attention import Tree, attend
from posttrain.learner.layout import SHARED, _allowed

HEADS, SHARED_HEADS, WIDTH = 9, 3, 64
RESPONSES, RESPONSE = 8, 64
CASES = {"44-token prompts, three groups": (44, 3), "512-token prompts, two groups": (512, 2)}


def seconds(run: Callable[..., Tensor], inputs: list[Tensor]) -> float:
    started = time.perf_counter()
    run(*inputs).sum().backward()
    return time.perf_counter() - started


def measured(prompt: int, groups: int, rounds: int) -> tuple[float, float]:
    """Seconds with trees and with a mask. Raises SystemExit where they do not give the same."""
    length = prompt + RESPONSES * RESPONSE
    owner = torch.tensor([SHARED] * prompt + [k for k in range(RESPONSES) for _ in range(RESPONSE)])
    mask = _allowed(owner[None]).expand(groups, 1, length, length)
    trees = (Tree(prompt, (RESPONSE,) * RESPONSES),) * groups
    module = SimpleNamespace(num_key_value_groups=HEADS // SHARED_HEADS, is_causal=True)
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(groups, n, length, WIDTH, generator=generator) for n in (HEADS, SHARED_HEADS, SHARED_HEADS)]
    flat = [row.transpose(0, 1).flatten(1, 2)[None].contiguous().requires_grad_() for row in rows]
    rows = [row.requires_grad_() for row in rows]

    def told(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(module, q, k, v, None, trees=trees)[0]

    def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sdpa_attention_forward(module, q, k, v, mask)[0]

    if not torch.allclose(told(*flat).view(groups, length, HEADS, WIDTH), masked(*rows), atol=1e-5):
        raise SystemExit("the two are not the same")
    both = [(seconds(told, flat), seconds(masked, rows)) for _ in range(rounds + 1)][1:]
    return min(t for t, _ in both), min(m for _, m in both)


def widened(length: int, rounds: int) -> tuple[float, float]:
    """Seconds of eight rows in bf16, computed in fp32 and as they come."""
    trees = (Tree(0, (length,) * RESPONSES),)
    parts = [
        torch.randn(1, n, RESPONSES * length, WIDTH).bfloat16().requires_grad_()
        for n in (HEADS, SHARED_HEADS, SHARED_HEADS)
    ]
    best = {True: float("inf"), False: float("inf")}
    kept = attention.WIDE_UP_TO
    for _ in range(rounds + 1):
        for wide in best:
            attention.WIDE_UP_TO = length if wide else 0
            best[wide] = min(best[wide], seconds(lambda q, k, v: attend(None, q, k, v, None, trees)[0], parts))
    attention.WIDE_UP_TO = kept
    return best[True], best[False]


def main(rounds: str = "8") -> None:
    print(f"fp32, {torch.get_num_threads()} threads")
    for name, (prompt, groups) in CASES.items():
        told, masked = measured(prompt, groups, int(rounds))
        print(f"{name}: trees {1e3 * told:.1f} ms, mask {1e3 * masked:.1f} ms, ratio {told / masked:.2f}")
    for length in (44, 64, 128, 200, 256, 512):
        wide, own = widened(length, int(rounds))
        both = f"in fp32 {1e3 * wide:.1f} ms, as they come {1e3 * own:.1f} ms"
        print(f"bf16, rows of {length}: {both}, ratio {wide / own:.2f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
