"""What a program could have left on the host: processes, files, ports, descriptors, mounts."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from posttrain_verifiers.sandbox import Sandbox
from tests.verifiers.attacks import MARK, PORT

PLACES = [
    Path("/"),
    Path("/tmp"),
    Path("/var/tmp"),
    Path("/dev/shm"),
    Path("/dev"),
    Path.home(),
    Path(os.__file__).parent,
]
SETTLE = 2.0
"""Seconds in which the kernel may finish taking a dead process out of its lists."""


def _fields(pid: str) -> tuple[str, str] | None:
    """Parent and command of a process, which may be a zombie."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
        command = Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return None
    return status.rpartition(")")[2].split()[1], command


def processes() -> set[str]:
    """Pids that descend from this process, and orphans of any sandbox: those have its command, but no sandbox above."""
    table = {pid: found for pid in os.listdir("/proc") if pid.isdigit() and (found := _fields(pid))}
    ours, more = set(), [str(os.getpid())]
    while more:
        children = [pid for pid, (parent, _) in table.items() if parent == more[-1]]
        more.pop()
        ours.update(children)
        more += children
    orphans = {pid for pid, (parent, command) in table.items() if parent == "1" and "zygote.main" in command}
    return ours | orphans


def files() -> set[str]:
    """Paths with the attacks' mark, wherever a program could have put them, and what it could have changed."""
    found = {str(path) for place in [*PLACES, Path.cwd()] for path in place.iterdir() if MARK in path.name}
    for path in ("/dev/null", "/dev/urandom", os.__file__):
        status = os.stat(path)
        found.add(f"{path} {status.st_mode} {status.st_size} {status.st_uid}")
    return found


def listeners() -> set[str]:
    """Sockets that are open on the attacks' port or name."""
    found = set()
    for table in ("tcp", "tcp6", "udp", "udp6", "unix"):
        try:
            lines = Path(f"/proc/net/{table}").read_text().splitlines()
        except OSError:
            continue
        found |= {line for line in lines if f":{PORT:04X} " in line or MARK in line}
    return found


def descriptors() -> set[str]:
    return {f"{name} {os.readlink(f'/proc/self/fd/{name}')}" for name in os.listdir("/proc/self/fd") if _is_open(name)}


def _is_open(name: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{name}")


def shared_memory() -> list[str]:
    return [Path(f"/proc/sysvipc/{kind}").read_text() for kind in ("shm", "msg", "sem") if _has_ipc(kind)]


def _has_ipc(kind: str) -> bool:
    return Path(f"/proc/sysvipc/{kind}").exists()


def _all() -> dict[str, object]:
    return {
        "processes": processes(),
        "files": files(),
        "listeners": listeners(),
        "descriptors": descriptors(),
        "shared memory": shared_memory(),
        "mounts": Path("/proc/self/mounts").read_text(),
        "environment": dict(os.environ),
        "folder": os.getcwd(),
    }


@contextmanager
def nothing_left(*sandboxes: Sandbox) -> Iterator[None]:
    """What is done inside must leave the host as it was, but for the places that these sandboxes keep for later
    programs. A sandbox must be there before, or be closed inside.
    """
    for sandbox in sandboxes:
        sandbox.let_go()
    before = _all()
    yield
    for sandbox in sandboxes:
        sandbox.let_go()
    until = time.monotonic() + SETTLE
    while (after := _all()) != before and time.monotonic() < until:
        time.sleep(0.02)
    left = {name: (before[name], after[name]) for name in before if before[name] != after[name]}
    assert not left, left
