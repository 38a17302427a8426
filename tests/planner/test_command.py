"""`posttrain plan` as it is used: fast, without torch, with advice that holds."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from posttrain.algorithms.choice import choose
from posttrain.build.check import check
from posttrain.errors import RecipeError
from posttrain.planner import Shape, advised, estimate, read_machine, this_machine
from posttrain.planner.advice import with_changes
from posttrain.planner.shape import Experts
from posttrain.recipe import load, parse
from posttrain.recipe.load import apply_overrides
from tests.runs import ROOT

SEVEN = Shape("llama", 4096, 32, 32, 8, 128, 14336, 128256, False, None, 8192)
ROUTED = Shape("qwen3_moe", 2048, 48, 32, 4, 128, 6144, 151936, False, Experts(128, 8, 768), 40960)
H200 = ROOT / "configs" / "machine" / "8xh200.yaml"


def recipe(*overrides: str, hardware: str = "8xh200") -> Any:
    tree = {
        "extends": [str(ROOT / "recipes" / "grpo-gsm8k.yaml"), str(ROOT / "configs" / "hardware" / f"{hardware}.yaml")]
    }
    from posttrain.recipe.load import extended

    return parse(apply_overrides(extended(tree, ROOT / "recipes" / "here.yaml", ()), list(overrides)))


def test_it_answers_in_two_seconds_of_computing_and_without_torch() -> None:
    code = (
        "import sys; from posttrain.cli import app\n"
        "try: app(['plan', 'recipes/grpo-arithmetic.yaml', '--json'])\n"
        "except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'transformers', 'vllm', 'gguf', 'datasets'} & set(sys.modules)\n"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 2.0
    found = json.loads(done.stdout)
    assert found["fits"]
    assert found["model"]["parameters"] == 134_515_008
    assert found["seconds"]["largest"].startswith("learning")
    assert [phase["name"] for phase in found["phases"]] == ["learning", "publishing", "generating"]


@pytest.mark.parametrize("hardware", ["8xh200", "64xh100"])
def test_hardware_and_machine_of_one_name_belong_together(hardware: str) -> None:
    machine = read_machine(ROOT / "configs" / "machine" / f"{hardware}.yaml")
    checked = check(recipe(hardware=hardware))
    assert checked.recipe.hardware.learner.processes == machine.devices
    for shape in (SEVEN, ROUTED):
        found = estimate(checked.recipe, checked.row, shape, machine)
        assert found.fits, found.misfits
        assert found.publishing is not None
        assert found.publishing.planned == found.publishing.bound


@pytest.mark.parametrize(
    "overrides",
    [
        ["hardware.learner.micro_batch_tokens=4194304", "hardware.learner.gradient_checkpointing=false"],
        ["hardware.sampler.memory=0.95"],
        ["hardware.sampler.memory=0.05"],
        ["hardware.learner.strategy=single", "hardware.learner.processes=1"],
        ["hardware.learner.processes=16"],
    ],
    ids=lambda o: o[0],
)
def test_what_is_advised_fits(overrides: list[str]) -> None:
    asked, machine, row = recipe(*overrides), read_machine(H200), choose("grpo", {})
    found = advised(asked, row, SEVEN, machine)
    assert not found.fits
    assert found.misfits
    assert found.advice
    for line in found.advice:
        words, _, _ = line.partition(": learning")
        keys = [word for word in words.split(" ") if "=" in word and not word.startswith("model.lora")]
        if "model.lora" in words:
            continue
        changes = dict(word.split("=") for word in keys)
        typed = {k: v if k.endswith("strategy") else json.loads(v) for k, v in changes.items()}
        assert estimate(with_changes(asked, typed), row, SEVEN, machine).fits, line


def test_a_model_that_is_too_large_for_the_machine_is_said_to_be() -> None:
    huge = Shape("llama", 16384, 126, 128, 8, 128, 53248, 128256, False, None, 8192)
    found = advised(recipe(), choose("grpo", {}), huge, read_machine(H200))
    assert not found.fits
    assert "smaller model" in found.advice[-1]


def test_terms_of_a_sharded_step_by_hand() -> None:
    found = estimate(recipe(), choose("grpo", {}), SEVEN, read_machine(H200))
    learning, publishing, generating = found.phases
    assert learning.memory["weights"] == SEVEN.parameters * 4 / 8
    assert learning.memory["moments"] == SEVEN.parameters * 8 / 8
    assert generating.memory["engine weights"] == SEVEN.parameters * 2
    # Keys and values of 32 layers, 8 heads of 128 numbers in 16 bits.
    assert found.engine is not None
    assert found.engine.of_token == 2 * 32 * 8 * 128 * 2
    assert publishing.moved == SEVEN.parameters * 2 * 7 / 8
    assert sum(found.seconds.values()) == pytest.approx(sum(s for p in found.phases for s in p.seconds.values()))
    assert found.seconds[found.largest] == max(found.seconds.values())


def test_a_pipeline_is_planned_stage_by_stage(capsys: pytest.CaptureFixture[str]) -> None:
    from posttrain.cli.plan import plan

    plan(ROOT / "recipes" / "pipeline-hh-cpu.yaml", as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert len(found) > 1
    assert all(name.startswith("stage ") and stage["fits"] for name, stage in found.items())


def test_a_gpu_that_is_not_described_is_asked_for() -> None:
    from posttrain.cli.plan import _default

    with pytest.raises(RecipeError, match="--machine FILE"):
        _default(recipe())


def test_this_machine_is_measured() -> None:
    machine = this_machine()
    assert machine.device == "cpu"
    assert machine.rates["float32"] > 1e8
    assert 1e8 < machine.bandwidth < 1e13
    assert machine.memory > 1e9


def test_every_mistake_of_a_description_is_named(tmp_path: Path) -> None:
    file = tmp_path / "m.yaml"
    file.write_text(H200.read_text().replace("memory: 141e9", "memory: much").replace("link:", "lnik:"))
    with pytest.raises(RecipeError) as caught:
        read_machine(file)
    text = str(caught.value)
    assert "lnik: unknown key" in text
    assert "link: missing" in text
    assert "memory: 'much'" in text
    with pytest.raises(RecipeError, match="no file"):
        read_machine(tmp_path / "none.yaml")


def test_an_offline_recipe_has_no_engine_where_nothing_is_sampled() -> None:
    asked = load(ROOT / "recipes" / "dpo-demo-cpu.yaml")
    checked = check(asked)
    found = estimate(asked, checked.row, Shape("llama", 576, 30, 9, 3, 64, 1536, 49152, True), this_machine())
    assert found.work.group == 2
    assert "learning" in [phase.name for phase in found.phases]
    assert found.phases[0].memory["references"] > 0
