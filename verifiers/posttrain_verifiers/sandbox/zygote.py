"""The warm process that cells are forked from, which programs are forked from, and the guard that ends it with its owner.

Started as a fresh interpreter, so that nothing of the owner's memory is in it. It never sees a program: a source goes
from the owner to the program's own process.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import socket
import traceback
from typing import NoReturn

from posttrain_verifiers.sandbox import agent, cell, filter, kernel, root, tree

MODULES = """
array ast bisect calendar cmath collections.abc contextlib copy dataclasses datetime decimal enum fractions functools
heapq inspect io itertools json linecache math numbers operator random re statistics string struct textwrap threading
time traceback types typing _bz2 _hashlib _lzma _sqlite3 _ssl _uuid zlib
"""
"""Imported once. The last stand on libraries of the system, which are not in sight later. Each of the others costs
every program a little of its start, and saves most of them more."""
_OUTER = (
    kernel.CLONE_NEWUSER
    | kernel.CLONE_NEWNS
    | kernel.CLONE_NEWPID
    | kernel.CLONE_NEWIPC
    | kernel.CLONE_NEWUTS
    | kernel.CLONE_NEWNET
)


def main(control: int, owner: int) -> NoReturn:
    """`control`: a socket to the owner; `owner`: a pidfd of it."""
    channel = socket.socket(fileno=control)
    stage = "Python"
    try:
        _close_others(control, owner)
        agent.load(MODULES.split())
        stage = "/proc"
        proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
        tree.check(proc)
        stage = "seccomp"
        filter_code = filter.instructions()
        stage = "namespaces"
        kernel.unshare(_OUTER, "user, mount, pid, ipc, uts, net")
        stage = "user mapping"
        channel.send(b'{"unshared": true}')
        if channel.recv(64) != b"mapped":
            os._exit(1)
        own = os.open("self/ns/pid", os.O_RDONLY, dir_fd=proc)
        stage = "root"
        root.enter()
        socket.sethostname("sandbox")
        stage = "user"
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
        kernel.be_dumpable()
    except BaseException as error:
        _complain(channel, stage, error)
    os.close(own)
    child = os.fork()
    if child == 0:
        os.close(owner)
        _serve(channel, proc, filter_code)
    channel.close()
    _guard(owner, child)


def _close_others(*kept: int) -> None:
    names = [int(name) for name in os.listdir("/proc/self/fd")]
    for number in set(names) - {0, 1, 2, *kept}:
        try:
            os.close(number)
        except OSError:
            continue  # the folder that was listed


def _complain(channel: socket.socket, stage: str, error: BaseException) -> NoReturn:
    where = traceback.format_exception_only(error)[-1].strip()
    channel.send(json.dumps({"missing": stage, "reason": where}).encode())
    os._exit(1)


def _guard(owner: int, child: int) -> NoReturn:
    """Live as long as both do, and end the other with the one."""
    watched = os.pidfd_open(child)
    poll = select.poll()
    for descriptor in (owner, watched):
        poll.register(descriptor, select.POLLIN)
    while True:
        if poll.poll():
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os._exit(0)


def _serve(channel: socket.socket, proc: int, filter_code: bytes) -> NoReturn:
    """The first process of the outer pid namespace: its end is the end of every program."""
    try:
        kernel.die_with_parent()
        os.setsid()
        # A first process hears no signal from its namespace but those it has a handler for. Python has this one.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        own = os.open("self/ns/pid", os.O_RDONLY, dir_fd=proc)
        gc.collect()
        gc.freeze()
        channel.send(b'{"ready": true}')
    except BaseException as error:
        _complain(channel, "first process", error)
    while True:
        request, descriptors, _, _ = socket.recv_fds(channel, 1 << 16, 1)
        if not request:
            os._exit(0)
        try:
            child = _start(json.loads(request), descriptors[0], proc, own, filter_code)
        except BaseException as error:
            channel.send(json.dumps({"missing": "fork", "reason": str(error)}).encode())
            continue
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        try:
            handle = os.pidfd_open(child)
        except OSError as error:
            # It is dead already: no place for it was to be had.
            channel.send(json.dumps({"missing": "first process", "reason": str(error)}).encode())
            continue
        socket.send_fds(channel, [b"{}"], [handle])
        os.close(handle)


def _start(limits: dict[str, float], control: int, proc: int, own: int, filter_code: bytes) -> int:
    # A process may ask for a pid namespace for its children once; back in its own, it may again.
    kernel.setns(own, kernel.CLONE_NEWPID)
    kernel.unshare(kernel.CLONE_NEWPID, "pid")
    child = os.fork()
    if child == 0:
        cell.live(limits, control, proc, filter_code)
    return child
