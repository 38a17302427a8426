"""The same recipe on two ranks: the same run, whatever the strategy; a rank that dies or a signal ends it in order."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from posttrain.metrics import RunFolder
from tests.forked import run as run_forked
from tests.runs import ROOT, command, metrics, prepare, run, same_figures

STEPS = {"steps": 4, "save_every": 2}


def recipe(folder: Path, strategy: str, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    learner = {"strategy": strategy, "processes": 1 if strategy == "single" else 2, "micro_batch_tokens": 256}
    hardware = {"learner": learner, "patience": 120.0}
    return prepare(folder, **{"hardware": hardware, "run": STEPS, **changes})


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alone")
    run_forked("train", recipe(folder, "single"), "--quiet")
    return folder


@pytest.mark.parametrize("strategy", [pytest.param("ddp", marks=pytest.mark.prove), "fsdp2", "zero3"])
def test_a_run_on_two_ranks_is_the_run_on_one(alone: Path, tmp_path: Path, strategy: str) -> None:
    said = run("train", recipe(tmp_path, strategy), "--quiet").stdout
    assert "2 ranks" in said
    assert said.count("starting the learner") == 1
    one, two = metrics(alone / "run"), metrics(tmp_path / "run")
    assert [line.keys() for line in one] == [line.keys() for line in two]
    for a, b in zip(one, two, strict=True):
        assert b == pytest.approx(a, rel=1e-3, abs=1e-4)
    # The first step's responses are drawn from the same weights, the later ones from weights a rounding apart.
    for name in ("eval/accuracy", "reward/mean", "rollout/length_mean"):
        assert [line.get(name) for line in two] == pytest.approx([line.get(name) for line in one])
    assert RunFolder(tmp_path / "run").checkpoints() == [2, 4]


@pytest.mark.parametrize("strategy", ["fsdp2", *(pytest.param(s, marks=pytest.mark.prove) for s in ("zero2", "zero3"))])
def test_a_critic_ahead_of_the_policy_and_a_moving_reference_are_the_same_on_two_ranks(
    tmp_path: Path, strategy: str
) -> None:
    changes = {
        "algorithm": {"name": "ppo", "kl": "in_loss", "kl_coefficient": 0.1},
        "critic": {"learning_rate": 1e-2, "warmup_steps": 1},
        "reference": {"refresh": "average", "decay": 0.5},
    }
    run_forked("train", recipe(tmp_path / "one", "single", **changes), "--quiet")
    run("train", recipe(tmp_path / "several", strategy, **changes), "--quiet")
    one, several = metrics(tmp_path / "one/run"), metrics(tmp_path / "several/run")
    assert [line.keys() for line in one] == [line.keys() for line in several]
    for a, b in zip(one, several, strict=True):
        assert b == pytest.approx(a, rel=1e-3, abs=1e-4)


def test_another_number_of_ranks_goes_on_where_one_process_stopped(alone: Path, tmp_path: Path) -> None:
    run_forked("train", recipe(tmp_path, "single", run={"steps": 2, "save_every": 2}), "--quiet")
    assert "continuing" in run("train", recipe(tmp_path, "fsdp2"), "--quiet").stdout
    one, two = metrics(alone / "run"), metrics(tmp_path / "run")
    assert two[-1] == pytest.approx(one[-1], rel=1e-3, abs=1e-4)


def started(path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command("train", path, "--quiet"), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def until_steps(process: subprocess.Popen[str], folder: Path, count: int) -> None:
    file, until = folder / "run" / "metrics.jsonl", time.monotonic() + 300
    while not file.exists() or len(file.read_text().splitlines()) < count:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.05)


def ranks_of(process: subprocess.Popen[str]) -> dict[int, int]:
    """Process ids of the ranks, by rank."""
    out = {}
    for child in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split():
        environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
        out |= {int(e.partition(b"=")[2]): int(child) for e in environment if e.startswith(b"RANK=")}
    return out


def test_a_rank_that_is_killed_ends_the_run_by_its_name_and_phase(tmp_path: Path) -> None:
    process = started(recipe(tmp_path, "ddp", run={"steps": 500, "save_every": 2}))
    try:
        until_steps(process, tmp_path, 4)
        ranks = ranks_of(process)
        os.kill(ranks[1], signal.SIGKILL)
        at = time.monotonic()
        said = process.communicate(timeout=60)[0]
    finally:
        process.kill()
    assert time.monotonic() - at < 45
    assert process.returncode == 1
    assert re.search(r"rank 1 was killed by SIGKILL while (learning|generating|publishing|saving)", said), said
    assert not [pid for pid in ranks.values() if Path(f"/proc/{pid}").exists()]
    # What was saved before is whole: the run goes on from it.
    assert RunFolder(tmp_path / "run").checkpoints()


def test_sigterm_saves_the_step_and_ends_every_rank(tmp_path: Path) -> None:
    process = started(recipe(tmp_path, "ddp", run={"steps": 500, "save_every": 0}))
    try:
        until_steps(process, tmp_path, 2)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=120)[0]
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM, said
    (step,) = RunFolder(tmp_path / "run").checkpoints()
    assert f"step {step} is saved" in said
    assert metrics(tmp_path / "run")[-1]["step"] == step


def test_torchrun_starts_the_same_run(alone: Path, tmp_path: Path) -> None:
    path = recipe(tmp_path, "fsdp2")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m"]
    done = subprocess.run(
        [*torchrun, "posttrain", "train", str(path), "--quiet"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    same_figures(metrics(alone / "run"), metrics(tmp_path / "run"), 1e-3)


def test_a_world_that_is_not_the_recipes_is_refused(tmp_path: Path) -> None:
    done = run_forked("train", recipe(tmp_path, "single", hardware={"learner": {"processes": 2}}), check=False)
    assert done.returncode == 1
    assert "hardware.learner.processes: 2" in done.stderr
    assert "ddp" in done.stderr


def through_vllm(folder: Path, strategy: str, span: int) -> Path:
    return recipe(
        folder,
        strategy,
        rollout={"engine": "vllm"},
        hardware={
            "learner": {"strategy": strategy, "processes": 1 if strategy == "single" else 2},
            "sampler": {"tensor_parallel": span, "memory": 0.1},
            "patience": 240.0,
        },
    )


@pytest.fixture(scope="module")
def engine_alone(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("engine")
    run_forked("train", through_vllm(folder, "single", 1), "--quiet")
    return metrics(folder / "run")


@pytest.mark.parametrize(
    ("strategy", "span"),
    [("fsdp2", 2), *(pytest.param(s, n, marks=pytest.mark.prove) for s, n in (("fsdp2", 1), ("ddp", 2), ("ddp", 1)))],
)
def test_an_engine_on_each_rank_or_over_all_of_them_is_the_engine_alone(
    engine_alone: list[dict[str, Any]], tmp_path: Path, strategy: str, span: int
) -> None:
    run("train", through_vllm(tmp_path, strategy, span), "--quiet")
    found = metrics(tmp_path / "run")
    same_figures(engine_alone, found, 2e-3)
    # One process evaluates: an engine that spanned the ranks fits into it.
    done = json.loads(run("evaluate", tmp_path / "run", "--json").stdout)
    assert done["eval/accuracy"] == pytest.approx(found[-1]["eval/accuracy"], abs=2e-3)


@pytest.mark.prove
@pytest.mark.parametrize("strategy", ["single", "fsdp2"])
def test_servers_apart_are_the_engine_of_the_process_that_learns(
    engine_alone: list[dict[str, Any]], tmp_path: Path, strategy: str
) -> None:
    path = recipe(
        tmp_path,
        strategy,
        rollout={"engine": "vllm"},
        hardware={
            "learner": {"strategy": strategy, "processes": 1 if strategy == "single" else 2},
            "sampler": {"placement": "servers", "memory": 0.1},
        },
    )
    run("train", path, "--quiet")
    same_figures(engine_alone, metrics(tmp_path / "run"), 2e-3)
    assert (tmp_path / "run" / "servers").is_dir()
