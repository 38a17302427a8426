"""Engines apart that are killed at random moments of a whole run: what is learnt is what the calm run learns."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from posttrain.metrics import RunFolder
from tests.forked import Forked
from tests.forked import run as run_forked
from tests.rollout.plain_engine import UNFILLED
from tests.runs import metrics, prepare, same_figures
from tests.saved import equal, saved

STEPS, PROMPTS, SIZE, KILLS = 6, 4, 4, 4
VLLM_KILLS = 2


def recipe(folder: Path) -> Path:
    return prepare(
        folder,
        data={"train": {"source": "file", "path": str(folder / "train.jsonl")}},
        rollout={"engine": "transformers", "group_size": SIZE, "max_tokens": 8},
        optimizer={"learning_rate": 1e-2, "prompts_per_step": PROMPTS},
        # In every step what the engine says is compared with what its weights say.
        run={"steps": STEPS, "save_every": STEPS, "parity_every": 1},
        hardware={"sampler": {"max_sequences": 4}},
    )


def trained(folder: Path, seed: int, kills: int) -> dict[str, Any]:
    run = Forked("tests.loops.lost_engines", recipe(folder), str(seed), str(kills))
    try:
        code = run.wait(900)
    finally:
        run.kill()
    out, complaints = run.said()
    assert code == 0, complaints[-4000:]
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calm")
    assert trained(folder, 0, 0) == {"phases": [], "restarts": 0}
    return folder / "run"


@pytest.mark.parametrize("seed", [1, *(pytest.param(seed, marks=pytest.mark.prove) for seed in range(2, 6))])
def test_killed_at_random_moments_no_prompt_is_lost_or_learnt_twice(calm: Path, tmp_path: Path, seed: int) -> None:
    found = trained(tmp_path, seed, KILLS)
    assert len(found["phases"]) == found["restarts"] == KILLS
    run, whole = RunFolder(tmp_path / "run"), RunFolder(calm)
    assert run.rollout_steps() == list(range(1, STEPS + 1))
    for step in run.rollout_steps():
        rows = run.read_rollouts("step", step)
        assert rows == whole.read_rollouts("step", step)
        assert {v for row in rows for v, said in zip(row["versions"], row["mask"], strict=True) if said} == {step - 1}
        assert len({(row["group"], row["index"]) for row in rows}) == len(rows) == PROMPTS * SIZE
    equal(calm / f"checkpoints/step-{STEPS:06}", tmp_path / f"run/checkpoints/step-{STEPS:06}")
    lines = metrics(tmp_path / "run")
    assert sum(line.pop("engine/restarts", 0) for line in lines) == KILLS
    assert sum(line.pop("engine/lost", 0) for line in lines) <= KILLS
    assert lines == metrics(calm)
    # A new process has weights from its folder, and is not asked for them.
    assert UNFILLED not in (tmp_path / "run/servers/server-0.log").read_text()


def through_vllm(folder: Path) -> Path:
    sampler = {"placement": "servers", "memory": 0.1, "max_sequences": 1, "servers": {"restarts": VLLM_KILLS}}
    return prepare(
        folder,
        rollout={"engine": "vllm"},
        run={"steps": STEPS, "save_every": STEPS, "parity_every": 1},
        hardware={"sampler": sampler},
    )


def processes(run: Forked) -> list[psutil.Process]:
    """Of the server that a run has started: the one that listens, and the one that holds the weights."""
    found = psutil.Process(run.pid).children(recursive=True)
    return [p for p in found if any(word in " ".join(p.cmdline()) for word in ("rollout.server.engine", "EngineCore"))]


@pytest.mark.prove
@pytest.mark.vllm
def test_the_real_engine_killed_at_random_moments_leaves_the_same_weights(tmp_path: Path) -> None:
    pytest.importorskip("vllm")
    (tmp_path / "calm").mkdir()
    run_forked("train", through_vllm(tmp_path / "calm"), "--quiet")
    path, dice, killed = through_vllm(tmp_path), random.Random(7), 0
    run = Forked("posttrain", "train", path, "--quiet")
    lines = tmp_path / "run/metrics.jsonl"
    try:
        for after in range(1, STEPS, STEPS // VLLM_KILLS):
            while not lines.exists() or len(lines.read_text().splitlines()) <= after:
                assert run.poll() is None, run.said()
                time.sleep(0.02)
            time.sleep(dice.uniform(0.0, 0.5))
            dice.choice(processes(run)).kill()
            killed += 1
        assert run.wait(600) == 0, run.said()
    finally:
        run.kill()
    found, calm = metrics(tmp_path / "run"), metrics(tmp_path / "calm/run")
    assert sum(line.get("engine/restarts", 0) for line in found) == killed == VLLM_KILLS
    same_figures(calm, found, 1e-4)
    whole, again = (saved(f / f"run/checkpoints/step-{STEPS:06}")[1] for f in (tmp_path / "calm", tmp_path))
    for name, tensor in whole.items():
        if name.startswith("trained/"):
            assert float((tensor - again[name]).norm()) <= 1e-5 * float(tensor.norm()), name
    for step in range(1, STEPS + 1):
        both = [RunFolder(f / "run").read_rollouts("step", step) for f in (tmp_path / "calm", tmp_path)]
        calm_rows, rows = ([(row["group"], row["index"], row["tokens"]) for row in each] for each in both)
        assert rows == calm_rows
