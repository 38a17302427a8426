"""An evaluation that was killed goes on where it was, and writes the bytes of one that was not."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from posttrain.metrics.results import results_path
from posttrain.metrics.unfinished import unfinished_path
from tests.forked import Forked, run
from tests.loops.test_resume import kill_when
from tests.runs import prepare
from tests.runs import run as run_anew

PARTS = 10
"""10 problems in parts of 2 x 3: 5 of two samples each, 5 of greedy ones."""
SMALL = {
    "rollout": {"max_tokens": 64},
    "evaluation": {"samples": 2},
    "hardware": {"sampler": {"max_sequences": 2}},
}


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe whose evaluation was never disturbed."""
    folder = tmp_path_factory.mktemp("calm")
    path = prepare(folder, **SMALL)
    run_anew("evaluate", path, "--out", folder / "calm.jsonl")
    assert not unfinished_path(folder / "calm.jsonl").exists()
    return folder


def parts(out: Path) -> int:
    """Whole lines behind the header."""
    file = unfinished_path(out)
    return file.read_bytes().count(b"\n") - 1 if file.exists() else 0


def drawn_more(out: Path, than: int) -> bool:
    return parts(out) > than


def start(*args: str | Path) -> Forked:
    return Forked("posttrain", "evaluate", *args)


def test_an_evaluation_that_was_killed_twice_writes_the_same_bytes(calm: Path) -> None:
    out = calm / "killed.jsonl"
    before = 0
    for _ in range(2):
        kill_when(start(calm / "recipe.yaml", "--out", out), partial(drawn_more, out, before))
        before = parts(out)
        assert not out.exists()
    assert 0 < before < PARTS
    kept = unfinished_path(out).read_bytes()
    done = run("evaluate", calm / "recipe.yaml", "--out", out)
    said = sum(len(json.loads(line)["rollouts"]) for line in kept.split(b"\n")[1 : before + 1])
    assert f"{said} responses were drawn before" in done.stderr
    assert out.read_bytes() == (calm / "calm.jsonl").read_bytes()
    assert not unfinished_path(out).exists()


def test_another_evaluation_refuses_what_was_not_finished_and_another_grader_reads_it(calm: Path) -> None:
    out = calm / "other.jsonl"
    kill_when(start(calm / "recipe.yaml", "--out", out), lambda: parts(out) > 0)
    kept = unfinished_path(out).read_bytes()
    refused = run("evaluate", calm / "recipe.yaml", "evaluation.temperature=0.5", "--out", out, check=False)
    assert refused.returncode == 1
    assert "holds responses of another evaluation that was not finished (sampling: " in refused.stderr
    assert unfinished_path(out).read_bytes()[: len(kept)] == kept
    done = run("evaluate", calm / "recipe.yaml", "rewards=[{verifier: 'tests.graders:half'}]", "--out", out)
    assert "responses were drawn before" in done.stderr
    assert {s["score"] for line in out.read_text().splitlines()[1:] for s in json.loads(line)["samples"]} == {0.5}


def test_other_weights_of_the_same_name_are_another_evaluation(tmp_path: Path) -> None:
    path = prepare(tmp_path, **SMALL)
    out = results_path(tmp_path / "run", 0)
    kill_when(start(path), lambda: parts(out) > 0)
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes())
    refused = run("evaluate", path, check=False)
    assert refused.returncode == 1
    assert "(weights: " in refused.stderr
