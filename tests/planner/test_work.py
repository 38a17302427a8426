"""Micro-batches that are planned are those that packing cuts and the learner lays out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from benchmarks.memory import BASE, Case, samples
from posttrain.data.packing import Packing, pack
from posttrain.learner.layout import lay_out
from posttrain.planner.work import laid_out
from posttrain.recipe import parse

CASES = {
    "rows": Case(),
    "rows, none fits twice": replace(BASE, budget=300),
    "tree": replace(BASE, layout="tree", budget=900),
    "tree, all in one": replace(BASE, layout="tree", budget=4096),
    "tree, two in a row": replace(BASE, layout="tree", budget=500),
    "tree, masked": replace(BASE, layout="tree", budget=900, attention="masked"),
    "packed": replace(BASE, layout="packed"),
    "packed, masked": replace(BASE, layout="packed", attention="masked"),
    "several ranks": replace(BASE, groups=4),
}


@pytest.mark.parametrize("name", CASES)
def test_the_largest_micro_batch_is_the_planned_one(name: str) -> None:
    case, ranks = CASES[name], 2 if name == "several ranks" else 1
    learner = {
        "layout": case.layout,
        "attention": case.attention,
        "micro_batch_tokens": case.budget,
        "processes": ranks,
        "strategy": "ddp",
    }
    tree: dict[str, Any] = {
        "model": "a/b",
        "data": {},
        "run": {"folder": "runs/none"},
        "rollout": {"group_size": 4},
        "optimizer": {"prompts_per_step": case.groups},
        "hardware": {"learner": learner},
    }
    work = laid_out(parse(tree), case.prompt, case.response)
    flat = case.attention == "trees"
    packing = Packing(case.budget, case.layout == "tree", torch.float32, ranks, padded=not flat)
    batches = list(pack(samples(case), packing))
    laid = [lay_out(batch, case.layout, flat) for batch in batches]  # type: ignore[arg-type]
    first, planned = laid[0], work.micro_batch
    assert work.passes == len(batches)
    assert (planned.rows, planned.length) == tuple(first.input_ids.shape)
    assert planned.predicted == len(first.row)
    assert planned.masked == (first.attention_mask is not None)
