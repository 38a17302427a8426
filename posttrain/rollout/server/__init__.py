"""Generation apart from training: vLLM servers, started by us or given by address, as one `Sampler`.

`launch` starts one and watches it, `replica` speaks with one, `handshake` refuses a wrong one, `dispatch` spreads
requests, `publication` hands weights over, `sampler` is the protocol, `proxy` the only door to other machines. In the
server's own processes run `engine` and `worker`. `python -m posttrain.rollout.server MODEL` serves other machines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from posttrain.errors import PosttrainError
from posttrain.types import Rollout


@dataclass(frozen=True)
class ServerOptions:
    """Where the servers are, and how patient to be with them."""

    urls: tuple[str, ...] = ()
    """`http://host:port`, or `unix:/path` of a socket. None: servers are started here."""
    token: str | None = field(default=None, repr=False)
    """What the proxies before `urls` ask for."""
    replicas: int = 1
    """How many are started here, where no `urls` are given."""
    logs: Path | None = None
    """Folder of the logs of servers started here; None keeps them until the sampler is closed."""
    start_timeout: float = 600.0
    """Seconds a server started here may take until it answers."""
    reach_timeout: float = 20.0
    """Seconds a server given by address may take for an answer when it is first met."""
    answer_timeout: float = 1200.0
    """Seconds one response may take before its server counts as lost."""
    bucket: int = 256 * 2**20
    """Bytes of one bucket of weights in shared memory. Two exist at a time; a larger tensor has one of its own."""
    keep: bool = False
    """Whether a copy of the published weights stays in shared memory, as large as the model, so that a server that was
    lost can be given them again without the trainer.
    """
    restarts: int = 3
    """How often in a run servers started here may be started again."""
    module: str = "posttrain.rollout.server.engine"
    """What is run as a server, with the arguments of `vllm serve`."""
    sleeps: bool = False
    """Whether servers started here share their GPU with the training phase."""


class EngineLostError(PosttrainError):
    """Every server that held the weights is gone. `finished` are the responses that arrived, by index of their request:
    only the others need to be drawn again.
    """

    def __init__(self, message: str, finished: Mapping[int, Rollout] | None = None) -> None:
        super().__init__(message)
        self.finished = dict(finished or {})
