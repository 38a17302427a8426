"""A pipeline runs its stages in order, hands on what they make by name, and never makes anything twice."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from posttrain.build.pipeline import check_pipeline, graph
from posttrain.errors import RecipeError
from posttrain.metrics import RunFolder
from posttrain.metrics.durable import exclusive
from posttrain.recipe.pipeline import Pipeline, read_pipeline
from tests.forked import Forked, run
from tests.runs import ROOT, metrics, prepare

GRADER = '''
from pathlib import Path

from tests.graders import letters


class Model:
    """Grades as letters does once it has found a model; the path of one is not read before."""

    def __init__(self, path: str) -> None:
        self.path = path

    def prepare(self) -> None:
        assert (Path(self.path) / "model.safetensors").is_file()

    def __call__(self, completion: str, *, letter: str) -> float:
        return letters(completion, letter=letter)
'''
STEPS = 40
STAGES: dict[str, Any] = {
    "first": {
        "extends": "recipe.yaml",
        # Slow enough not to reach the best score, fast enough to move.
        "optimizer": {"learning_rate": 3e-4},
        "run": {"steps": STEPS, "save_every": 1, "keep_checkpoints": 3},
    },
    "second": {
        "extends": "recipe.yaml",
        "model": "stage:first",
        "rewards": [{"verifier": "grades_with_a_model:Model", "settings": {"path": "stage:first"}}],
        "run": {"steps": 1},
    },
    "final": {"evaluate": "stage:second"},
    "again": {"evaluate": "stage:first", "evaluation": {"samples": 1, "greedy": False}},
}


def write(folder: Path, **stages: Any) -> Path:
    """A pipeline beside the recipe that its stages extend."""
    path = folder / "stages.yaml"
    path.write_text(yaml.safe_dump({"folder": str(folder / "out"), "stages": stages}, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Model, data, recipe, and a grader that this process and those it starts can import."""
    folder = tmp_path_factory.mktemp("pipeline")
    prepare(folder)
    (folder / "grades_with_a_model.py").write_text(GRADER)
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(folder) + (os.pathsep + before if before else "")
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    os.environ.pop("PYTHONPATH")
    if before is not None:
        os.environ["PYTHONPATH"] = before


def read(folder: Path, *overrides: str, **changes: Any) -> Pipeline:
    return read_pipeline(write(folder, **{**STAGES, **changes}), overrides)


def test_the_check_names_the_mistakes_of_every_stage_once_and_touches_nothing(folder: Path) -> None:
    shared = f"stages.second.run.folder={folder / 'out' / 'first'}"
    with pytest.raises(RecipeError) as caught:
        check_pipeline(read(folder, "stages.first.rollout.group_sise=3", "stages.second.algorithm=grop"))
    found = str(caught.value).splitlines()
    # The first stage is wrong, but its model is known: that of the second is no mistake, nor those of evaluations.
    assert found[0] == f"{folder / 'stages.yaml'}: 2 mistakes"
    assert found[1].startswith("  - stages.first.rollout.group_sise: unknown key (value 3); did you mean")
    assert found[2].startswith("  - stages.second.algorithm.name: unknown algorithm 'grop'; did you mean")
    with pytest.raises(RecipeError) as caught:
        check_pipeline(read(folder, "stages.again.data.eval=null", shared))
    assert "2 mistakes" in str(caught.value)
    assert "stages.again.data.eval: missing, so there is nothing to evaluate on; add it" in str(caught.value)
    assert f"stages.second.run.folder: {folder / 'out' / 'first'} is that of stage first too" in str(caught.value)
    assert not (folder / "out").exists()


def test_what_only_its_own_run_knows_is_not_measured_under_another_recipe(folder: Path) -> None:
    row = {"prompt": "say a", "chosen": "a", "rejected": "b", "letter": "a"}
    (folder / "pairs.jsonl").write_text((json.dumps(row) + "\n") * 9)
    data = {name: {"source": "file", "path": str(folder / "pairs.jsonl")} for name in ("train", "eval")}
    first = {"model": str(folder / "model"), "data": data, "optimizer": {"prompts_per_step": 2}, "run": {"steps": 1}}
    for algorithm in ("dpo", "reward_bradley_terry"):
        stages = {"first": {**first, "algorithm": algorithm}, "final": {"evaluate": "stage:first"}}
        sampled = write(folder, **stages, sampled={"evaluate": "stage:first", "extends": "recipe.yaml"})
        if algorithm == "dpo":
            check_pipeline(read_pipeline(sampled))
        else:
            with pytest.raises(RecipeError, match=r"stages\.sampled\.model\.path: 'stage:first' makes a reward model"):
                check_pipeline(read_pipeline(sampled))
        with pytest.raises(RecipeError, match=rf"stages\.final\.evaluate: 'stage:first' .* {algorithm} is measured"):
            check_pipeline(read_pipeline(write(folder, **stages), ["stages.final.data.max_prompt_tokens=9"]))


def test_checking_shows_rows_and_artefacts_without_torch(folder: Path) -> None:
    pipeline = read(folder)
    checked = check_pipeline(pipeline)
    assert {c.recipe.model.path for c in checked.values()} == {str(folder / "model")}
    assert checked["second"].recipe.rewards[0].settings == {"path": "stage:first"}
    assert graph(pipeline) == [
        "first -> second: model",
        "first -> second: rewards[0].settings.path",
        "second -> final: model.path",
        "first -> final: rewards[0].settings.path",
        "first -> again: model.path",
    ]
    code = (
        f"import sys; sys.argv = ['posttrain', 'check', {pipeline.source!r}, 'stages.second.rollout.group_size=5']\n"
        "from posttrain.cli import app\n"
        "try:\n    app()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "assert not {'torch', 'transformers', 'vllm'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for words in ("stage first", "algorithm grpo", "4 x 4 = 16 sequences", "4 x 5 = 20 sequences", *graph(pipeline)):
        assert words in done.stdout


@pytest.fixture(scope="module")
def finished(folder: Path) -> tuple[Path, str]:
    """A pipeline that was told to stop in its first stage and started again; and what it printed then."""
    path, first = write(folder, **STAGES), RunFolder(folder / "out" / "first")
    process = Forked("posttrain", "train", path, "--quiet")
    try:
        until = time.monotonic() + 300
        while len(first.checkpoints()) < 2:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.005)
    finally:
        # Only the pipeline is told: the stage's process must end with it, or the folder would still be locked.
        os.kill(process.pid, signal.SIGTERM)
        code = process.wait(120)
    assert code == 128 + signal.SIGTERM
    assert first.checkpoints()[-1] < STEPS
    assert lineage(folder)["first"]["status"] == "running"
    return folder, run("train", path, "--quiet").stdout


def lineage(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "out" / "pipeline.json").read_text())["stages"]
    return found


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def test_what_a_stage_made_is_what_the_next_one_starts_from(finished: tuple[Path, str]) -> None:
    out = finished[0] / "out"
    made = out / "first" / "checkpoints" / f"step-{STEPS:06d}"
    recipe = RunFolder(out / "second").recipe()
    assert recipe["model"]["path"] == recipe["rewards"][0]["settings"]["path"] == str(made / "policy")
    first, second = (json.loads((out / name / "summary.json").read_text()) for name in ("first", "second"))
    final, again = (json.loads((out / f"{name}.json").read_text()) for name in ("final", "again"))
    # Two evaluations of the same weights are the same.
    assert (first["accuracy_after"], first["greedy_after"]) == (second["accuracy_before"], second["greedy_before"])
    assert len({first["accuracy_before"], first["accuracy_after"], second["accuracy_after"]}) == 3
    assert (final["eval/accuracy"], final["eval/greedy"]) == (second["accuracy_after"], second["greedy_after"])
    assert (final["step"], final["eval/samples_per_problem"]) == (1, 2.0)
    assert (again["model"], again["eval/samples_per_problem"]) == (str(made / "policy"), 1.0)
    assert "eval/greedy" not in again


def test_a_stage_that_was_cut_off_goes_on_where_it_stopped(finished: tuple[Path, str]) -> None:
    folder, said = finished
    assert "continuing" in said
    assert [line["step"] for line in metrics(folder / "out" / "first")] == list(range(STEPS + 1))


def test_the_lineage_says_what_was_made_from_what(finished: tuple[Path, str]) -> None:
    folder, said = finished
    out, records = folder / "out", lineage(folder)
    assert list(records) == list(STAGES)
    taken = [
        {"stage": name, "step": step, "manifest": digest(out / f"{name}/checkpoints/step-{step:06d}/manifest.json")}
        for name, step in (("first", STEPS), ("second", 1))
    ]
    assert [records[name]["inputs"] for name in STAGES] == [[], taken[:1], taken[::-1], taken[:1]]
    for name, record in records.items():
        assert record["recipe"] == digest(out / f"{name}.yaml")
        assert record["status"] == "finished"
        assert record["seconds"] > 0
    assert [records[n]["folder"] for n in STAGES] == [str(out / "first"), str(out / "second"), str(out), str(out)]
    assert records["second"]["figures"] == json.loads((out / "second" / "summary.json").read_text())
    assert records["final"]["figures"] == json.loads((out / "final.json").read_text())
    table = said[said.rindex("stages") :]
    assert f"{records['second']['figures']['accuracy_after']:.4g}" in table
    for words in (*STAGES, "grpo", str(STEPS), "eval/accuracy"):
        assert words in table


def state(folder: Path) -> dict[str, int]:
    """When each file of the stages was last written, those of the pipeline itself left out."""
    files = [file for file in (folder / "out").rglob("*") if file.is_file() and not file.name.startswith("pipeline.")]
    return {str(file): file.stat().st_mtime_ns for file in files}


def test_a_finished_pipeline_does_nothing_more_and_says_so(finished: tuple[Path, str]) -> None:
    folder, _ = finished
    before, records = state(folder), lineage(folder)
    # How many checkpoints are kept changes no number of a run, and a dtype left open is what the run decided.
    same = ("stages.first.run.keep_checkpoints=2", "stages.first.hardware.dtype=auto")
    said = run("train", folder / "stages.yaml", "--quiet", *same).stdout
    assert said.count("finished, not run again") == 4
    assert (state(folder), lineage(folder)) == (before, records)
    (folder / "out" / "pipeline.json").unlink()
    run("train", folder / "stages.yaml", "--quiet")
    assert (state(folder), lineage(folder)) == (before, records)


@pytest.fixture
def kept(finished: tuple[Path, str], tmp_path: Path) -> Iterator[Path]:
    """The finished pipeline's folder, put back as it was after a test that breaks it."""
    folder = finished[0]
    shutil.copytree(folder / "out", tmp_path / "out")
    yield folder
    shutil.rmtree(folder / "out")
    shutil.copytree(tmp_path / "out", folder / "out")


def test_a_stage_made_from_what_has_changed_since_is_stale(kept: Path) -> None:
    manifest = kept / "out" / "first" / "checkpoints" / f"step-{STEPS:06d}" / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    before = state(kept)
    done = run("train", kept / "stages.yaml", "--quiet", "--force", check=False)
    assert done.returncode == 1
    for words in ("stage second is stale", "stage first (step 40)", "out/second", "out/final.json"):
        assert words in done.stderr, done.stderr
    # What was made from it is named too, and nothing else.
    assert "again.json" not in done.stderr
    assert state(kept) == before
    # Without them it is made anew, here from a model that is broken: the stage's own check says so.
    shutil.rmtree(kept / "out" / "second")
    (kept / "out" / "final.json").unlink()
    (manifest.parent / "policy" / "config.json").unlink()
    done = run("train", kept / "stages.yaml", "--quiet", check=False)
    assert done.returncode == 1
    for words in ("model.path", "holds no config.json", "stage second ended with exit code 1"):
        assert words in done.stderr, done.stderr
    record = lineage(kept)["second"]
    assert (record["status"], record["inputs"][0]["manifest"]) == ("failed", digest(manifest))


def test_figures_of_another_artefact_or_recipe_are_refused(kept: Path) -> None:
    done = run("train", kept / "stages.yaml", "--quiet", "stages.again.evaluation.samples=3", check=False)
    assert done.returncode == 1
    for words in ("stage again", "evaluation.samples: 1 -> 3", f"remove {kept}", "again.json"):
        assert words in done.stderr
    manifest = kept / "out" / "second" / "checkpoints" / "step-000001" / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    done = run("train", kept / "stages.yaml", "--quiet", check=False)
    assert done.returncode == 1
    assert "stage final is stale: it was made from stage second (step 1)" in done.stderr


def test_a_changed_recipe_of_a_finished_stage_is_refused_by_its_keys(kept: Path) -> None:
    before, change = state(kept), "stages.first.optimizer.learning_rate=0.5"
    done = run("train", kept / "stages.yaml", "--quiet", change, check=False)
    assert done.returncode == 1
    for words in ("stage first", str(kept / "out" / "first"), "optimizer.learning_rate: 0.0003 -> 0.5", "--force"):
        assert words in done.stderr
    assert state(kept) == before


def test_two_pipelines_cannot_write_the_same_folder_at_one_time(folder: Path, tmp_path: Path) -> None:
    path = write(folder, **STAGES)
    with exclusive(tmp_path / "pipeline.lock"):
        done = run("train", path, "--quiet", f"folder={tmp_path}", check=False)
    assert f"in use by another run (pid {os.getpid()})" in done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["pipeline.lock"]
