"""Every audit set that ships: not one verdict is wrong, in the processes that training grades in."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

from posttrain.recipe import Grading
from posttrain.rewards.audit import Auditor
from posttrain.rewards.shipped import read_set
from tests.runs import ROOT

PACKAGES = ("verifiers/posttrain_verifiers", "reward_models/posttrain_reward_models")
SETS = [file for package in PACKAGES for file in sorted((ROOT / package / "audits").glob("*.json*"))]
DESCRIBED = sorted({file.with_suffix(".json") for file in SETS})

NEEDS_A_SERVICE = {"judge", "environments"}
"""Modules whose verdicts are a server's or another package's, so that no file can say what they should be."""


@pytest.mark.parametrize("file", DESCRIBED, ids=lambda file: file.stem)
def test_a_shipped_set_has_no_wrong_verdict(file: Path) -> None:
    report = Auditor(Grading(workers=2)).audit(read_set(file))
    wrong = [
        f"{name}, line {one.row.line} ({one.row.kind}), score {one.part.score}: {one.part.reason}"
        for name, found in (
            ("accepted", report.false_positives),
            ("refused", report.false_negatives),
            ("not graded", report.ungraded),
        )
        for one in found
    ]
    assert not wrong, "\n".join(wrong)
    # A set that never expects one of the two says nothing of it.
    assert report.count(True, True)
    assert report.count(False, False)


def test_every_verifier_that_ships_has_a_set() -> None:
    audited = {read_set(file).verifier for file in DESCRIBED}
    package = importlib.import_module("posttrain_verifiers")
    missing = []
    for module in pkgutil.iter_modules(package.__path__):
        if module.name in NEEDS_A_SERVICE:
            continue
        found = importlib.import_module(f"posttrain_verifiers.{module.name}")
        for name, thing in vars(found).items():
            grades = inspect.isclass(thing) and "__call__" in vars(thing) and not name.startswith("_")
            path = f"{found.__name__}:{name}"
            if grades and thing.__module__.startswith(package.__name__) and path not in audited:
                missing.append(path)
    assert not missing
