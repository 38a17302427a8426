"""Checkpoints that are whole or absent: written beside, digested, made durable, then renamed into place."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from posttrain.errors import PosttrainError
from posttrain.learner import Learner
from posttrain.metrics import RunFolder
from posttrain.metrics.durable import sync
from posttrain.world import ALONE, World, note_phase

MANIFEST = "manifest.json"


def write_checkpoint(
    folder: RunFolder, step: int, learner: Learner, state: dict[str, Any], keep: int | None, world: World = ALONE
) -> Path:
    """Everything the next step needs: the learner's own files, the loop's `state`, and a manifest of digests.

    A kill at any moment leaves either no checkpoint of this step or a complete one. Afterwards only the newest
    `keep` remain; None keeps all. All ranks write what is theirs, the first one everything else.
    """
    note_phase("saving a checkpoint")
    target = folder.checkpoint_path(step)
    work = target.with_name(f".writing-{target.name}")
    if world.rank == 0:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
    world.wait()
    learner.save(work)
    if world.rank == 0:
        _complete(folder, step, learner, state, work)
        for old in folder.checkpoints()[:-keep] if keep else []:
            shutil.rmtree(folder.checkpoint_path(old))
    world.wait()
    return target


def _complete(folder: RunFolder, step: int, learner: Learner, state: dict[str, Any], work: Path) -> None:
    """Add the loop's state and the manifest to what the learner wrote, make all of it durable, and give it its name."""
    target = folder.checkpoint_path(step)
    (work / "state.json").write_text(json.dumps(state), encoding="utf-8")
    manifest = {"step": step, "version": learner.version, "files": digests(work)}
    (work / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for file in sorted(work.rglob("*")):
        if file.is_file():
            sync(file)
    shutil.rmtree(target, ignore_errors=True)
    work.rename(target)
    sync(target.parent)


def restore(folder: Path, learner: Learner, world: World = ALONE) -> dict[str, Any]:
    """Put the learner back to a checkpoint and return the loop's state. Raises PosttrainError on a damaged file."""
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    found = world.shared(lambda: digests(folder))
    wrong = [name for name, digest in manifest["files"].items() if found.get(name) != digest]
    if wrong:
        raise PosttrainError(
            f"checkpoint {str(folder)!r} is damaged: {', '.join(wrong[:3])} changed since it was written; "
            "remove that folder to continue from the checkpoint before it"
        )
    learner.load(folder)
    if learner.version != manifest["version"]:
        raise PosttrainError(f"checkpoint {str(folder)!r} holds version {learner.version}, not {manifest['version']}")
    return json.loads((folder / "state.json").read_text(encoding="utf-8"))


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder but its manifest, by relative name."""
    out = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name != MANIFEST:
            with file.open("rb") as stream:
                out[file.relative_to(folder).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    return out
