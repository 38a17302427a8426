"""A process that must not outlive another: when its parent is gone, its whole process group is killed."""

from __future__ import annotations

import os
import signal
import threading
import time

OWNER = "POSTTRAIN_SERVER_OWNER"
"""Set for a server: the process id of who started it."""

POLL = 0.25
"""Seconds between two looks at the parent."""


def perish_with(parent: int) -> threading.Thread:
    """Kill this process's group once `parent` is no longer its parent, however it ended.

    Polled rather than asked of the kernel: the death signal of Linux comes when the *thread* that started a process
    ends, and a pipe stays open in every forked worker of the parent.
    """
    watcher = threading.Thread(target=_watch, args=(parent,), name="lifeline", daemon=True)
    watcher.start()
    return watcher


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(POLL)
    os.killpg(0, signal.SIGKILL)
