"""The warm process that cells are forked from, as programs are from them, and the guard that ends it with its owner.

Started as a fresh interpreter, so that nothing of the owner's memory is in it. It never sees a program: a source goes
from the owner to the program's own process.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import _socket
import gc
import importlib
import json
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from posttrain_verifiers.sandbox import agent, cell, filter, kernel, root, tree

MODULES = "collections.abc copy functools itertools operator re string typing"
"""Imported once. Each page and each mapping that these take costs every program a little of its start and of its end:
only what most programs import is here, and what the parts of the sandbox in this process import themselves."""
DISTANT = "_bz2 _ctypes _hashlib _lzma _sqlite3 _ssl _uuid zlib"
"""Modules that stand on libraries of the system, which must be in sight where a program imports them."""
_OUTER = (
    kernel.CLONE_NEWUSER
    | kernel.CLONE_NEWNS
    | kernel.CLONE_NEWPID
    | kernel.CLONE_NEWIPC
    | kernel.CLONE_NEWUTS
    | kernel.CLONE_NEWNET
)


def main(control: int, owner: int, folders: Sequence[str]) -> NoReturn:
    """`control`: a socket to the owner; `owner`: a pidfd of it; `folders`: what programs see."""
    channel = _socket.socket(fileno=control)
    stage = "Python"
    try:
        _close_others(control, owner)
        libraries = _libraries()
        for name in MODULES.split():
            importlib.import_module(name)
        agent.prepare()
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
        root.enter([*folders, *libraries])
        _socket.sethostname("sandbox")
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


def _libraries() -> list[str]:
    """Files that the loader opens for the distant modules, found out in a process that ends."""
    reading, writing = os.pipe()
    if os.fork() == 0:
        before = set(kernel.loaded())
        for name in DISTANT.split():
            try:
                importlib.import_module(name)
            except ImportError:
                continue  # built without it
        found = [path for path in kernel.loaded() if path not in before and "/lib-dynload/" not in path]
        os.write(writing, "\0".join(found).encode())
        os._exit(0)
    os.close(writing)
    text = b""
    while part := os.read(reading, 1 << 16):
        text += part
    os.close(reading)
    os.wait()
    return [path for path in text.decode().split("\0") if os.path.isabs(path) and os.path.isfile(path)]


def _complain(channel: _socket.socket, stage: str, error: BaseException) -> NoReturn:
    channel.send(json.dumps({"missing": stage, "reason": f"{type(error).__name__}: {error}"}).encode())
    os._exit(1)


def _guard(owner: int, child: int) -> NoReturn:
    """Live as long as both do, and end the other with the one."""
    import select  # here alone, for no program is forked from this process

    watched = os.pidfd_open(child)
    poll = select.poll()
    for descriptor in (owner, watched):
        poll.register(descriptor, select.POLLIN)
    while True:
        if poll.poll():
            os.kill(child, _signal.SIGKILL)
            os.waitpid(child, 0)
            os._exit(0)


def _serve(channel: _socket.socket, proc: int, filter_code: bytes) -> NoReturn:
    """The first process of the outer pid namespace: its end is the end of every program."""
    try:
        kernel.die_with_parent()
        os.setsid()
        # A first process hears no signal from its namespace but those it has a handler for. Python has this one.
        _signal.signal(_signal.SIGINT, _signal.SIG_IGN)
        _signal.signal(_signal.SIGCHLD, _signal.SIG_IGN)
        own = os.open("self/ns/pid", os.O_RDONLY, dir_fd=proc)
        gc.collect()
        gc.freeze()
        channel.send(b'{"ready": true}')
    except BaseException as error:
        _complain(channel, "first process", error)
    while True:
        request, sent, _, _ = channel.recvmsg(1 << 12, _socket.CMSG_SPACE(4))
        if not request:
            os._exit(0)
        control = int.from_bytes(sent[0][2], sys.byteorder)
        try:
            child = _start(json.loads(request), control, proc, own, filter_code)
        except BaseException as error:
            channel.send(json.dumps({"missing": "fork", "reason": str(error)}).encode())
            continue
        finally:
            os.close(control)
        try:
            handle = os.pidfd_open(child)
        except OSError as error:
            # It is dead already: no place for it was to be had.
            channel.send(json.dumps({"missing": "first process", "reason": str(error)}).encode())
            continue
        words = handle.to_bytes(4, sys.byteorder)
        channel.sendmsg([b"{}"], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, words)])
        os.close(handle)


def _start(limits: dict[str, float], control: int, proc: int, own: int, filter_code: bytes) -> int:
    # A process may ask for a pid namespace for its children once; back in its own, it may again.
    kernel.setns(own, kernel.CLONE_NEWPID)
    kernel.unshare(kernel.CLONE_NEWPID, "pid")
    child = os.fork()
    if child == 0:
        cell.live(limits, control, proc, filter_code)
    return child
