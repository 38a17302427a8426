"""vLLM's worker on a CPU, for an engine that spans ranks of a launcher.

vLLM (0.32) names the memory that such ranks share after the address at which they meet, and a launcher's ranks tell it
none: every engine of the machine has one name. A second engine would not start beside the first, nor, as the memory
outlives a process that is killed, after it.
"""

from __future__ import annotations

import os
import secrets

import torch.distributed as dist
from vllm.v1.worker.cpu_worker import CPUWorker

from posttrain.rollout.server.bucket import sweep

PREFIX = "posttrain-engine-"


class Worker(CPUWorker):
    """Its ranks' memory has a name of its own, by which it is taken away when they are gone."""

    def init_device(self) -> None:
        sweep(prefix=PREFIX)
        told = [f"{PREFIX}{os.getpid()}-{secrets.token_hex(8)}"]
        dist.broadcast_object_list(told, src=0)
        # What follows the last colon is the name. As an address it is not read: the ranks have met.
        self.distributed_init_method = f"env://:{told[0]}"
        super().init_device()
