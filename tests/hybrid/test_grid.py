"""Every strategy of training times every way to generate, times tied, untied, expert and adapter models: what the real
engine says after a publication is what a plain forward pass says, and what cannot be is refused by name.
"""

from __future__ import annotations

import itertools
import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from posttrain.build.layouts import layout_mistakes
from posttrain.recipe import adapters_mistakes, parse
from tests.hybrid.grid_on_ranks import ADAPTERS, ENGINES, SHARDINGS, SYNCS
from tests.ranks import on_ranks
from tests.runs import recipe

pytestmark = pytest.mark.vllm
pytest.importorskip("vllm")

BOUND = 1e-4
"""Between two correct fp32 implementations on a CPU."""
MODELS = [model for models in ENGINES.values() for model in models]
SHAPES = list(itertools.product(("colocated", "servers"), (1, 2)))
GRID = [
    (*shape, s, m) for shape in SHAPES for m in MODELS for s in SHARDINGS if (s, *shape) != ("single", "colocated", 2)
]
"""(placement, tensor parallel, strategy, model): all that is not refused when a recipe is checked."""
QUICK = {
    ("colocated", 2, "fsdp2", "moe"),
    ("colocated", 2, "zero3", "moe"),
    ("colocated", 1, "single", "lora apart"),
    ("colocated", 1, "zero2", "lora merged"),
    ("servers", 1, "ddp", "untied"),
    ("servers", 1, "zero3", "untied"),
}
"""Every strategy, placement and span. A tied model's engine is in `test_transfer_vllm` and `test_sync`."""
Start = tuple[str, int, str, bool]
"""Placement, tensor parallel, engine, and whether it is for the quick cells or for the others."""
ENGINE_OF = {model: engine for engine, models in ENGINES.items() for model in models}
STARTS = sorted({(p, n, ENGINE_OF[m], (p, n, s, m) in QUICK) for p, n, s, m in GRID})


def marks(start: Start) -> list[pytest.MarkDecorator]:
    """What is of one start runs in one process, which starts it once."""
    return [pytest.mark.xdist_group(f"grid {start}"), *([] if start[3] else [pytest.mark.grid])]


CELLS = [pytest.param(c, marks=marks((*c[:2], ENGINE_OF[c[3]], c in QUICK)), id=" ".join(map(str, c))) for c in GRID]
EVERY = [pytest.param(s, marks=marks(s), id=" ".join(map(str, s))) for s in STARTS]
DEATHS: dict[Start, str] = {("servers", 1, "untied", False): "untied", ("servers", 2, "moe", False): "moe"}
"""Whose server is killed."""
PARTS = 2 * 2 * 7
"""Tensors of an adapter: two to a projection, seven projections to a layer, two layers."""


@cache
def started(start: Start) -> list[dict[str, Any]]:
    """What each rank found in the cells of a start: two processes, started once."""
    placement, span, engine, _ = start
    cells = [c for c in GRID if (*c[:2], ENGINE_OF[c[3]], c in QUICK) == start]
    asked = [f"{strategy}: {model}" for *_, strategy, model in cells]
    if start in DEATHS:
        asked.append(f"killed: {DEATHS[start]}")
    said = on_ranks("tests.hybrid.grid_on_ranks", placement, str(span), engine, *asked)
    out: list[dict[str, Any]] = json.loads(said.splitlines()[-1])
    return out


def figures_of(cell: tuple[str, int, str, str]) -> list[dict[str, Any]]:
    placement, span, strategy, model = cell
    return [rank[f"{strategy}: {model}"] for rank in started((placement, span, ENGINE_OF[model], cell in QUICK))]


def test_the_quick_cells_have_every_strategy_placement_span_and_model_but_one() -> None:
    assert set(GRID) >= QUICK
    for axis in range(3):
        assert {cell[axis] for cell in QUICK} == {cell[axis] for cell in GRID}
    assert {cell[3] for cell in GRID} - {cell[3] for cell in QUICK} == {"tied"}


@pytest.mark.parametrize("cell", CELLS)
def test_three_publications_in_a_row_agree_with_a_plain_forward_pass(cell: tuple[str, int, str, str]) -> None:
    placement, _, strategy, model = cell
    for found in figures_of(cell):
        if placement == "servers" and ADAPTERS.get(model) == "apart":
            assert "hardware.sampler.adapters: apart, but the engine takes whole weights" in found["refused"]
            continue
        assert len(found["gaps"]) == SYNCS
        assert max(found["gaps"]) < BOUND
        # The way of a run: parts to parts where both sides know theirs, and nothing else unsaid.
        if model in ADAPTERS:
            assert ("the adapter apart" in found["words"]) == (ADAPTERS[model] == "apart")
        else:
            planned = placement == "colocated" and strategy != "zero3"
            assert ("gathered on every rank" not in found["words"]) == planned


@pytest.mark.parametrize("start", EVERY)
def test_the_engine_is_silent_at_first_and_notices_every_single_parameter(start: Start) -> None:
    for rank in started(start):
        assert rank["refused at first"] is True
        perturbed = {name: found for name, found in rank.items() if ": " in name and "perturbed" in found}
        models = {name.split(": ")[1] for name, found in rank.items() if ": " in name and "gaps" in found}
        assert {name.split(": ")[1] for name in perturbed} == models
        assert models
        for name, found in perturbed.items():
            assert found["unnoticed"] == [], name
            assert found["perturbed"] == PARTS if "lora" in name else found["perturbed"] >= 20, name
            assert found["largest gap"] < BOUND, name


@pytest.mark.parametrize("start", [pytest.param(s, marks=marks(s), id=" ".join(map(str, s))) for s in DEATHS])
def test_a_server_that_is_killed_comes_back_with_the_weights_it_had_and_takes_others(start: Start) -> None:
    for rank in started(start):
        found = rank[f"killed: {DEATHS[start]}"]
        assert found["restarts"] == 1
        assert found["same"]
        assert len(found["gaps"]) == SYNCS
        assert max(found["gap after a death"], *found["gaps"]) < BOUND


def test_what_is_not_in_the_grid_is_refused_by_name() -> None:
    nowhere, engine = Path("nowhere"), {"engine": "vllm"}
    spanned = recipe(nowhere, rollout=engine, hardware={"sampler": {"tensor_parallel": 2}})
    (said,) = layout_mistakes(parse(spanned), None)
    assert "tensor_parallel: 2, but hardware.learner.strategy: single has one process for an engine to span" in said
    assert "processes: 2" in said
    sampler = {"placement": "servers", "adapters": "apart"}
    apart = recipe(
        nowhere, model={"path": "nowhere", "lora": {"rank": 4}}, rollout=engine, hardware={"sampler": sampler}
    )
    (said,) = adapters_mistakes(parse(apart), True, {})
    assert "hardware.sampler.adapters: apart, but hardware.sampler.placement: servers" in said
    assert "use merged" in said
