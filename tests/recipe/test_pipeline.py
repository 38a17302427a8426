"""A pipeline is read with what its stages extend, and every reference that leads nowhere is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from posttrain.errors import RecipeError
from posttrain.recipe.pipeline import Pipeline, is_pipeline, read_pipeline

RECIPE: dict[str, Any] = {
    "model": {"path": "some/start", "lora": {"rank": 4}},
    "algorithm": "grpo",
    "data": {"eval": {"source": "file", "path": "eval.jsonl"}},
    "run": {"steps": 6, "folder": "alone", "save_every": 3},
    "evaluation": {"samples": 2},
}
STAGES: dict[str, Any] = {
    "first": {"extends": "recipe.yaml", "run": {"steps": 40, "save_every": 1}},
    "second": {"extends": "recipe.yaml", "model": "stage:first", "rewards": [{"settings": {"path": "stage:first"}}]},
    "final": {"evaluate": "stage:second"},
    "again": {"evaluate": "stage:first", "evaluation": {"samples": 1}},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    return tmp_path


def read(folder: Path, *overrides: str, **changes: Any) -> Pipeline:
    path = folder / "stages.yaml"
    tree = {"folder": str(folder / "out"), "stages": {**STAGES, **changes}}
    path.write_text(yaml.safe_dump(tree, sort_keys=False))
    return read_pipeline(path, overrides)


def tree_of(pipeline: Pipeline, name: str) -> dict[str, Any]:
    return next(stage.tree for stage in pipeline.stages if stage.name == name)


WRONG: dict[str, tuple[dict[str, Any], list[str]]] = {
    "unknown": ({"second": {"model": "stage:frist"}}, ["stages.second.model", "stage:frist", "did you mean 'first'?"]),
    "nothing like it": ({"second": {"model": "stage:"}}, ["stages.second.model", "stages before second: first"]),
    "later": ({"first": {"model": "stage:second"}}, ["stages.first.model", "stage:second", "move it up"]),
    "itself": ({"second": {"model": "stage:second"}}, ["stages.second.model", "does not run before second", "first"]),
    "deep": (
        {"second": {"rewards": [{"settings": {"of": ["stage:none"]}}]}},
        ["stages.second.rewards[0].settings.of[0]", "stage:none"],
    ),
    "figures": ({"again": {"evaluate": "stage:final"}}, ["stages.again.evaluate", "makes no model", "it evaluates"]),
    "no stage": ({"final": {"evaluate": "recipe.yaml"}}, ["stages.final.evaluate", "recipe.yaml", "stage:NAME"]),
    "bare name": ({"final": {"evaluate": "second"}}, ["stages.final.evaluate", "'second'", "stage:NAME"]),
    "no text": ({"final": {"evaluate": True}}, ["stages.final.evaluate", "True", "stage:NAME"]),
    "no file": ({"first": {"extends": "none.yaml"}}, ["stages.first.extends", "no such file", "none.yaml"]),
    "itself again": ({"first": {"extends": "stages.yaml"}}, ["stages.first.extends", "extends itself"]),
    "no recipe": ({"first": "recipe.yaml"}, ["stages.first", "keys of a recipe", "str"]),
    "name": ({"a/b": {}}, ["'a/b'", "letters"]),
    "number": ({"1": {}}, ["'1'", "letters"]),
    "taken": ({"pipeline": {}}, ["'pipeline'", "take another"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_reference_or_stage_that_leads_nowhere_is_named_with_a_way_out(folder: Path, case: str) -> None:
    changes, words = WRONG[case]
    with pytest.raises(RecipeError) as caught:
        read(folder, **changes)
    for word in words:
        assert word in str(caught.value), caught.value


def test_overrides_that_belong_to_no_stage_and_keys_of_no_pipeline_are_refused(folder: Path) -> None:
    for text, words in {
        "stages.frist.run.steps=2": "did you mean 'stages.first.key'?",
        "run.steps=2": "stages.NAME.key=value",
        "stages.first={}": "stages.NAME.key=value",
        "folder=3": "folder: 3",
    }.items():
        with pytest.raises(RecipeError) as caught:
            read(folder, text)
        assert words in str(caught.value)
    path = folder / "odd.yaml"
    path.write_text("stage: {}\nfolder: x\nstages: {}\n")
    with pytest.raises(RecipeError) as caught:
        read_pipeline(path)
    for words in ("stage: unknown key", "stages: {}", "at least one"):
        assert words in str(caught.value)


def test_a_stage_is_a_recipe_with_a_folder_of_its_own(folder: Path) -> None:
    pipeline = read(folder, "stages.second.run.steps=7", f"folder={folder / 'elsewhere'}")
    first, second = tree_of(pipeline, "first"), tree_of(pipeline, "second")
    # The file's own keys win over what it extends, but the folder of a run on its own does not.
    assert first["run"] == {"steps": 40, "save_every": 1, "folder": str(folder / "elsewhere" / "first")}
    assert (second["run"]["steps"], second["run"]["save_every"], second["algorithm"]) == (7, 3, "grpo")
    own = read(folder, "stages.first.run.folder=here", second={"extends": "recipe.yaml", "run": {"folder": "there"}})
    assert [tree_of(own, name)["run"]["folder"] for name in ("first", "second")] == ["here", "there"]
    opened = tree_of(read(folder, "stages.second.model.max_length=9"), "second")
    assert (second["model"], opened["model"]) == ("stage:first", {"path": "stage:first", "max_length": 9})
    assert is_pipeline(pipeline.source)
    assert not is_pipeline(folder / "recipe.yaml")
    assert not is_pipeline(folder / "none.yaml")


def test_an_evaluation_goes_over_the_recipe_it_measures_or_over_a_file_of_its_own(folder: Path) -> None:
    (folder / "other.yaml").write_text("model: {path: some/model, max_length: 90}\nalgorithm: rloo\n")
    pipeline = read(
        folder, "stages.final.evaluate=stage:first", alone={"evaluate": "stage:second", "extends": "other.yaml"}
    )
    final, again, alone = (tree_of(pipeline, name) for name in ("final", "again", "alone"))
    assert final["evaluation"] == {"samples": 2}
    assert again["evaluation"] == {"samples": 1}
    assert again["data"] == final["data"] == tree_of(pipeline, "first")["data"]
    assert final["model"] == again["model"] == {"path": "stage:first", "lora": {"rank": 4}, "revision": None}
    assert alone["model"] == {"path": "stage:second", "max_length": 90, "revision": None}
    assert (alone["algorithm"], "data" in alone) == ("rloo", False)
    assert [s.own_recipe for s in pipeline.stages if s.evaluates] == [False, True, True]


def test_a_model_as_it_comes_is_measured_under_a_recipe_of_its_own(folder: Path) -> None:
    pipeline = read(
        folder,
        asis={"evaluate": "some/model", "extends": "recipe.yaml", "rewards": [{"settings": {"path": "stage:first"}}]},
        same={"evaluate": "some/start", "extends": "recipe.yaml", "model": {"revision": "old"}},
    )
    asis, same = pipeline.stages[-2:]
    assert asis.tree["model"] == {"path": "some/model", "lora": {"rank": 4}, "revision": None}
    assert same.tree["model"] == {"path": "some/start", "lora": {"rank": 4}, "revision": "old"}
    assert [(s.evaluates, s.measured, s.own_recipe, s.inputs) for s in (asis, same)] == [
        ("some/model", None, True, ["first"]),
        ("some/start", None, True, []),
    ]
    assert [s.measured for s in pipeline.stages[:-2]] == [None, None, "second", "first"]


def test_every_artefact_is_replaced_by_its_own_path_and_nothing_else_is(folder: Path) -> None:
    second = read(folder, "stages.second.data.train={prompt: 'stage: {x}', of: [[1, 'stage:first']]}").stages[1]
    assert second.references == [
        ("data.train.of[0][1]", "first"),
        ("model", "first"),
        ("rewards[0].settings.path", "first"),
    ]
    assert second.inputs == ["first"]
    resolved = second.resolved(lambda key, stage: f"{stage} at {key}")
    assert resolved["model"] == "first at model"
    assert resolved["rewards"] == [{"settings": {"path": "first at rewards[0].settings.path"}}]
    assert resolved["data"]["train"] == {"prompt": "stage: {x}", "of": [[1, "first at data.train.of[0][1]"]]}
    assert {k: v for k, v in resolved.items() if k not in ("model", "rewards", "data")} == {
        k: v for k, v in second.tree.items() if k not in ("model", "rewards", "data")
    }
