"""A fragment named on the command line is put over the recipe, before the pairs that come after it."""

from __future__ import annotations

from pathlib import Path

import pytest

from posttrain.errors import RecipeError
from posttrain.recipe.load import apply_overrides

RECIPE = {"model": "some/model", "hardware": {"device": "cuda", "learner": {"layout": "rows"}}}


def test_a_fragment_with_what_it_extends_is_put_over_a_recipe_in_its_turn(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("hardware: {device: cpu, sampler: {memory: 2}}\n")
    (tmp_path / "two.yaml").write_text("extends: base.yaml\nhardware: {learner: {strategy: ddp, processes: 2}}\n")
    file = tmp_path / "two.yaml"
    found = apply_overrides(RECIPE, [f"with={file}", "hardware.learner.processes=4", "model.max_length=9"])
    assert found == {
        "model": {"path": "some/model", "max_length": 9},
        "hardware": {
            "device": "cpu",
            "sampler": {"memory": 2},
            "learner": {"layout": "rows", "strategy": "ddp", "processes": 4},
        },
    }
    assert apply_overrides(RECIPE, [f"with=[{file}]", "hardware.device=auto"])["hardware"]["device"] == "auto"
    assert RECIPE["hardware"] == {"device": "cuda", "learner": {"layout": "rows"}}


def test_a_fragment_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no such file: .*none\.yaml"):
        apply_overrides(RECIPE, [f"with={tmp_path / 'none.yaml'}"])
