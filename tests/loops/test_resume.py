"""A resumed run is the same run, bit for bit, wherever it was killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from posttrain.errors import PosttrainError
from posttrain.learner.checkpoint import restore, write_checkpoint
from posttrain.metrics import RunFolder
from tests.forked import Forked, run
from tests.runs import metrics, prepare
from tests.runs import run as run_anew
from tests.saved import equal
from tests.tiny import tiny_folder, tiny_learner


def start(path: Path, *overrides: str) -> Forked:
    return Forked("posttrain", "train", path, *overrides)


def kill_when(process: Forked | subprocess.Popen[bytes], ready: object, limit: float = 120, wait: float = 0.0) -> None:
    """SIGKILL `wait` seconds after `ready()`; the run must not end before."""
    until = time.monotonic() + limit
    while not ready():
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < until
        time.sleep(0.005)
    time.sleep(wait)
    assert process.poll() is None, "the run ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


def lines(folder: Path) -> int:
    file = folder / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


def same(one: Path, other: Path, step: int) -> None:
    """Metrics, consumed prompts, every token, weights, optimiser and data position are equal."""
    assert metrics(one) == metrics(other)
    for file in sorted((one / "rollouts").iterdir()):
        assert file.read_bytes() == (other / "rollouts" / file.name).read_bytes(), file.name
    assert len(list((one / "rollouts").iterdir())) == len(list((other / "rollouts").iterdir()))
    name = f"checkpoints/step-{step:06d}"
    assert (one / name / "state.json").read_text() == (other / name / "state.json").read_text()
    weights = "policy/model.safetensors"
    assert (one / name / weights).read_bytes() == (other / name / weights).read_bytes()
    equal(one / name, other / name)
    if (one / name / "critic.pt").exists():
        equal(one / name, other / name, "critic")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six steps at once."""
    folder = tmp_path_factory.mktemp("whole")
    run_anew("train", prepare(folder))
    return folder / "run"


def test_the_same_run_twice_has_the_same_numbers(whole: Path, tmp_path: Path) -> None:
    """In another interpreter, with its own seed of hashes."""
    run_anew("train", prepare(tmp_path))
    same(whole, tmp_path / "run", 6)


def test_three_steps_a_kill_and_three_more_are_six_steps(whole: Path, tmp_path: Path) -> None:
    path = prepare(tmp_path)
    # Killed after the fourth step is on disk, so that a step beyond the checkpoint has to be undone and done again.
    process = start(path, "run.steps=6")
    kill_when(process, lambda: lines(tmp_path / "run") >= 5)
    assert RunFolder(tmp_path / "run").checkpoints() == [3]
    run("train", path)
    same(whole, tmp_path / "run", 6)


def test_killed_before_the_first_checkpoint_it_starts_again(whole: Path, tmp_path: Path) -> None:
    path = prepare(tmp_path)
    kill_when(start(path), lambda: lines(tmp_path / "run") >= 2)
    run("train", path)
    same(whole, tmp_path / "run", 6)


def test_killed_at_random_moments_while_it_writes_a_checkpoint_every_step(tmp_path: Path) -> None:
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    calm.mkdir()
    rough.mkdir()
    long = {"run": {"steps": 40, "save_every": 1, "keep_checkpoints": 3}}
    run("train", prepare(calm, **long))
    path, chance = prepare(rough, **long), random.Random(0)
    for _ in range(4):
        process, target = start(path), lines(rough / "run") + 4
        kill_when(process, lambda target=target: lines(rough / "run") > target, wait=chance.uniform(0.0, 0.15))
    run("train", path)
    same(calm / "run", rough / "run", 40)


def test_a_finished_run_does_nothing_more_and_says_the_same(whole: Path) -> None:
    before = (whole / "metrics.jsonl").read_bytes()
    summary = json.loads((whole / "summary.json").read_text())
    run("train", whole.parent / "recipe.yaml")
    assert (whole / "metrics.jsonl").read_bytes() == before
    again = json.loads((whole / "summary.json").read_text())
    assert {**again, "seconds": 0} == {**summary, "seconds": 0}


def test_more_steps_go_on_from_where_it_ended(whole: Path, tmp_path: Path) -> None:
    path = prepare(tmp_path)
    run("train", path, "run.steps=3")
    run("train", path, "run.steps=6")
    # The evaluation after step 3 was the shorter run's last; apart from it the runs agree.
    learnt = [{k: v for k, v in line.items() if not k.startswith("eval/")} for line in metrics(tmp_path / "run")]
    assert learnt == [{k: v for k, v in line.items() if not k.startswith("eval/")} for line in metrics(whole)]


class Dies:
    """A learner whose save is cut off after the policy was written."""

    version = 9

    def save(self, folder: Path) -> None:
        (folder / "policy").mkdir()
        (folder / "policy" / "half").write_text("half")
        raise SystemExit


def test_a_checkpoint_that_was_cut_off_is_not_one(tmp_path: Path) -> None:
    learner = tiny_learner(tiny_folder(tmp_path / "model"))
    folder = RunFolder(tmp_path / "run")
    (folder.path / "checkpoints").mkdir(parents=True)
    write_checkpoint(folder, 1, learner, {"step": 1}, keep=None)
    with pytest.raises(SystemExit):
        write_checkpoint(folder, 2, Dies(), {"step": 2}, keep=None)
    assert folder.checkpoints() == [1]
    assert restore(folder.checkpoint_path(1), learner) == {"step": 1}
    write_checkpoint(folder, 2, learner, {"step": 2}, keep=1)
    assert folder.checkpoints() == [2]
    assert not list((folder.path / "checkpoints").glob(".writing*"))


def test_a_checkpoint_whose_files_changed_is_refused_by_name(tmp_path: Path) -> None:
    learner = tiny_learner(tiny_folder(tmp_path / "model"))
    folder = RunFolder(tmp_path / "run")
    (folder.path / "checkpoints").mkdir(parents=True)
    path = write_checkpoint(folder, 1, learner, {}, keep=None)
    with (path / "learner.pt").open("r+b") as stream:
        stream.seek(300)
        stream.write(b"xx")
    with pytest.raises(PosttrainError, match=r"learner\.pt"):
        restore(path, learner)


def test_two_checkpoints_hold_two_different_policies_and_each_is_the_live_one(whole: Path) -> None:
    policies = [whole / f"checkpoints/step-{step:06d}/policy/model.safetensors" for step in (3, 6)]
    assert policies[0].read_bytes() != policies[1].read_bytes()


@pytest.mark.vllm
def test_three_steps_a_kill_and_three_more_are_six_steps_through_vllm(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    through = {
        "rollout": {"engine": "vllm"},
        "hardware": {"sampler": {"memory": 0.05}, "device": "cpu", "dtype": "float32"},
    }
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    calm.mkdir()
    rough.mkdir()
    run("train", prepare(calm, **through))
    path = prepare(rough, **through)
    kill_when(start(path), lambda: lines(rough / "run") >= 5)
    run("train", path)
    same(calm / "run", rough / "run", 6)
