"""A machine: how much its devices hold, and how fast they compute, read and send. Described in a file, or this one."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from posttrain.errors import RecipeError
from posttrain.recipe.load import read_yaml

SIDE = 512
"""Rows and columns of the matrices that this machine's rate is measured with."""
COPIED = 2**26
"""Bytes that its memory's bandwidth is measured with: more than most caches hold."""
BF16_FLAGS = ("avx512_bf16", "amx_bf16", "bf16")
"""What /proc/cpuinfo calls instructions that multiply in bfloat16."""
WITHOUT_BF16 = 0.05
"""Rate of bfloat16 products to that of float32 on a CPU without such instructions: .01 to .1 was seen."""


@dataclass(frozen=True)
class Reached:
    """Shares of the rates above that real work reaches."""

    matrix: float = 0.4
    bandwidth: float = 0.7
    link: float = 0.7


@dataclass(frozen=True)
class Machine:
    """Equal devices. Rates are those of one device, in operations or bytes a second."""

    name: str
    device: str
    """cpu or cuda."""
    devices: int
    per_machine: int
    """Devices that the faster links connect."""
    memory: float
    """Bytes of one device."""
    rates: dict[str, float]
    """Multiplications and additions of matrix products, by dtype."""
    bandwidth: float
    """Of a device's own memory."""
    link: float
    """From a device to another of its machine, one way."""
    network: float
    """From a device to one of another machine, one way."""
    reserved: float = 0.0
    """Bytes that a process takes before there is a model: the libraries, a context, buffers of collectives."""
    reached: Reached = Reached()

    @property
    def shared(self) -> bool:
        """Whether all ranks share one memory and its cores."""
        return self.device == "cpu"

    def room(self, ranks: int) -> float:
        """Bytes for the models of one rank."""
        of_rank = self.memory / ranks if self.shared else self.memory
        return of_rank - self.reserved

    def rate(self, itemsize: int, ranks: int) -> float:
        """What one rank reaches in matrix products."""
        dtype = {2: "bfloat16", 4: "float32", 8: "float64"}[itemsize]
        found = self.rates.get(dtype)
        if found is None:
            raise RecipeError([f"hardware.dtype: {dtype}, but {self.name} has no rate of it; add rates.{dtype}"])
        return found * self.reached.matrix / (ranks if self.shared else 1)

    def read_rate(self, ranks: int) -> float:
        """What one rank reaches in reading its memory."""
        return self.bandwidth * self.reached.bandwidth / (ranks if self.shared else 1)

    def send_rate(self, ranks: int) -> float:
        """What one rank reaches in sending to the others, of which the farthest counts."""
        return (self.link if ranks <= self.per_machine else self.network) * self.reached.link


KEYS = [field.name for field in fields(Machine)]


def read_machine(path: str | Path) -> Machine:
    """A machine from its description. Raises RecipeError naming each key that is missing, unknown or no number."""
    file = Path(path)
    if not file.is_file():
        known = ", ".join(sorted(str(p) for p in Path("configs/machine").glob("*.yaml")))
        raise RecipeError([f"--machine: no file {str(path)!r}; give one as those of configs/machine: {known}"])
    tree = read_yaml(file.read_text(encoding="utf-8"), str(file))
    tree = tree.get("machine", tree) if isinstance(tree, dict) else {}
    mistakes = [f"{key}: unknown key; a machine has {', '.join(KEYS)}" for key in tree if key not in KEYS]
    mistakes += [f"{key}: missing" for key in KEYS if key not in tree and key not in ("reserved", "reached")]
    numbers = ("devices", "per_machine", "memory", "bandwidth", "link", "network", "reserved")
    mistakes += [
        f"{key}: {tree[key]!r}; a number is needed, of bytes or of bytes a second: 141e9"
        for key in numbers
        if key in tree and not (isinstance(tree[key], (int, float)) and tree[key] >= 0)
    ]
    if tree.get("device") not in ("cpu", "cuda"):
        mistakes.append(f"device: {tree.get('device')!r}; cpu or cuda")
    mistakes += [f"{key}: {tree[key]!r}; a mapping is needed" for key in ("rates", "reached") if not _maps(tree, key)]
    if mistakes:
        raise RecipeError(mistakes, str(file))
    try:
        return Machine(**{**tree, "reached": Reached(**tree.get("reached", {}))})
    except TypeError:
        names = ", ".join(field.name for field in fields(Reached))
        raise RecipeError([f"reached: {tree['reached']!r}; its keys are {names}"], str(file)) from None


def _maps(tree: dict[str, Any], key: str) -> bool:
    found = tree.get(key, {})
    return isinstance(found, dict) and all(isinstance(v, (int, float)) and v > 0 for v in found.values())


@cache
def this_machine() -> Machine:
    """The CPU that this runs on: cores, memory, and two rates measured in a tenth of a second."""
    import numpy as np

    matrix = np.ones((SIDE, SIDE), np.float32)
    memory = np.ones(COPIED // 4, np.float32)
    cores = len(os.sched_getaffinity(0))
    rate = cores * 2 * SIDE**3 / _fastest(lambda: matrix @ matrix)
    # A sum reads every byte once.
    bandwidth = COPIED / _fastest(memory.sum)
    info = Path("/proc/cpuinfo")
    flags = info.read_text().split() if info.is_file() else []
    narrow = 2.0 if any(flag in flags for flag in BF16_FLAGS) else WITHOUT_BF16
    return Machine(
        f"this machine, {cores} cores",
        "cpu",
        devices=1,
        per_machine=1,
        memory=float(_memory()),
        rates={"float32": rate, "bfloat16": rate * narrow, "float64": rate / 2},
        bandwidth=bandwidth,
        link=bandwidth,
        network=bandwidth,
        # Measured: torch, transformers and vLLM once imported.
        reserved=1.2e9,
        reached=Reached(0.7, 0.7, 0.3),
    )


def _memory() -> int:
    """Bytes of this machine, or of the control group that limits this process where that is less."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    return min(whole, int(text)) if text.isdigit() else whole


def _fastest(work: Any) -> float:
    """Seconds of a core for the fastest of four: what else runs here meanwhile does not count."""
    best = float("inf")
    for _ in range(4):
        started = time.process_time()
        work()
        best = min(best, time.process_time() - started)
    return best


def describe_machine(machine: Machine) -> str:
    """One line: devices, memory, rates."""
    rates = ", ".join(f"{name} {rate / 1e12:.3g} T/s" for name, rate in machine.rates.items())
    return (
        f"{machine.name}: {machine.devices} x {machine.memory / 1e9:.4g} GB ({machine.reserved / 1e9:.3g} GB reserved)"
        f", {rates}, memory {machine.bandwidth / 1e9:.4g} GB/s, link {machine.link / 1e9:.4g} GB/s, of which "
        f"{machine.reached.matrix:g}, {machine.reached.bandwidth:g} and {machine.reached.link:g} are reached"
    )
