"""A verifier's own audit set, graded in this process."""

from __future__ import annotations

import importlib
import json
import time
from pathlib import Path
from typing import Any

from posttrain.types import Verdict

AUDITS = Path(__file__).resolve().parents[2] / "verifiers" / "posttrain_verifiers" / "audits"


def faults(name: str, kinds: set[str]) -> list[str]:
    """The rows of a set whose verdict is not the expected one, has no score or takes more than a second, one line each;
    and what the set itself lacks of the kinds that are asked for, and of right and wrong rows."""
    said = json.loads((AUDITS / f"{name}.json").read_text())
    module, _, target = said["verifier"].partition(":")
    grade = getattr(importlib.import_module(module), target)(**said["settings"])
    getattr(grade, "prepare", lambda: None)()
    rows = [json.loads(line) for line in (AUDITS / f"{name}.jsonl").read_text().split("\n") if line]
    found = [f"no row of kind {kind}" for kind in sorted(kinds - {row["kind"] for row in rows})]
    found += [f"no row that is {expect}" for expect in {True, False} - {row["expect"] for row in rows}]
    for number, row in enumerate(rows, start=1):
        columns = {key: value for key, value in row.items() if key not in ("completion", "expect", "kind")}
        verdict, taken = timed(grade, row["completion"], **columns)
        accepted = verdict.score is not None and verdict.score >= said["threshold"]
        if accepted is not row["expect"] or verdict.score is None or taken > 1:
            found.append(f"{name}.jsonl:{number}: {verdict.score} in {taken:.1f} s, {verdict.reason!r}")
    return found


def timed(grade: Any, completion: str, **columns: Any) -> tuple[Verdict, float]:
    """One verdict and its processor time in seconds."""
    start = time.process_time()
    verdict = grade(completion, **columns)
    return verdict, time.process_time() - start


def seconds(grade: Any, completion: str, **columns: Any) -> float:
    return timed(grade, completion, **columns)[1]
