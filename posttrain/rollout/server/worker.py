"""What a server of ours adds to vLLM's worker: a weight-transfer back end over shared memory, and who it is.

vLLM imports this in every worker process, by the name of its worker extension.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import vllm
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

from posttrain import __version__
from posttrain.errors import SyncError
from posttrain.models.checkpoint import expected_weights
from posttrain.rollout.intake import Intake
from posttrain.rollout.server.bucket import read
from posttrain.rollout.server.lifeline import OWNER, perish_with
from posttrain.rollout.weight_transfer import InProcessTransfer

BACKEND = "posttrain_shared_memory"


@dataclass
class SharedInit(WeightTransferInitInfo):
    """What a complete set is, and a bucket that proves that memory is shared."""

    expected: Mapping[str, list[int]]
    probe: Mapping[str, Any]


@dataclass
class SharedUpdate(WeightTransferUpdateInfo):
    """A bucket; or why none will follow."""

    path: str = ""
    tensors: list[list[Any]] = field(default_factory=list)
    last: bool = False
    """Whether the set is complete with this bucket."""
    abandon: str = ""
    """Why the trainer gave the update up. What raises here ends an update for vLLM, too."""


class SharedTransfer(InProcessTransfer):
    """Layerwise reload from buckets. Each tensor is checked against a complete set, and so is their sum."""

    init_info_cls = SharedInit
    update_info_cls = SharedUpdate

    def init_transfer_engine(self, init_info: SharedInit) -> None:
        super().init_transfer_engine(init_info)
        self.expected = {name: tuple(shape) for name, shape in init_info.expected.items()}
        for _name, tensor in read(**init_info.probe):
            if tensor.tolist() != [1, 2, 3]:
                raise SyncError(f"{init_info.probe['path']} holds something else here than the trainer wrote")

    def start_weight_update(self) -> None:
        if not hasattr(self, "expected"):
            raise SyncError("an update was started before init_weight_transfer_engine said what a complete set is")
        self.intake = Intake(self.expected)
        super().start_weight_update()

    def receive_weights(self, update_info: SharedUpdate) -> None:
        if update_info.abandon:
            raise SyncError(f"the trainer gave this update up: {update_info.abandon}")
        stream = read(update_info.path, update_info.tensors)
        loaded = self.model.load_weights(self.intake.admit(name, tensor) for name, tensor in stream)
        self.reached |= loaded or set()
        if update_info.last:
            self.intake.require_complete()
            self.require_reached()


class Extension:
    """Methods of vLLM's worker, asked for by `collective_rpc`."""

    def posttrain_describe(self) -> dict[str, Any]:
        """What this server can be asked for, and the names and shapes of a complete set of its weights."""
        config = self.vllm_config  # type: ignore[attr-defined]
        model = config.model_config
        weights = expected_weights(Path(model.model), model.trust_remote_code)
        return {
            "posttrain": __version__,
            "vllm": vllm.__version__,
            "model": str(model.model),
            "weights": {name: list(shape) for name, shape in weights.items()},
            "vocabulary": model.get_vocab_size(),
            "dtype": str(model.dtype).removeprefix("torch."),
            "max_length": model.max_model_len,
            "max_sequences": config.scheduler_config.max_num_seqs,
            "logprobs": str(model.logprobs_mode),
            "process": os.getpid(),
        }


def _register() -> None:
    # The factory refuses a name that it has already.
    with suppress(ValueError):
        WeightTransferEngineFactory.register_engine(BACKEND, SharedTransfer)
    if os.environ.get(OWNER):
        # A worker whose server was killed would wait for it for ever.
        perish_with(os.getppid())


_register()
