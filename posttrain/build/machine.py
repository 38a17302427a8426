"""What this machine is, where a recipe leaves it open: the device, and the dtype it multiplies fastest in."""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from posttrain.build.check import Checked
from posttrain.errors import ModelError
from posttrain.metrics import RunFolder
from posttrain.recipe import Recipe
from posttrain.world import World

SIZE = 384
"""Rows and columns of the matrices that are multiplied to see which dtype is faster: a millisecond or two."""


def device_of(recipe: Recipe) -> str:
    """Where a recipe computes, `auto` resolved. Raises ModelError for a device that is not there."""
    device = recipe.hardware.device
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError("hardware.device: cuda, but torch sees no such device here; use cpu or auto")
    return device


def resolved(checked: Checked, world: World, begun: RunFolder | None = None) -> tuple[Checked, str | None]:
    """The recipe with its dtype decided, and a line about it where there is something to know: what `auto` became, or
    that the dtype asked for is slow here. A run that has `begun` goes on with what it decided then.
    """
    recipe = checked.recipe
    dtype, device = recipe.hardware.dtype, device_of(recipe)
    if dtype not in ("auto", "bfloat16"):
        return checked, None
    if dtype == "auto" and (before := world.shared(lambda: _decided(begun))):
        return _with(checked, before), f"hardware.dtype: auto is {before}, as this run began"
    ratio = world.shared(lambda: bfloat16_rate(device))
    if dtype == "bfloat16":
        slow = f"hardware.dtype: bfloat16 multiplies at {ratio:.2g} x the rate of float32 here; auto would take float32"
        return checked, slow if ratio < 1 else None
    chosen = "bfloat16" if ratio >= 1 else "float32"
    line = f"hardware.dtype: auto is {chosen}: bfloat16 multiplies at {ratio:.2g} x the rate of float32 here"
    return _with(checked, chosen), line


def _with(checked: Checked, dtype: str) -> Checked:
    hardware = checked.recipe.hardware.model_copy(update={"dtype": dtype})
    return replace(checked, recipe=checked.recipe.model_copy(update={"hardware": hardware}))


def _decided(begun: RunFolder | None) -> str | None:
    """The dtype that the run in a folder computes in."""
    if begun is None or not begun.exists():
        return None
    found: str = begun.recipe()["hardware"]["dtype"]
    return found if found != "auto" else None


def bfloat16_rate(device: str) -> float:
    """How many times as fast matrices are multiplied in bfloat16 as in float32."""
    return _seconds(torch.float32, device) / _seconds(torch.bfloat16, device)


def _seconds(dtype: torch.dtype, device: str) -> float:
    """The best of a few products."""
    a = torch.ones(SIZE, SIZE, dtype=dtype, device=device)
    best = float("inf")
    for _ in range(4):
        started = time.perf_counter()
        product = a @ a
        float(product[0, 0])
        best = min(best, time.perf_counter() - started)
    return best
