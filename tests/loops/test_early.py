"""A run that grades while it draws is the run that draws first, to the last bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.forked import run
from tests.runs import metrics, prepare
from tests.saved import equal

SMALL = {"device": "cpu", "dtype": "float32", "sampler": {"max_sequences": 8}}
"""Of 16 responses a step the engine draws 8 at a time, and knows of these before the others."""


@pytest.mark.parametrize(
    "changes",
    [
        {
            "rewards": [
                {"verifier": "tests.graders:breaks_on_j"},
                {"verifier": "tests.graders:trl_length", "weight": 0.1},
            ]
        },
        {
            "algorithm": {"name": "grpo", "selection": "dynamic"},
            "rollout": {"max_lag": 1},
            "run": {"steps": 4, "parity_every": 3},
        },
    ],
    ids=["failures, and a grader of groups", "drawn again, and one step ahead"],
)
def test_weights_metrics_and_every_roll_out_are_the_same(tmp_path: Path, changes: dict[str, Any]) -> None:
    run_block = {"steps": 3, "save_every": 0, **changes.get("run", {})}
    for name, early in (("early", True), ("after", False)):
        folder = tmp_path / name
        folder.mkdir()
        grading = {"workers": 2, "early": early, "max_failure_rate": 1.0}
        blocks = {**changes, "hardware": SMALL, "grading": grading, "run": run_block}
        run("train", prepare(folder, **blocks), "--quiet")
    one, other = tmp_path / "early" / "run", tmp_path / "after" / "run"
    assert metrics(one) == metrics(other)
    files = sorted(file.name for file in (one / "rollouts").iterdir())
    assert files == sorted(file.name for file in (other / "rollouts").iterdir())
    for name in files:
        assert (one / "rollouts" / name).read_bytes() == (other / "rollouts" / name).read_bytes(), name
    last = f"checkpoints/step-{run_block['steps']:06d}"
    equal(one / last, other / last)
    if "rewards" in changes:
        assert sum(line.get("verdict/error", 0.0) for line in metrics(one)) > 0
