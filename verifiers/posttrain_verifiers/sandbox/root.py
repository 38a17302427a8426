"""The file system that programs see: Python's own library, three devices, and an empty place for a private tmpfs."""

from __future__ import annotations

import os
import sys
import sysconfig
from pathlib import Path

from posttrain_verifiers.sandbox import kernel

DEVICES = ("null", "zero", "urandom")
ZONES = "/usr/share/zoneinfo"
_FIXED = kernel.MS_BIND | kernel.MS_REMOUNT | kernel.MS_NOSUID | kernel.MS_RDONLY
_KEPT = {
    os.ST_NODEV: kernel.MS_NODEV,
    os.ST_NOEXEC: kernel.MS_NOEXEC,
    os.ST_NOATIME: 1024,
    os.ST_NODIRATIME: 2048,
    os.ST_RELATIME: 1 << 21,
}
"""Flags of a mount that its copy in another user namespace must keep."""


def libraries() -> list[str]:
    """The folders of the standard library, and the time zones."""
    paths = sysconfig.get_paths()
    found = [paths["stdlib"], paths["platstdlib"], *(path for path in sys.path if path.endswith("lib-dynload")), ZONES]
    folders = sorted({os.path.realpath(path) for path in found if Path(path).is_dir()})
    return [a for a in folders if not any(a.startswith(b + "/") for b in folders)]


def enter() -> None:
    """Make a root of nothing but this in the mount namespace of the process, and leave the old one."""
    kernel.mount("none", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
    # Opened before the new root hides the places.
    sources = {path: os.open(path, os.O_PATH) for path in [*libraries(), *(f"/dev/{name}" for name in DEVICES)]}
    new = "/tmp"
    kernel.mount("tmpfs", new, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=1m,mode=755")
    for path, descriptor in sources.items():
        place = Path(new + path)
        place.parent.mkdir(parents=True, exist_ok=True)
        if Path(path).is_dir():
            place.mkdir(exist_ok=True)
        else:
            place.touch()
        _bind(f"/proc/self/fd/{descriptor}", str(place))
        os.close(descriptor)
        for installed in ("site-packages", "dist-packages"):
            if (place / installed).is_dir():
                kernel.mount("tmpfs", str(place / installed), "tmpfs", kernel.MS_RDONLY, "size=4k,mode=555")
    (Path(new) / "tmp").mkdir()
    (Path(new) / "dev/shm").symlink_to("/tmp")
    os.chdir(new)
    kernel.pivot_root(".", ".")
    kernel.unmount(".")
    os.chdir("/")
    kernel.mount("none", "/", "", _FIXED | kernel.MS_NODEV)


def _bind(source: str, place: str) -> None:
    kernel.mount(source, place, "", kernel.MS_BIND | kernel.MS_REC)
    held = os.statvfs(place).f_flag
    kept = sum(flag for name, flag in _KEPT.items() if held & name)
    kernel.mount("none", place, "", _FIXED | kept)


def add_private(size: int) -> None:
    """An empty folder of the program's own, of so many bytes, as /tmp, in a mount namespace of its own."""
    flags = kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    kernel.mount("tmpfs", "/tmp", "tmpfs", flags, f"size={size},nr_inodes=4096,mode=700")
    os.chdir("/tmp")
