"""What a learning step takes of memory is what was planned, within fifteen in a hundred, in a process of its own."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest

from benchmarks.memory import BASE, Case, alone, planned

SMALL = replace(BASE, layers=3, groups=1, budget=512)
CASES = {
    "all weights, a tree of responses": replace(SMALL, layout="tree"),
    "all weights, a tree of responses, masked": replace(SMALL, layout="tree", attention="masked"),
    "adapters, recomputed, a wide vocabulary": replace(
        SMALL, vocabulary=49152, lora=True, checkpointing=True, chunk=128
    ),
}


@pytest.mark.parametrize("name", list(CASES))
def test_measured_memory_is_the_planned(name: str) -> None:
    case = CASES[name]
    measured = alone(json.dumps(asdict(case)))["bytes"]
    assert sum(planned(case).values()) == pytest.approx(measured, rel=0.15)


def test_each_way_to_save_memory_saves_it() -> None:
    def total(**changes: object) -> float:
        return sum(planned(replace(Case(), **changes)).values())  # type: ignore[arg-type]

    assert total(checkpointing=True) < 0.7 * total()
    assert total(lora=True) < total() - 3 * 4 * 8e6
    assert total(chunk=64) < total()
    assert total(budget=512) < total()
