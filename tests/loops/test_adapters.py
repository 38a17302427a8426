"""A run whose adapter is published apart is the run whose adapter is merged, through the real vLLM."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.runs import metrics, prepare, run, same_figures
from tests.saved import saved

pytestmark = pytest.mark.vllm
pytest.importorskip("vllm")

RANK = 4
MODULES = {
    "q": (64, 64),
    "k": (64, 32),
    "v": (64, 32),
    "o": (64, 64),
    "gate": (64, 96),
    "up": (64, 96),
    "down": (96, 64),
}
"""In and out of each projection of the tiny model."""
ADAPTER = 2 * 4 * RANK * sum(map(sum, MODULES.values()))
"""Bytes of an adapter in fp32 beside two layers."""


def recipe(folder: Path, adapters: str, strategy: str = "single", span: int = 1) -> Path:
    folder.mkdir()
    learner = {"strategy": strategy, "processes": 1 if strategy == "single" else 2}
    return prepare(
        folder,
        model={"path": str(folder / "model"), "lora": {"rank": RANK, "alpha": 12.0}},
        rollout={"engine": "vllm"},
        hardware={"learner": learner, "sampler": {"adapters": adapters, "memory": 0.1, "tensor_parallel": span}},
        run={"steps": 3, "save_every": 3},
    )


def trained(folder: Path) -> dict[str, Any]:
    _, tensors = saved(folder / "run/checkpoints/step-000003")
    return {name: tensor for name, tensor in tensors.items() if name.startswith("trained/")}


def sent(folder: Path) -> set[float]:
    """Bytes of a publication, as every step's line has them."""
    return {json.loads(line)["sync/bytes"] for line in (folder / "run/metrics.jsonl").read_text().splitlines()}


@pytest.fixture(scope="module")
def merged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "merged"
    said = run("train", recipe(folder, "auto"), "--quiet").stdout
    assert "adapter apart" not in said
    assert "half the speed" in said
    return folder


@pytest.mark.parametrize(
    ("adapters", "strategy", "span"),
    [
        ("apart", "single", 1),
        *(pytest.param("apart", s, n, marks=pytest.mark.prove) for s, n in (("fsdp2", 2), ("ddp", 1))),
    ],
)
def test_three_steps_teach_the_same_weights(
    merged: Path, tmp_path: Path, adapters: str, strategy: str, span: int
) -> None:
    folder = tmp_path / "apart"
    said = run("train", recipe(folder, adapters, strategy, span), "--quiet").stdout
    assert f"weights: the adapter apart, {ADAPTER:,} bytes a version" in said
    one, two = metrics(merged / "run"), metrics(folder / "run")
    assert sent(folder) == {ADAPTER}
    assert min(sent(merged)) > 4 * ADAPTER
    same_figures(one, two, 1e-4)
    theirs = trained(folder)
    assert len(theirs) == 2 * 2 * len(MODULES)
    for name, tensor in trained(merged).items():
        assert float((tensor - theirs[name]).abs().max()) <= 1e-5, name
        if name.endswith("lora_B.default.weight"):
            assert float(tensor.abs().max()) > 1e-3, name
    policies = [load_file(f / "run/checkpoints/step-000003/policy/model.safetensors") for f in (merged, folder)]
    assert policies[0].keys() == policies[1].keys()
    assert max(float((t - policies[1][n]).abs().max()) for n, t in policies[0].items()) <= 1e-5
