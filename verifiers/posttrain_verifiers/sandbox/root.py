"""The file system that programs see: Python's own library, three devices, and an empty place for a private tmpfs."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from posttrain_verifiers.sandbox import kernel

DEVICES = ("null", "zero", "urandom")
_FIXED = kernel.MS_BIND | kernel.MS_REMOUNT | kernel.MS_NOSUID | kernel.MS_RDONLY
_KEPT = {
    os.ST_NODEV: kernel.MS_NODEV,
    os.ST_NOEXEC: kernel.MS_NOEXEC,
    os.ST_NOATIME: 1024,
    os.ST_NODIRATIME: 2048,
    os.ST_RELATIME: 1 << 21,
}
"""Flags of a mount that its copy in another user namespace must keep."""


def enter(folders: Iterable[str]) -> None:
    """Make a root of nothing but these folders and the devices in the mount namespace of the process, and leave the
    old one.
    """
    kernel.mount("none", "/", "", kernel.MS_REC | kernel.MS_PRIVATE)
    # Opened before the new root hides the places.
    sources = {path: os.open(path, os.O_PATH) for path in [*folders, *(f"/dev/{name}" for name in DEVICES)]}
    new = "/tmp"
    kernel.mount("tmpfs", new, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=1m,mode=755")
    for path, descriptor in sources.items():
        place = new + path
        # Not by its name: what lies in /tmp is hidden by now.
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            os.makedirs(place, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(place), exist_ok=True)
            os.close(os.open(place, os.O_CREAT | os.O_WRONLY))
        _bind(f"/proc/self/fd/{descriptor}", place)
        os.close(descriptor)
        for installed in (f"{place}/site-packages", f"{place}/dist-packages"):
            if os.path.isdir(installed):
                kernel.mount("tmpfs", installed, "tmpfs", kernel.MS_RDONLY, "size=4k,mode=555")
    os.makedirs(f"{new}/tmp", exist_ok=True)
    os.symlink("/tmp", f"{new}/dev/shm")
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
