"""The page of curves: right size, right numbers, and drawn from whatever was measured."""

import subprocess
import sys

import matplotlib.image
import pytest

from posttrain.metrics.curves import draw, series

FULL = [{"step": 0, "eval/accuracy": 0.2, "eval/accuracy_low": 0.1, "eval/accuracy_high": 0.3, "eval/greedy": 0.25}] + [
    {
        "step": step,
        "reward/mean": step / 10,
        "rollout/length_mean": 20.0 - step,
        "rollout/seconds": 3.0,
        "grade/seconds": 0.5,
        "learn/seconds": 2.0,
        "sync/seconds": 0.2,
        "parity/max_abs_gap": 10.0**-step,
    }
    for step in range(1, 6)
]


@pytest.mark.parametrize("metrics", [FULL, FULL[:1], FULL[1:2], [], [{"step": 1, "parity/max_abs_gap": 0.0}]])
def test_any_metrics_make_a_page_of_1200_by_800(tmp_path, metrics):
    draw(metrics, tmp_path / "curves.png", "a run")
    assert matplotlib.image.imread(tmp_path / "curves.png").shape[:2] == (800, 1200)
    assert [p.name for p in tmp_path.iterdir()] == ["curves.png"]


def test_a_measured_page_has_more_ink_than_an_empty_one(tmp_path):
    ink = []
    for name, metrics in (("full", FULL), ("empty", [])):
        draw(metrics, tmp_path / f"{name}.png", "a run")
        ink.append(int((matplotlib.image.imread(tmp_path / f"{name}.png")[..., :3].min(axis=-1) < 0.9).sum()))
    assert ink[0] > 5 * ink[1]


def test_a_series_leaves_out_steps_that_did_not_measure_it():
    assert series(FULL, "eval/greedy") == ([0], [0.25])
    assert series(FULL, "reward/mean") == ([1, 2, 3, 4, 5], [0.1, 0.2, 0.3, 0.4, 0.5])
    assert series(FULL, "nothing") == ([], [])


def test_importing_metrics_imports_neither_torch_nor_matplotlib():
    program = (
        "import sys, posttrain.metrics;from posttrain.metrics import curves, inspection, records;"
        "print(sorted({'torch', 'matplotlib', 'tensorboard', 'wandb'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout == "[]\n"
