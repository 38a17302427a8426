"""How a warm process is started: a fresh interpreter with the sandbox's own parts, and what programs are to see."""

from __future__ import annotations

import functools
import json
import marshal
import os
import socket
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from posttrain_verifiers.sandbox.cells import START_LIMIT
from posttrain_verifiers.sandbox.limits import SandboxUnavailableError

ZONES = "/usr/share/zoneinfo"
_PARTS = "scalars frames values kernel root tree filter agent cell zygote"
"""What the process needs of this package, in the order of their imports."""
_START = """
import marshal, sys, types
with open(0, "rb", closefd=False) as file:
    parts = marshal.load(file)
outer, inner = map(types.ModuleType, ("posttrain_verifiers", "posttrain_verifiers.sandbox"))
sys.modules.update({module.__name__: module for module in (outer, inner)})
for name, code in parts:
    module = sys.modules[f"{inner.__name__}.{name}"] = types.ModuleType(f"{inner.__name__}.{name}")
    setattr(inner, name, module)
    exec(code, module.__dict__)
control, owner, *folders = sys.argv[1:]
inner.zygote.main(int(control), int(owner), folders)
"""
"""Compiled elsewhere, since what a compiler leaves in memory would be copied for each program."""
ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "PYTHONUTF8": "1",
    "LC_ALL": "C.UTF-8",
    "MALLOC_ARENA_MAX": "2",
    "LD_BIND_NOW": "1",
}
"""Of the warm process; a program's is empty. The seed is fixed, so a set is printed in the same order each time."""
_WAYS_OUT = {
    "Python": "the interpreter must start by itself",
    "/proc": "mount /proc",
    "seccomp": "use a kernel with seccomp filters, on x86_64 or aarch64",
    "namespaces": "allow user namespaces: sysctl user.max_user_namespaces above 0, kernel.unprivileged_userns_clone=1"
    " where there is one; in a container, a seccomp profile that lets unshare through",
    "user mapping": "run as an ordinary user, or as root with CAP_SETUID and CAP_SETGID",
    "root": "allow mounts in a user namespace: sysctl kernel.apparmor_restrict_unprivileged_userns=0 where there is"
    " one; in a container, an AppArmor profile that lets mount through",
}


@functools.cache
def _parts() -> bytes:
    folder = Path(__file__).parent
    texts = [(name, folder / f"{name}.py") for name in _PARTS.split()]
    return marshal.dumps([(name, compile(file.read_text("utf-8"), str(file), "exec")) for name, file in texts])


@functools.cache
def _folders() -> list[str]:
    """The folders of the standard library, and the time zones."""
    # Those of the interpreter itself: a virtual environment's own folder holds what is installed and nothing else.
    paths = sysconfig.get_paths(vars={"base": sys.base_prefix, "platbase": sys.base_exec_prefix})
    found = [paths["stdlib"], paths["platstdlib"], *(path for path in sys.path if path.endswith("lib-dynload")), ZONES]
    folders = sorted({os.path.realpath(path) for path in found if Path(path).is_dir()})
    return [a for a in folders if not any(a.startswith(b + "/") for b in folders)]


def readable(text: bytes) -> int:
    """A descriptor to read this from, like a file that was redirected."""
    written = os.memfd_create("stdin", os.MFD_CLOEXEC)
    try:
        left = memoryview(text)
        while left:
            left = left[os.write(written, left) :]
        return os.open(f"/proc/self/fd/{written}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(written)


def start() -> tuple[socket.socket, subprocess.Popen[bytes]]:
    """A socket to a warm process that is ready, and the process, which goes with its owner.

    Raises SandboxUnavailableError, which names what is missing.
    """
    if not sys.platform.startswith("linux"):
        raise SandboxUnavailableError("programs are isolated with Linux namespaces only; run on Linux")
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    owner = os.pidfd_open(os.getpid())
    parts = readable(_parts())
    with tempfile.TemporaryFile() as words, theirs:
        command = [sys.executable, "-S", "-s", "-P", "-B", "-c", _START, str(theirs.fileno()), str(owner)]
        try:
            process = subprocess.Popen(
                [*command, *_folders()],
                pass_fds=(theirs.fileno(), owner),
                stdin=parts,
                stdout=subprocess.DEVNULL,
                stderr=words,
                env=ENVIRONMENT,
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise SandboxUnavailableError(described({"missing": "Python", "reason": str(error)})) from None
        finally:
            os.close(owner)
            os.close(parts)
        theirs.close()
        try:
            _get_ready(ours, process)
        except BaseException as error:
            ours.close()
            process.kill()
            process.wait()
            words.seek(0)
            if isinstance(error, EOFError | ConnectionError):
                last = words.read().decode(errors="replace").strip().splitlines()[-1:]
                raise SandboxUnavailableError(described({"missing": "Python", "reason": "".join(last)})) from None
            raise
    return ours, process


def _get_ready(control: socket.socket, process: subprocess.Popen[bytes]) -> None:
    control.settimeout(START_LIMIT)
    said: dict[str, Any] = {}
    while "ready" not in said:
        try:
            text = control.recv(1 << 16)
        except TimeoutError:
            raise SandboxUnavailableError(described({"missing": "Python", "reason": "no answer"})) from None
        if not text:
            raise EOFError
        said = json.loads(text)
        if "missing" in said:
            raise SandboxUnavailableError(described(said))
        if "unshared" in said:
            _map_user(process.pid)
            control.send(b"mapped")
    control.settimeout(None)


def _map_user(pid: int) -> None:
    """Let the first user of the process's namespace be nobody, or who we are where we are not root."""
    folder = Path(f"/proc/{pid}")
    try:
        if os.geteuid() == 0:
            # Its own user comes second: it makes the mounts, and is then given up.
            for name in ("uid_map", "gid_map"):
                (folder / name).write_text("0 65534 1\n1 0 1\n")
        else:
            (folder / "setgroups").write_text("deny")
            (folder / "uid_map").write_text(f"0 {os.geteuid()} 1\n")
            (folder / "gid_map").write_text(f"0 {os.getegid()} 1\n")
    except OSError as error:
        raise SandboxUnavailableError(described({"missing": "user mapping", "reason": str(error)})) from None


def described(said: dict[str, str]) -> str:
    way_out = _WAYS_OUT.get(said["missing"], "see the reason")
    return (
        f"no isolation for programs here: {said['missing']} is missing ({said['reason']}); {way_out}. Nothing was run."
    )
