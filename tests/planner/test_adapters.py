"""What an adapter takes on its way to the engines, apart and merged."""

from __future__ import annotations

from typing import Any

import pytest

from posttrain.build.check import check
from posttrain.planner import estimate, read_machine
from posttrain.planner.traffic import Publishing
from tests.planner.test_command import H200, SEVEN, recipe


def planned(*overrides: str) -> Publishing:
    checked: Any = check(recipe("model.lora={rank: 16}", *overrides))
    found = estimate(checked.recipe, checked.row, SEVEN, read_machine(H200)).publishing
    assert found is not None
    return found


def test_only_the_adapter_is_counted_where_it_is_apart() -> None:
    # Rank x (in + out) of q, k, v, o, gate, up, down, in 32 layers, two bytes each; eight ranks hold an eighth.
    pairs = [(4096, 4096), (4096, 1024), (4096, 1024), (4096, 4096), (4096, 14336), (4096, 14336), (14336, 4096)]
    size = 2 * 32 * 16 * sum(map(sum, pairs))
    for way in ("auto", "apart"):
        found = planned(f"hardware.sampler.adapters={way}")
        assert found.received == pytest.approx(size * 7 / 8)
        assert found.copied == 2 * size
        assert found.planned is None


@pytest.mark.parametrize("overrides", [["hardware.sampler.adapters=merged"], ["hardware.sampler.placement=servers"]])
def test_all_weights_are_counted_where_it_is_merged(overrides: list[str]) -> None:
    assert planned(*overrides).received == pytest.approx(2 * SEVEN.parameters * 7 / 8)
