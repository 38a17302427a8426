"""Audit sets, and packages that ship them, written for one test."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from posttrain.rewards.shipped import AuditSet


def row(completion: str, expect: bool, **columns: Any) -> dict[str, Any]:
    return {"completion": completion, "expect": expect, **columns}


def written(file: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def audit_set(file: Path, rows: Sequence[Mapping[str, Any]], name: str = "naughty", **fields: Any) -> AuditSet:
    return AuditSet(written(file, rows), f"tests.graders:{name}", **fields)


SOURCE = '''
import os

class Short:
    """Accepts what is no longer than it should be; counts in a file of its package's folder."""
    version = "1"

    def __init__(self, most=3):
        self.most = most

    def __call__(self, completion):
        with open(os.path.join(os.path.dirname(__file__), "calls"), "a") as calls:
            calls.write("x")
        return float(len(completion) <= self.most)


def plain(completion):
    return 1.0
'''


def shipping_package(root: Path, name: str) -> Path:
    """A package with a verifier `Short` and a set called `short_NAME`, one of whose four rows it accepts wrongly."""
    folder = root / name
    (folder / "audits").mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "lengths.py").write_text(SOURCE)
    described = {"verifier": f"{name}.lengths:Short", "settings": {"most": 2}, "threshold": 1.0}
    (folder / "audits" / f"short_{name}.json").write_text(json.dumps(described))
    rows = [row("a", True), row("ab", True), row("abc", False), row("x", False, kind="hostile")]
    written(folder / "audits" / f"short_{name}.jsonl", rows)
    return folder


def calls(package: Path) -> int:
    file = package / "calls"
    return len(file.read_text()) if file.exists() else 0
