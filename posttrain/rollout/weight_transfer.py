"""A weight-transfer back end for vLLM that takes tensors from its own process, without a copy on the way: whole ones
by their names in the checkpoint, or pieces of this process's parameters.

vLLM's protocol has four phases: init, start, update, finish. Its stock back ends need an accelerator; this one runs
wherever engine and trainer share a process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from posttrain.errors import SyncError
from posttrain.rollout import Piece
from posttrain.rollout.filling import Filling, places

BACKEND = "posttrain_in_process"


@dataclass
class InProcessInit(WeightTransferInitInfo):
    """Nothing has to be agreed on inside one process."""


@dataclass
class InProcessUpdate(WeightTransferUpdateInfo):
    """One of the two streams: (checkpoint name, full tensor), or pieces."""

    weights: Iterator[tuple[str, Tensor]] | None = None
    pieces: Iterator[Piece] | None = None


class InProcessTransfer(WeightTransferEngine[InProcessInit, InProcessUpdate]):
    """Layerwise reload from an iterator, and a check that every parameter of the engine's model was reached."""

    init_info_cls = InProcessInit
    update_info_cls = InProcessUpdate

    def init_transfer_engine(self, init_info: InProcessInit) -> None:
        # The parameters' names as the engine's model has them: what a complete update must reach.
        self.places = places(self.model)
        self.parameters = set(self.places)
        self.unfinished = False
        self.filling: Filling | None = None

    def start_weight_update(self) -> None:
        if self.unfinished:
            # An update that broke off left layers half filled; a second one on top would count their shards twice.
            self._finalize()
        self.reached: set[str] = set()
        self.unfinished = True
        if self.device.type == "cpu":
            _forget_expert_kernels(self.model)
        with torch.device(self.device):
            initialize_layerwise_reload(self.model)

    def _finalize(self) -> None:
        with torch.device(self.device):
            finalize_layerwise_reload(self.model, self.model_config)
        if self.filling is not None:
            self.filling.end()
            self.filling = None
        self.unfinished = False

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: InProcessUpdate) -> None:
        if update_info.pieces is not None:
            self.filling = Filling(self.places)
            self.reached |= self.filling(update_info.pieces)
        if update_info.weights is not None:
            try:
                self.reached |= self.model.load_weights(update_info.weights) or set()
            except ValueError as error:
                # Mixtral, for one, has names in transformers' memory that vLLM's loader has no place for.
                raise SyncError(f"the engine's own loader refuses these weights: {error}") from error

    def finish_weight_update(self) -> None:
        self._finalize()
        self.require_reached()

    def require_reached(self) -> None:
        """Raise SyncError naming parameters of the engine's model for which nothing has come since the start."""
        missed = sorted({_unwrapped(name) for name in self.parameters} - {_unwrapped(name) for name in self.reached})
        if missed:
            raise SyncError(f"the engine consumed nothing for {', '.join(missed[:3])} ({len(missed)} in all)")

    def shutdown(self) -> None:
        """Nothing is held open."""


def _unwrapped(name: str) -> str:
    # Where adapters have a place, vLLM's loaders say the layer's own name of what lies inside its wrapper.
    return name.replace(".base_layer.", ".")


def _forget_expert_kernels(model: torch.nn.Module) -> None:
    # vLLM (0.32) packs experts for a CPU only when their kernel is made. With the old kernel in place a reload would
    # copy them unpacked into the packed storage, and say nothing.
    for layer in model.modules():
        method: Any = getattr(layer, "quant_method", None)
        if getattr(method, "moe_kernel", None) is not None:
            method.moe_kernel = None


def register() -> str:
    """Make the back end known to vLLM's factory, once, and return the name it goes by."""
    # The factory refuses a name it has already; a second engine in this process uses the same class.
    with suppress(ValueError):
        WeightTransferEngineFactory.register_engine(BACKEND, InProcessTransfer)
    return BACKEND
