"""The parameters of vLLM's model in one process, filled region by region while its layerwise reload is under way."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.model_loader.reload.layerwise import initialize_online_processing

from posttrain.errors import SyncError
from posttrain.rollout import Piece

Place = tuple[nn.Module, str]
"""A layer and its name for a parameter."""
Patch = tuple[tuple[slice, ...], Tensor]


def places(model: nn.Module) -> dict[str, list[Place]]:
    """Every parameter by its first name, with all layers that share it. During a reload each layer has a stand-in of
    its own, so this is to be asked before one.
    """
    found: dict[int, list[Place]] = {}
    names: dict[str, int] = {}
    for prefix, layer in model.named_modules():
        for leaf, parameter in layer.named_parameters(recurse=False):
            if id(parameter) not in found:
                names[f"{prefix}.{leaf}".removeprefix(".")] = id(parameter)
            found.setdefault(id(parameter), []).append((layer, leaf))
    return {name: found[key] for name, key in names.items()}


class Filling:
    """Made between a reload's `initialize` and its `finalize`, while parameters have the shapes they are loaded in.

    A parameter whose elements are all there goes to the reload through its weight loader, which here takes regions as
    they are instead of cutting a whole tensor; the reload then post-processes every layer that has all of its own.
    """

    def __init__(self, known: Mapping[str, Sequence[Place]]) -> None:
        self.known = known
        self.waiting: dict[str, list[Patch]] = {name: [] for name in known}
        self.missing = {name: _stand_in(at[0]).numel() for name, at in known.items()}
        self._loaders: list[tuple[Tensor, Callable[..., Any]]] = []
        layers = {}
        for layer, leaf in (place for at in known.values() for place in at):
            tensor = _stand_in((layer, leaf))
            loader = tensor.weight_loader
            # One that no stand-in was made for is in use between reloads too, when nothing must wrap its loader.
            self._loaders.append((tensor, loader if tensor.is_meta else _unwrapped(loader)))
            tensor.weight_loader = _patched
            layers[id(layer)] = layer
        for layer in layers.values():
            initialize_online_processing(layer)

    def __call__(self, pieces: Iterator[Piece]) -> set[str]:
        """Take all pieces, and return the parameters' names. Raises SyncError for a piece that fits no parameter, for
        too many of one, and for parameters of which elements are missing in the end.
        """
        for name, region, tensor in pieces:
            self._take(name, (region, tensor))
        short = [name for name, missing in self.missing.items() if missing]
        if short:
            name = short[0]
            of = _stand_in(self.known[name][0]).numel()
            raise SyncError(
                f"{self.missing[name]} of {of} elements of {name} did not arrive (of {len(short)} parameters in all)"
            )
        return set(self.known)

    def _take(self, name: str, patch: Patch) -> None:
        if name not in self.known:
            raise SyncError(f"the engine has no parameter {name!r} in this process")
        size = patch[1].numel()
        if size > self.missing[name]:
            raise SyncError(f"{name}: {size} more elements arrived where {self.missing[name]} were missing")
        target = _stand_in(self.known[name][0])
        if _extent(target, patch[0]) != tuple(patch[1].shape):
            raise SyncError(f"{name} is {list(target.shape)} in the engine, which has no such region as {patch[0]}")
        self.missing[name] -= size
        self.waiting[name].append(patch)
        if not self.missing[name]:
            for place in self.known[name]:
                tensor = _stand_in(place)
                tensor.weight_loader(tensor, self.waiting[name])
            del self.waiting[name]

    def end(self) -> None:
        """Put the engine's own loaders back, after `finalize`: the next reload may stream whole tensors."""
        for tensor, loader in self._loaders:
            tensor.weight_loader = loader  # type: ignore[attr-defined]


def _stand_in(place: Place) -> Any:
    return getattr(*place)


def _extent(tensor: Tensor, region: Sequence[slice]) -> tuple[int, ...] | None:
    """The region's shape, where it lies in the tensor."""
    inside = len(region) == tensor.dim() and all(
        0 <= s.start <= s.stop <= n for s, n in zip(region, tensor.shape, strict=True)
    )
    return tuple(s.stop - s.start for s in region) if inside else None


@torch.no_grad()
def _patched(param: Tensor, patches: Sequence[Patch]) -> None:
    for region, tensor in patches:
        param.data[tuple(region)].copy_(tensor)


def _unwrapped(loader: Callable[..., Any]) -> Callable[..., Any]:
    return inspect.unwrap(loader, stop=lambda each: each.__name__ != "online_process_loader")
