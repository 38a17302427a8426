"""What a run says of its own policy is what `posttrain evaluate` says of its checkpoint, item by item."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from posttrain.metrics.results import Results, read, result_steps, results_path
from tests.forked import run
from tests.runs import prepare

STEPS = {"steps": 4, "save_every": 2, "evaluate_every": 2}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four steps, evaluated every two."""
    folder = tmp_path_factory.mktemp("made")
    path = prepare(folder)
    tree = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**tree, "run": {**tree["run"], **STEPS}}))
    run("train", path, "--quiet")
    return folder


def verdicts(results: Results) -> list[object]:
    return [(item.problem, s.completion, s.score, s.status, s.answer) for item in results.items for s in item.samples]


def test_every_evaluation_of_a_run_is_written_down(made: Path) -> None:
    assert result_steps(made / "run") == [0, 2, 4]
    results = read(results_path(made / "run", 2))
    assert len(results.items) == 10
    assert all(len(item.samples) == 3 for item in results.items)
    assert results.header["step"] == 2
    assert results.header["algorithm"] == "grpo"
    assert results.header["verifiers"][0]["verifier"] == "tests.graders:letters"
    lines = [json.loads(line) for line in (made / "run" / "metrics.jsonl").read_text().splitlines()]
    scores = [s.score for item in results.items for s in item.sampled]
    assert lines[2]["eval/accuracy"] == pytest.approx(sum(s or 0.0 for s in scores) / 20)


def test_a_checkpoint_evaluated_afterwards_gives_the_same_file(made: Path) -> None:
    inside = results_path(made / "run", 4).read_bytes()
    found = json.loads(run("evaluate", made / "run", "--json").stdout)
    assert found["results"] == str(results_path(made / "run", 4))
    assert found["step"] == 4
    assert results_path(made / "run", 4).read_bytes() == inside
    last = json.loads((made / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert {n: v for n, v in found.items() if n.startswith("eval/")} == {
        n: v for n, v in last.items() if n.startswith("eval/") and not n.endswith("seconds")
    }


def test_the_model_as_it_comes_is_step_0_of_its_run(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "zero.jsonl"
    run("evaluate", made / "recipe.yaml", "--out", out)
    assert out.read_bytes() == results_path(made / "run", 0).read_bytes()


def test_a_recipe_without_an_algorithm_evaluates_and_does_not_train(made: Path, tmp_path: Path) -> None:
    tree = yaml.safe_load((made / "recipe.yaml").read_text())
    del tree["algorithm"], tree["data"]["train"], tree["optimizer"]
    tree["run"] = {"folder": str(tmp_path / "alone")}
    path = tmp_path / "alone.yaml"
    path.write_text(yaml.safe_dump(tree))
    run("evaluate", path)
    alone = read(results_path(tmp_path / "alone", 0))
    assert verdicts(alone) == verdicts(read(results_path(made / "run", 0)))
    refused = run("train", path, check=False)
    assert refused.returncode == 1
    assert "algorithm: missing, so nothing is trained" in refused.stderr


def test_another_evaluation_does_not_replace_the_one_of_a_run(made: Path, tmp_path: Path) -> None:
    before = results_path(made / "run", 4).read_bytes()
    refused = run("evaluate", made / "run", "evaluation.samples=3", check=False)
    assert refused.returncode == 1
    assert "holds another evaluation (sampling: " in refused.stderr
    assert results_path(made / "run", 4).read_bytes() == before
    run("evaluate", made / "run", "evaluation.samples=3", "--out", tmp_path / "three.jsonl")
    assert all(len(item.sampled) == 3 for item in read(tmp_path / "three.jsonl").items)


def test_a_run_that_goes_on_from_a_checkpoint_forgets_later_results(made: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(made / "run", copy)
    shutil.rmtree(copy / "checkpoints" / "step-000004")
    stale = results_path(copy, 3)
    shutil.copy(results_path(copy, 4), stale)
    run("train", made / "recipe.yaml", "--quiet", f"run.folder={copy}")
    assert result_steps(copy) == [0, 2, 4]
    again = read(results_path(copy, 4))
    assert verdicts(again) == verdicts(read(results_path(made / "run", 4)))
    assert again.header["run"] == str(copy)


def test_a_folder_with_results_alone_can_be_trained_into(tmp_path: Path) -> None:
    path = prepare(tmp_path)
    run("evaluate", path, "evaluation.samples=1")
    run("train", path, "--quiet", "run.steps=1", "evaluation.samples=1")
    assert result_steps(tmp_path / "run") == [0, 1]
