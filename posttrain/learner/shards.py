"""A policy's tensors as the ranks store them, for whoever sends them on without bringing them together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from posttrain.errors import ModelError, SyncError


@dataclass(frozen=True)
class Shards:
    """One rank's part of every tensor that is published."""

    layout: Literal["whole", "rows"]
    """whole: every rank has all. rows: cut along dimension 0, as torch.chunk cuts it."""
    config: Mapping[str, Any]
    """Of the model, as its config.json has it."""
    shapes: Mapping[str, tuple[int, ...]]
    """Whole shapes, by the names of the checkpoint; a tied tensor once."""
    ties: Mapping[str, str]
    """Further names of tensors in `shapes`."""
    dtype: torch.dtype
    """In which weights are published."""
    local: Callable[[str], Tensor]
    """This rank's part, contiguous and flat, in `dtype`, as it is now: storage of the model where no cast is needed."""


def shards_of(model: Any, dtype: torch.dtype) -> Shards:
    """Raises ModelError, with the reason, where what is published is not what the ranks store."""
    named: dict[str, Tensor] = {}
    ties: dict[str, str] = {}
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if ".lora_" in name or ".base_layer." in name:
            raise ModelError("model.lora: adapters are merged into copies when weights are published")
        if id(parameter) in first:
            ties[name] = first[id(parameter)]
        else:
            named[name], first[id(parameter)] = parameter, name
    others = sorted(set(model.state_dict()) - set(named) - set(ties))
    if others:
        raise ModelError(f"{others[0]}: published, but not a parameter ({len(others)} such)")
    if any(hasattr(parameter, "ds_shape") for parameter in named.values()):
        raise ModelError("parameters: ZeRO-3 keeps flat ranges of them")
    cut = {isinstance(parameter, DTensor) for parameter in named.values()}
    if len(cut) != 1:
        raise ModelError("parameters: some are cut into rows and some are not")
    rows = cut.pop()

    def local(name: str) -> Tensor:
        # Looked up each time: a sharded module may put other tensors in its parameters' places.
        tensor = model.get_parameter(name).detach()
        if isinstance(tensor, DTensor) != rows:
            raise SyncError(f"{name}: a layer that computes has its shards brought together; publish between passes")
        own = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        return own.to(dtype).reshape(-1)

    return Shards(
        "rows" if rows else "whole",
        model.config.to_dict(),
        {name: tuple(parameter.shape) for name, parameter in named.items()},
        ties,
        dtype,
        local,
    )
