"""Starting a vLLM server as a child of this process, and killing it with everything it has started."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from posttrain.errors import ModelError
from posttrain.rollout.server import ServerOptions
from posttrain.rollout.server.lifeline import OWNER
from posttrain.rollout.vllm import CPU_BLOCK, EngineOptions

DEFAULT = ServerOptions()
TAIL = 15
"""Lines of a server's log that an error shows."""


class Server:
    """One server. It listens on a socket file in a folder that only this user may enter, and on no port at all."""

    def __init__(
        self, folder: Path, engine: EngineOptions, name: str = "server", options: ServerOptions = DEFAULT
    ) -> None:
        self.folder, self.engine, self.name, self.options = folder, engine, name, options
        self._home = tempfile.TemporaryDirectory(prefix="posttrain-server-")
        self.socket = Path(self._home.name) / "engine.sock"
        logs = options.logs or Path(self._home.name)
        logs.mkdir(parents=True, exist_ok=True)
        self.log = logs / f"{name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"unix:{self.socket}"

    def start(self) -> None:
        """Start the process, anew if there was one. Returns at once."""
        self.kill()
        self.socket.unlink(missing_ok=True)
        command = [sys.executable, "-m", self.options.module, *self.arguments()]
        with self.log.open("ab") as log:
            # A session of its own: a signal to the trainer's group does not reach it half-way through a step.
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment(),
                start_new_session=True,
            )

    def arguments(self) -> list[str]:
        """Of `vllm serve`: the same engine as the one in process, whatever the model's own generation config says."""
        engine, sampler = self.engine, self.engine.hardware.sampler
        settings = {
            "uds": self.socket,
            "dtype": engine.dtype,
            "max-model-len": engine.max_length,
            "max-num-seqs": sampler.max_sequences,
            "tensor-parallel-size": sampler.tensor_parallel,
            "generation-config": "vllm",
            "logprobs-mode": "processed_logprobs",
            "seed": 0,
            "weight-transfer-config": json.dumps({"backend": "posttrain_shared_memory"}),
            "worker-extension-cls": "posttrain.rollout.server.worker.Extension",
        }
        switches = ["enable-prefix-caching", "enable-scale-out", "disable-log-stats", "disable-uvicorn-access-log"]
        if engine.device == "cpu":
            settings |= {
                "kv-cache-memory-bytes": int(sampler.memory * 2**30),
                "block-size": CPU_BLOCK,
                "max-num-batched-tokens": max(engine.max_length, 4096),
            }
            # A partly prefilled, seeded request rewinds its generator by an offset, which CPU generators lack.
            switches.append("no-enable-chunked-prefill")
        else:
            settings["gpu-memory-utilization"] = sampler.memory
            switches += ["enable-sleep-mode"] * self.options.sleeps
        switches += ["enforce-eager"] * (not sampler.compile) + ["trust-remote-code"] * engine.trust_remote_code
        return [str(self.folder), *(f"--{k}={v}" for k, v in settings.items()), *(f"--{name}" for name in switches)]

    def environment(self) -> dict[str, str]:
        own = {
            OWNER: str(os.getpid()),
            # The routes that publish weights exist in this mode alone. They are behind the socket's folder.
            "VLLM_SERVER_DEV_MODE": "1",
            "VLLM_LOGGING_LEVEL": "INFO",
            "VLLM_NO_USAGE_STATS": "1",
        }
        if self.engine.device == "cpu":
            own.setdefault("VLLM_CPU_OMP_THREADS_BIND", os.environ.get("VLLM_CPU_OMP_THREADS_BIND", "nobind"))
        if self.engine.hardware.sampler.tensor_parallel == 1:
            # One process fewer between the server and its only worker.
            own["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        else:
            own["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
        return {**os.environ, **own}

    def ended(self, patience: float = 0.0) -> str | None:
        """How the process ended, with the end of its log; None while it runs after `patience` seconds."""
        if self.process is None:
            return None
        try:
            code = self.process.wait(patience)
        except subprocess.TimeoutExpired:
            return None
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
        return f"{self.name} ({self.url}) {how}; its log ends:\n{self.tail()}"

    def killed(self, patience: float) -> bool:
        """Whether the process was ended by a signal, at the latest after `patience` seconds."""
        return self.ended(patience) is not None and self.process is not None and self.process.returncode < 0

    def tail(self) -> str:
        """The last lines of the log."""
        with contextlib.suppress(OSError), self.log.open("rb") as file:
            file.seek(max(0, self.log.stat().st_size - 2**16))
            lines = file.read().decode(errors="replace").splitlines()[-TAIL:]
            return "\n".join(f"  {line[:300]}" for line in lines) or "  (empty)"
        return "  (no log)"

    def too_late(self, seconds: float) -> ModelError:
        return ModelError(
            f"{self.name} did not answer at {self.url} within {seconds:.0f} s (start_timeout); it was killed, its log "
            f"({self.log}) ends:\n{self.tail()}"
        )

    def kill(self) -> None:
        """End the process and everything it has started. Safe to call twice."""
        if self.process is None:
            return
        # Also where the leader is gone: its group lives on as long as one of its children does.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None

    def close(self) -> None:
        self.kill()
        self._home.cleanup()
