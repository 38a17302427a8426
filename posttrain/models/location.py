"""What a recipe's model path points to, found without torch and without loading anything."""

from __future__ import annotations

import difflib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from posttrain.errors import ModelError


@dataclass(frozen=True)
class Location:
    """`file` is the folder or the .gguf file; None for a hub id."""

    kind: Literal["folder", "gguf", "hub"]
    file: Path | None


def locate(path: str, key: str = "model.path") -> Location:
    """Tell a hub id, a folder, a .gguf file and pkg://package/file apart.

    Raises ModelError naming what was looked for and what is there instead.
    """
    file = _in_package(path, key) if path.startswith("pkg://") else Path(path).expanduser()
    if file.suffix == ".gguf":
        if not file.is_file():
            raise ModelError(f"{key}: no file {str(file)!r}{_instead(file)}")
        return Location("gguf", file)
    if file.is_dir():
        if not (file / "config.json").is_file():
            raise ModelError(
                f"{key}: {str(file)!r} holds no config.json, so it is no model folder; it has {_listing(file)}"
            )
        return Location("folder", file)
    if path.startswith(("pkg://", "/", "./", "../", "~")) or path.count("/") != 1:
        raise ModelError(f"{key}: no folder {str(file)!r}{_instead(file)}; a hub id is written owner/name")
    return Location("hub", None)


def context_length(location: Location) -> int | None:
    """The longest sequence a local folder's config allows; None where it can't be told without loading."""
    config = config_of(location)
    found = config.get("max_position_embeddings", (config.get("text_config") or {}).get("max_position_embeddings"))
    return found if isinstance(found, int) else None


def config_of(location: Location) -> dict[str, Any]:
    """A local folder's config; empty where it can't be told without loading."""
    if location.kind != "folder" or location.file is None:
        return {}
    found: dict[str, Any] = json.loads((location.file / "config.json").read_text(encoding="utf-8"))
    return found


def _in_package(path: str, key: str) -> Path:
    package, slash, inside = path.removeprefix("pkg://").partition("/")
    if not slash or not inside:
        raise ModelError(f"{key}: {path!r} names no file; write pkg://package/file")
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"{key}: the Python package {package!r} is not installed; install it, or give a folder")
    return Path(spec.submodule_search_locations[0]) / inside


def _instead(file: Path) -> str:
    if not file.parent.is_dir():
        return f"; the folder {str(file.parent)!r} does not exist"
    names = [p.name for p in file.parent.iterdir()]
    near = difflib.get_close_matches(file.name, names, n=1, cutoff=0.4)
    return f"; did you mean {near[0]!r}?" if near else f"; {str(file.parent)!r} has {_listing(file.parent)}"


def _listing(folder: Path) -> str:
    names = sorted(p.name for p in folder.iterdir() if not p.name.startswith((".", "__")))
    return ", ".join(names[:6]) + (" and more" if len(names) > 6 else "") if names else "nothing"
