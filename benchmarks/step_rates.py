"""How fast this machine multiplies: a square product, and the products that a model's layers consist of."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path


def _seconds(product: Callable[[], object], times: int = 20) -> float:
    """The best of so many: the first ones load code and wake threads."""
    import torch

    best = math.inf
    for _ in range(times):
        started = time.perf_counter()
        product()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return best


def matrix_rate(dtype: str, device: str, size: int = 1536) -> float:
    """FLOP/s of a square product in this dtype."""
    import torch

    a = torch.ones(size, size, dtype=getattr(torch, dtype), device=device)
    return 2 * size**3 / _seconds(lambda: a @ a)


def layers_rate(folder: Path, dtype: str, device: str, tokens: int = 2048) -> float:
    """FLOP/s over all products of a model's layers with so many tokens: forwards, for the gradient of the input, and
    for that of the weight. Norms, attention and what else a layer does take no time here, so no layer learns faster.
    """
    import torch
    from torch import nn
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    head = model.get_output_embeddings()
    shapes = Counter(
        (m.in_features, m.out_features) for m in model.modules() if isinstance(m, nn.Linear) and m is not head
    )
    seconds = flops = 0.0
    for (inner, outer), count in shapes.items():
        states, weight, slopes = (
            torch.randn(shape, device=device).to(getattr(torch, dtype))
            for shape in ((tokens, inner), (outer, inner), (tokens, outer))
        )
        for product in (
            lambda x=states, w=weight: x @ w.t(),
            lambda g=slopes, w=weight: g @ w,
            lambda g=slopes, x=states: g.t() @ x,
        ):
            seconds += count * _seconds(product)
            flops += count * 2 * tokens * inner * outer
    return flops / seconds
