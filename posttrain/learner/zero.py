"""DeepSpeed's ZeRO: the optimiser's state (stage 1), gradients too (2), or parameters as well (3) cut over the ranks.

A model that is trained lives in a DeepSpeed engine, which adds gradients up on their way back, clips them, and moves
flat pieces of fp32 masters with torch's AdamW. Frozen models are cut at stage 3 only, and whole on every rank below.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import Shard, distribute_tensor

from posttrain.errors import ModelError
from posttrain.learner.sharding import Asking, Reader, averaged, full, widened
from posttrain.learner.stepper import Stepper, Steps
from posttrain.learner.zero_steps import Engine, ZeroStepper, written
from posttrain.recipe import Optimizer
from posttrain.world import World

Offload = Literal["none", "optimizer", "parameters"]
BUCKET = 2**25
"""Elements of parameters that are brought together at one time."""


class Zero:
    """Implements `Sharding`. Masters are fp32, whatever `dtype` the model computes in."""

    lockstep = True

    def __init__(self, world: World, dtype: torch.dtype, device: str, stage: int, offload: Offload = "none") -> None:
        from torch.distributed.device_mesh import init_device_mesh

        if stage == 1 and dtype == torch.bfloat16:
            raise ModelError("hardware.learner.strategy: zero1, but hardware.dtype: bfloat16 is for zero2 and zero3")
        if device == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"
        import deepspeed
        import deepspeed.ops

        # It calls collectives by names that torch is leaving, several times a layer.
        warnings.filterwarnings("ignore", r"`torch\.distributed\..*` is deprecated", FutureWarning)
        # Its own messages between CPU processes would have to be compiled here; gloo's will do.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        self.world, self.stage, self.device = world, stage, device
        self.mesh = init_device_mesh(device, (world.size,))
        self._dtype, self._offload = dtype, offload

    def home(self, device: str) -> str:
        return device

    def place(self, reader: Reader, apart: Sequence[nn.Parameter] = (), settings: Optimizer | None = None) -> Asking:
        import deepspeed

        moved = [p for p in reader.model.parameters() if p.requires_grad] if settings else []
        if not moved and self.stage < 3:
            return reader
        if apart and self._dtype == torch.bfloat16:
            raise ModelError(
                f"hardware.learner.strategy: zero{self.stage}, whose engines round a head as everything else, but "
                "hardware.dtype: bfloat16 leaves its scores two and a half digits; use fsdp2 or ddp, or float32"
            )
        optimizer = None
        if settings is not None:
            optimizer = torch.optim.AdamW(
                moved,
                lr=settings.learning_rate,
                betas=settings.betas,
                eps=settings.epsilon,
                weight_decay=settings.weight_decay,
                fused=True,
            )
        config = self._config(reader.model, settings)
        engine, *_ = deepspeed.initialize(model=reader, optimizer=optimizer, config=config)
        return Engine(engine, optimizer, self.world)

    def _config(self, model: nn.Module, settings: Optimizer | None) -> dict[str, Any]:
        # Vectors (norms, biases) stay whole: a message would cost more than they hold.
        vectors = max((p.numel() for p in model.parameters() if p.ndim < 2), default=0)
        zero: dict[str, Any] = {
            "stage": self.stage,
            "overlap_comm": False,
            "stage3_param_persistence_threshold": vectors + 1,
        }
        if self._offload != "none" and settings is not None:
            zero["offload_optimizer"] = {"device": "cpu", "pin_memory": self.device == "cuda"}
        if self._offload == "parameters":
            zero["offload_param"] = {"device": "cpu", "pin_memory": self.device == "cuda"}
        return {
            "train_micro_batch_size_per_gpu": 1,
            # How many passes make a step is not known before: `step` says where the last one was.
            "managed_gradient_accumulation": False,
            "gradient_clipping": settings.clip_norm if settings is not None else 0.0,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "bf16": {"enabled": self._dtype == torch.bfloat16},
            "data_types": {"grad_accum_dtype": "fp32"},
            "communication_data_type": "fp32",
        }

    def stepper(self, reader: Asking, settings: Optimizer, total_updates: int, what: str = "policy") -> Steps:
        if isinstance(reader, Engine):
            return ZeroStepper(reader, settings, total_updates, self.mesh, what)
        # A small head beside the policy's engine is whole on every rank.
        return Stepper(reader.model, settings, total_updates, self, what)

    def backward(self, reader: Asking, loss: Tensor) -> None:
        assert isinstance(reader, Engine)
        # Gradients are averaged over the ranks. Other engines in the graph, as a critic's, find out by themselves.
        reader.engine.backward(loss * self.world.size, scale_wrt_gas=False)

    def opened(self, needs: Sequence[Sequence[Tensor]]) -> Iterable[int]:
        return self._opened(needs) if self.stage == 3 else range(len(needs))

    def _opened(self, needs: Sequence[Sequence[Tensor]]) -> Iterator[int]:
        """A bucket at a time, all ranks the same ones in the same order."""
        import deepspeed

        start = 0
        while start < len(needs):
            end, sharded = start, dict[int, Any]()
            while end < len(needs) and (end == start or _elements(sharded.values()) < BUCKET):
                sharded |= {id(t): t for t in needs[end] if hasattr(t, "ds_id")}
                end += 1
            with deepspeed.zero.GatheredParameters(list(sharded.values())):
                yield from range(start, end)
            start = end

    def release(self, reader: Asking) -> None:
        """The engine lets go of each module's parameters after it, whether a backward pass follows or not."""

    def reduce(self, gradients: Sequence[Tensor]) -> None:
        """The engine has added its own up; others were scaled as they were."""
        averaged(self.world, gradients)

    def master(self, parameter: Any) -> Tensor:
        for _ in self.opened([[parameter]]):
            whole = widened(parameter)
        return distribute_tensor(whole, self.mesh, [Shard(0)], src_data_rank=None)

    def write(self, parameter: Tensor, master: Tensor) -> None:
        written(parameter, full(master))


def _elements(parameters: Iterable[Any]) -> int:
    return sum(p.ds_numel for p in parameters)
