"""The first process of a pid namespace, in which programs run one after the other: each is a fork of it.

It gives up all rights, and proves it, before there is a program; a fork has none either. Its end ends whatever a
program started. It tells its owner how each program ended, and whether the place is as it was before: no other process,
no used-up process number, nothing in the private folder. Where it is not, the owner ends it and has a new one made.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _socket
import gc
import itertools
import os
import resource
import struct
import time
from collections.abc import Sequence
from typing import NoReturn

from posttrain_verifiers.sandbox import agent, kernel, root, tree

DESCRIPTORS = 4
"""At most so many are sent for a program: channel, stdout, stderr, and stdin where it has one."""
TICK = 0.05
"""Seconds between two looks at the memory of the tree."""
# The modules beneath `signal` and `socket`: all that the others add costs each program pages.
_CHILD = frozenset({_signal.SIGCHLD})
USER = 1000
"""Of a program, in the user namespace of its cell."""
_INNER = kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
"""The network namespace is the sandbox's, empty too: one costs a tenth of a start, and no program has sockets."""


def live(limits: dict[str, float], control: int, proc: int, filter_code: bytes) -> NoReturn:
    """Run programs until the owner hangs up. `control`: a socket to it; `proc`: the folder /proc."""
    channel = _socket.socket(fileno=control)
    try:
        _close_all_but(proc, control)
        _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
        _signal.pthread_sigmask(_signal.SIG_BLOCK, {_signal.SIGCHLD})
        os.setsid()
        _separate(proc, int(limits["disk"]))
        _limit(limits, tree.mapped(proc))
        agent.set_streams()
        cell = _Cell(channel, proc, int(limits["memory"]))
        os.umask(0o077)
        kernel.drop_capabilities()
        kernel.install_filter(filter_code)
        _prove()
        gc.collect()
        gc.freeze()
        channel.send(b"ready")
    except BaseException as error:
        _complain(channel, error)
    cell.serve()


def _complain(channel: _socket.socket, error: BaseException) -> NoReturn:
    try:
        channel.send(f"broken {type(error).__name__}: {error}".encode()[:1000])
    finally:
        os._exit(1)


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


def _limit(limits: dict[str, float], base: int) -> None:
    wanted = {
        resource.RLIMIT_AS: base + int(limits["memory"]),
        # One more: the cell is of the same user.
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
    if (os.getpid(), os.getuid(), os.geteuid()) != (1, USER, USER):
        raise RuntimeError("no pid or user namespace")
    for call in (_socket.socket, lambda: kernel.unshare(0, "nothing"), lambda: os.listdir("/proc")):
        try:
            call()
        except OSError:
            continue
        raise RuntimeError("a refused call was carried out")


class _Cell:
    """What a cell needs to run programs. It holds no descriptor of a program's while another runs."""

    def __init__(self, channel: _socket.socket, proc: int, memory: int) -> None:
        self.channel, self.proc, self.memory = channel, proc, memory
        self.numbers = os.open("loadavg", os.O_RDONLY, dir_fd=proc)
        self.place = _place()

    def serve(self) -> NoReturn:
        while True:
            try:
                request, [*sent], _, _ = self.channel.recvmsg(64, _socket.CMSG_SPACE(DESCRIPTORS * 4))
                if not request:
                    os._exit(0)
                ((_, _, numbers),) = sent
                descriptors = struct.unpack(f"{len(numbers) // 4}i", numbers)
                child = os.fork()
            except BaseException as error:
                _complain(self.channel, error)
            if child == 0:
                self.become(int(request), descriptors)
            channel, *others = descriptors
            os.close(channel)
            self.channel.send(self.watch(child).encode())
            # Held until now, so that the owner hears of the end once, and from here.
            for descriptor in others:
                os.close(descriptor)

    def become(self, cpu: int, descriptors: Sequence[int]) -> NoReturn:
        """The program's process: `cpu` seconds, these descriptors and no others; then the agent takes the program."""
        try:
            _signal.pthread_sigmask(_signal.SIG_UNBLOCK, _CHILD)
            _signal.signal(_signal.SIGINT, _signal.default_int_handler)
            resource.setrlimit(resource.RLIMIT_CPU, (cpu, cpu))
            channel, out, err, *given = descriptors
            stdin = given[0] if given else os.open("/dev/null", os.O_RDONLY)
            for number, descriptor in enumerate((stdin, out, err)):
                os.dup2(descriptor, number)
            held = self.channel.fileno()
            for descriptor in (stdin, out, err, self.proc, self.numbers):
                os.close(descriptor)
            if channel != agent.CHANNEL:
                os.dup2(channel, agent.CHANNEL)
                os.close(channel)
            if held != agent.CHANNEL:
                os.close(held)
        except BaseException as error:
            _complain(self.channel, error)
        agent.main()

    def watch(self, child: int) -> str:
        """How the program ended: `exited` with its code or minus its signal and whether it left nothing, or `memory`,
        and then it may go on.
        """
        look = time.monotonic() + TICK
        while True:
            _signal.sigtimedwait(_CHILD, max(0.0, look - time.monotonic()))
            # By the clock, since a program may send that signal as well.
            if time.monotonic() >= look:
                look += TICK
                if tree.holds_more(self.proc, self.memory):
                    return "memory"
            # While the number of the program's process is taken, it is the last one only if there was no other since.
            alone = self.last_number() == child
            # One that is taken in here may be another's child, whose parent has died.
            while (found := os.waitpid(-1, os.WNOHANG))[0]:
                if found[0] == child:
                    clean = alone and _place() == self.place
                    return f"exited {os.waitstatus_to_exitcode(found[1])} {'clean' if clean else 'unclean'}"

    def last_number(self) -> int:
        """The last process or thread number that was given out in this namespace."""
        return int(os.pread(self.numbers, 200, 0).rpartition(b" ")[2])


def _place() -> tuple[int, ...]:
    """What changes with anything that is in the private folder, or with what it says of itself."""
    own = os.stat(".")
    return own.st_mode, own.st_uid, own.st_gid, own.st_nlink, own.st_size, own.st_mtime_ns, own.st_ctime_ns
