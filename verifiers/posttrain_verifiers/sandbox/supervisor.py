"""The first process of a program's pid namespace: ours, so its end ends whatever the program started.

It makes the program's namespaces, forks it, watches what its tree holds, and tells the owner how it ended.
"""

from __future__ import annotations

import itertools
import os
import resource
import select
import signal
import socket
from typing import NoReturn

from posttrain_verifiers.sandbox import agent, kernel, root, tree

DESCRIPTORS = 5
"""stdin, stdout, stderr, channel, status: what a process gets, as 0 to 4. It loses the last before a program runs."""
STATUS = 4
TICK = 50
"""Milliseconds between two looks at the memory of the tree."""
USER = 1000
"""Of a program, in its own user namespace."""
_INNER = kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
"""The network namespace is the sandbox's, empty too: one costs a tenth of a start, and no program has sockets."""


def supervise(limits: dict[str, float], descriptors: list[int], proc: int, filter_code: bytes) -> NoReturn:
    """Run one program and end with it."""
    status = socket.socket(fileno=descriptors[STATUS])
    try:
        _close_all_but(proc, *descriptors)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        _separate(proc, int(limits["disk"]))
        base = tree.mapped(proc)
        child = os.fork()
        if child == 0:
            _become(limits, descriptors, base, filter_code)
        for descriptor in descriptors[:STATUS]:
            os.close(descriptor)
        status.send(_watch(child, status, proc, int(limits["memory"])).encode())
    except BaseException as error:
        status.send(f"broken {type(error).__name__}: {error}".encode()[:1000])
    finally:
        os._exit(0)


def _close_all_but(*kept: int) -> None:
    edges = [2, *sorted(kept), 1 << 16]
    for low, high in itertools.pairwise(edges):
        os.closerange(low + 1, high)


def _separate(proc: int, disk: int) -> None:
    kernel.unshare(_INNER, "user, mount, ipc, uts")
    for name, text in (("setgroups", "deny"), ("uid_map", f"{USER} 0 1"), ("gid_map", f"{USER} 0 1")):
        _write(proc, f"self/{name}", text)
    root.add_private(disk)
    _write(proc, "self/oom_score_adj", "1000")


def _write(proc: int, name: str, text: str) -> None:
    descriptor = os.open(name, os.O_WRONLY, dir_fd=proc)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _become(limits: dict[str, float], descriptors: list[int], base: int, filter_code: bytes) -> NoReturn:
    """The program's process: give up all rights, prove it, and let the agent take the program."""
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _take(descriptors)
        _limit(limits, base)
        os.umask(0o077)
        kernel.drop_capabilities()
        kernel.install_filter(filter_code)
        _prove()
        os.write(STATUS, b"ready")
        os.close(STATUS)
    except BaseException as error:
        os.write(STATUS, f"broken {type(error).__name__}: {error}".encode()[:1000])
        os._exit(1)
    agent.main()


def _take(descriptors: list[int]) -> None:
    """Have the descriptors as 0, 1, ... and no others."""
    safe = [os.dup(descriptor) for descriptor in descriptors]
    while min(safe) < DESCRIPTORS:
        safe = [os.dup(descriptor) for descriptor in safe]
    for i, descriptor in enumerate(safe):
        os.dup2(descriptor, i, inheritable=i < STATUS - 1)
    os.closerange(DESCRIPTORS, 1 << 16)


def _limit(limits: dict[str, float], base: int) -> None:
    cpu = int(limits["seconds"]) * 2 + 2
    wanted = {
        resource.RLIMIT_AS: base + int(limits["memory"]),
        resource.RLIMIT_CPU: cpu,
        # One more: the supervisor is of the same user.
        resource.RLIMIT_NPROC: int(limits["processes"]) + 1,
        resource.RLIMIT_FSIZE: int(limits["disk"]),
        resource.RLIMIT_NOFILE: 128,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_NICE: 0,
        resource.RLIMIT_RTPRIO: 0,
        resource.RLIMIT_SIGPENDING: 256,
        resource.RLIMIT_STACK: 64 << 20,
    }
    for kind, value in wanted.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))


def _prove() -> None:
    """Raise where the process could still do what it must not."""
    if (os.getpid(), os.getuid(), os.geteuid()) != (2, USER, USER):
        raise RuntimeError("no pid or user namespace")
    for call in (socket.socket, lambda: kernel.unshare(0, "nothing"), lambda: os.listdir("/proc")):
        try:
            call()
        except OSError:
            continue
        raise RuntimeError("a refused call was carried out")


def _watch(child: int, status: socket.socket, proc: int, memory: int) -> str:
    """How the program ended. Its owner's going ends the supervisor, and so the tree."""
    poll = select.poll()
    poll.register(status, select.POLLIN)
    poll.register(os.pidfd_open(child), select.POLLIN)
    while True:
        events = poll.poll(TICK)
        if any(descriptor == status.fileno() for descriptor, _ in events):
            os._exit(0)
        ended = _reap(child)
        if ended is not None:
            return f"exited {ended}"
        if not events and tree.holds_more(proc, memory):
            return "memory"


def _reap(child: int) -> int | None:
    """Take the dead in; the program's own exit code or minus its signal if it is among them."""
    code = None
    while True:
        try:
            pid, ended = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if pid == 0:
            return code
        if pid == child:
            code = os.waitstatus_to_exitcode(ended)
