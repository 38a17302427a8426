"""Sinks: what was written is what is read back, and a resumed run draws one curve."""

import importlib.util
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console as Terminal

from posttrain.errors import PosttrainError
from posttrain.metrics import RunFolder, open_sinks
from posttrain.metrics.sinks import MODULES, Console, TensorBoard
from posttrain.recipe import dump, parse

VALUES = {"reward/mean": 0.51234, "rollout/length_mean": 23.4, "rollout/tokens_per_second": 812.3}
EVALUATION = {"eval/accuracy": 0.4121, "eval/accuracy_low": 0.38, "eval/accuracy_high": 0.441, "eval/greedy": 0.43}


@pytest.fixture
def recipe(tmp_path):
    task = {"source": "reasoning_gym", "task": "basic_arithmetic"}
    run = {"steps": 4, "folder": str(tmp_path / "run")}
    return parse(
        {"model": "m", "algorithm": "grpo", "data": {"train": task}, "rewards": [{"verifier": "a.b:C"}], "run": run}
    )


@pytest.fixture
def folder(tmp_path, recipe):
    made = RunFolder(tmp_path / "run")
    made.open(dump(recipe))
    return made


def scalars(directory):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    read = event_accumulator.EventAccumulator(str(directory), size_guidance={"scalars": 0})
    read.Reload()
    return {tag: [(event.step, event.value) for event in read.Scalars(tag)] for tag in read.Tags()["scalars"]}


def test_tensorboard_reads_back_every_value(tmp_path):
    pytest.importorskip("tensorboard")
    rng = np.random.default_rng(0)
    written = {f"part/m{i}": rng.normal(0, 10.0**i, size=30).tolist() for i in range(-3, 4)}
    sink = TensorBoard(tmp_path)
    for step in range(30):
        sink.write(step, {name: values[step] for name, values in written.items()})
    sink.close()
    assert scalars(tmp_path) == {
        name: [(step, float(np.float32(value))) for step, value in enumerate(values)]
        for name, values in written.items()
    }


def test_a_resumed_run_draws_one_curve(folder, recipe):
    pytest.importorskip("tensorboard")
    for upto, value in ((3, 1.0), (4, 2.0)):
        console, sink = open_sinks(["tensorboard"], folder, recipe)
        start = (folder.checkpoints() or [-1])[-1] + 1
        for step in range(start, upto + 1):
            sink.write(step, {"x": value})
        sink.close()
        console.close()
        folder.checkpoint_path(1).mkdir(exist_ok=True)
        (folder.checkpoint_path(1) / "manifest.json").write_text("{}")
    assert scalars(folder.path / "tensorboard") == {"x": [(0, 1.0), (1, 1.0), (2, 2.0), (3, 2.0), (4, 2.0)]}


def test_without_a_terminal_each_step_is_a_line_and_each_evaluation_another():
    out = io.StringIO()
    sink = Console(20, terminal=Terminal(file=out, width=40))
    sink.write(0, EVALUATION)
    sink.write(1, VALUES)
    sink.write(2, {**VALUES, "reward/mean": 0.75})
    sink.write(20, {"reward/mean": 1.0, "eval/accuracy": 0.9})
    sink.write(20, {"eval/greedy": 0.25})
    sink.close()
    lines = out.getvalue().splitlines()
    assert lines[0] == "evaluation at step 0: accuracy 0.412 [0.380, 0.441], greedy 0.430"
    assert lines[1] == "step 1/20  reward 0.512  length 23  812 tokens/s  0:00:00 left"
    assert lines[2].startswith("step 2/20  reward 0.750  length 23  812 tokens/s  ")
    assert lines[3:] == [
        "step 20/20  reward 1.000  0:00:00 left",
        "evaluation at step 20: accuracy 0.900",
        "step 20/20  0:00:00 left",
        "evaluation at step 20: greedy 0.250",
    ]


def test_on_a_terminal_a_bar_shows_the_newest_numbers_and_evaluations_stay_above_it():
    out = io.StringIO()
    sink = Console(20, terminal=Terminal(file=out, width=120, force_terminal=True, color_system=None))
    sink.write(1, VALUES)
    sink.write(2, {**VALUES, **EVALUATION})
    sink.close()
    shown = out.getvalue()
    assert "step 1/20" in shown
    assert "step 2/20" in shown
    assert "reward 0.512 length 23 812 tokens/s" in shown
    assert shown.count("evaluation at step 2: accuracy 0.412 [0.380, 0.441], greedy 0.430\n") == 1


@pytest.mark.parametrize("name", [n for n, module in MODULES.items() if importlib.util.find_spec(module) is None])
def test_a_sink_that_is_not_installed_is_named_with_its_extra(folder, recipe, name):
    with pytest.raises(PosttrainError, match=rf"{name} is not installed: pip install 'posttrain\[{name}\]'"):
        open_sinks(["tensorboard", name], folder, recipe)
    assert not (folder.path / "tensorboard").exists()


TRACKED = """
import sys
from posttrain.metrics import RunFolder, open_sinks
from posttrain.recipe import load
folder = RunFolder(sys.argv[2])
for steps in ((0, 1), (2, 3)):
    console, sink = open_sinks([sys.argv[1]], folder, load(sys.argv[2] + "/recipe.yaml"))
    for step in steps:
        sink.write(step, {"reward/mean": step / 8})
    sink.close()
"""


def aside(folder, program, *arguments):
    """Run a program that sees none of the user's tracking settings and writes nowhere but the folder."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "TRACKIO"))}
    ours = {"WANDB_SILENT": "true", "TRACKIO_DIR": str(folder.path / "tracked"), "HOME": str(folder.path)}
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, env=kept | ours, capture_output=True, text=True, check=True).stdout


def test_wandb_without_a_key_stays_offline_and_resumes_one_run(folder):
    pytest.importorskip("wandb")
    aside(folder, TRACKED, "wandb", str(folder.path))
    identity = (folder.path / "tracking_id").read_text().strip()
    files = sorted((folder.path / "wandb").glob("offline-run-*/run-*.wandb"))
    assert files
    assert {file.stem for file in files} == {f"run-{identity}"}


def test_trackio_keeps_one_run_on_this_machine(folder):
    pytest.importorskip("trackio")
    aside(folder, TRACKED, "trackio", str(folder.path))
    run = f"run-{(folder.path / 'tracking_id').read_text().strip()}"
    question = ["get", "metric", "--project", "posttrain", "--run", run, "--metric", "reward/mean", "--json"]
    told = json.loads(aside(folder, "from trackio.cli import main; main()", *question))
    assert [(row["step"], row["value"]) for row in told["values"]] == [(0, 0.0), (1, 0.125), (2, 0.25), (3, 0.375)]
