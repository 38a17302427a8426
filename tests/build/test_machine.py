"""What a recipe leaves open is decided once: a run goes on with what it began with, whatever the machine says then."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.build import machine
from posttrain.metrics import RunFolder
from posttrain.recipe import dump
from posttrain.world import ALONE
from tests.offline_runs import checked
from tests.runs import prepare


@pytest.fixture
def rate(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How much faster bfloat16 is said to be here."""
    said = [2.0]
    monkeypatch.setattr(machine, "bfloat16_rate", lambda device: said[0])
    return said


@pytest.mark.parametrize(("faster", "dtype"), [(2.0, "bfloat16"), (0.5, "float32")])
def test_the_faster_dtype_is_taken_and_said(tmp_path: Path, rate: list[float], faster: float, dtype: str) -> None:
    rate[0] = faster
    found, line = machine.resolved(checked(prepare(tmp_path), "hardware.dtype=auto"), ALONE)
    assert found.recipe.hardware.dtype == dtype
    assert line is not None
    assert f"auto is {dtype}" in line
    assert f"{faster:.2g} x" in line


def test_a_run_goes_on_in_the_dtype_it_began_in(tmp_path: Path, rate: list[float]) -> None:
    recipe = checked(prepare(tmp_path), "hardware.dtype=auto")
    folder = RunFolder(tmp_path / "run")
    first, _ = machine.resolved(recipe, ALONE, folder)
    folder.open(dump(first.recipe))
    rate[0] = 0.5
    again, line = machine.resolved(recipe, ALONE, folder)
    assert again.recipe.hardware.dtype == first.recipe.hardware.dtype == "bfloat16"
    assert line is not None
    assert line.endswith("as this run began")
    assert folder.open(dump(again.recipe)) is True


def test_what_was_asked_for_stays_and_a_slow_dtype_is_said(tmp_path: Path, rate: list[float]) -> None:
    rate[0] = 0.5
    for asked, said in (("bfloat16", "auto would take float32"), ("float32", None)):
        recipe = checked(prepare(tmp_path / asked), f"hardware.dtype={asked}")
        found, line = machine.resolved(recipe, ALONE)
        assert found is recipe
        assert line is None if said is None else said in str(line)
