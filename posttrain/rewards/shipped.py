"""Audit sets that come with a verifier: NAME.json and NAME.jsonl in the folder `audits` of its top-level package."""

from __future__ import annotations

import importlib.util
import json
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from importlib.machinery import FileFinder
from pathlib import Path
from typing import Any

from posttrain.errors import DataError
from posttrain.recipe import Reward

FOLDER = "audits"


@dataclass(frozen=True)
class AuditSet:
    """Rows with known verdicts, the verifier they are for, and the score from which a response counts as accepted."""

    rows: Path
    verifier: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    threshold: float = 1.0

    @property
    def name(self) -> str:
        return self.rows.stem


def read_set(path: Path) -> AuditSet:
    """The set that a file NAME.json describes. Raises DataError naming the file and the key."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a description of an audit set: {error}") from None
    if not isinstance(found, dict) or not isinstance(found.get("verifier"), str):
        raise DataError(f'{path}: verifier: missing; write {{"verifier": "package.module:Name"}}')
    unknown = sorted(set(found) - {"verifier", "settings", "threshold"})
    if unknown:
        raise DataError(f"{path}: {unknown[0]}: unknown key; there is: verifier, settings, threshold")
    settings, threshold = found.get("settings", {}), found.get("threshold", 1.0)
    if not isinstance(settings, dict):
        raise DataError(f"{path}: settings: {settings!r} is no mapping")
    if isinstance(threshold, bool) or not isinstance(threshold, int | float):
        raise DataError(f"{path}: threshold: {threshold!r} is no number")
    rows = path.with_suffix(".jsonl")
    if not rows.is_file():
        raise DataError(f"{path}: its rows are missing: no file {rows.name!r} beside it")
    return AuditSet(rows, found["verifier"], settings, float(threshold))


def sets_of(verifier: str) -> list[AuditSet]:
    """The sets that a verifier's own package ships for it; the package is found by its name and not imported."""
    package = verifier.partition(":")[0].partition(".")[0]
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    folders = [Path(root) / FOLDER for root in (spec and spec.submodule_search_locations) or ()]
    found = [read_set(path) for folder in folders for path in sorted(folder.glob("*.json"))]
    return [one for one in found if one.verifier == verifier]


def sets_called(name: str) -> list[AuditSet]:
    """The sets of this name in every installed package."""
    return [read_set(folder / f"{name}.json") for folder in _folders() if (folder / f"{name}.json").is_file()]


def set_names() -> list[str]:
    """The names of all sets of installed packages."""
    return sorted({path.stem for folder in _folders() for path in folder.glob("*.json")})


def shipped_audit(reward: Reward) -> AuditSet | None:
    """The set that ships for a reward's verifier: the one of its settings where there is one, or else the first."""
    found = sets_of(reward.verifier)
    same = [one for one in found if one.settings == reward.settings]
    return next(iter(same or found), None)


def _folders() -> Iterator[Path]:
    for module in pkgutil.iter_modules():
        if module.ispkg and isinstance(module.module_finder, FileFinder):
            folder = Path(module.module_finder.path) / module.name / FOLDER
            if folder.is_dir():
                yield folder
