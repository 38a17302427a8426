"""Bad input is named with its key, its value and a way out, before anything expensive starts."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from posttrain.build.check import check
from posttrain.build.pipeline import check_pipeline
from posttrain.errors import RecipeError
from posttrain.recipe import FileSource, Recipe, dump, load, parse
from posttrain.recipe.pipeline import is_pipeline, read_pipeline
from tests.forked import run
from tests.runs import ROOT, prepare, recipe

RECIPES = [path for path in sorted((ROOT / "recipes").glob("*.yaml")) if not is_pipeline(path)]
PIPELINES = [path for path in sorted((ROOT / "recipes").glob("*.yaml")) if is_pipeline(path)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("check")
    prepare(folder)
    return folder


def mistakes(folder: Path, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        check(load(folder / "recipe.yaml", overrides))
    return str(caught.value)


WRONG = {
    "rollout.group_sise=8": ["rollout.group_sise", "8", "did you mean 'group_size'"],
    "rollout.top_p=0.9": ["rollout.top_p", "0.9", "renormalise"],
    "model={path: owner/name, lora: {dropout: 0.1}}": ["model.lora.dropout", "0.1", "agree with the engine"],
    "optimiser.learning_rate=1": ["optimiser", "did you mean 'optimizer'"],
    "optimizer.learning_rate=-1": ["optimizer.learning_rate", "-1", "greater than 0"],
    "optimizer.learning_rate=fast": ["optimizer.learning_rate", "fast", "number"],
    "optimizer.minibatches=9": ["optimizer.minibatches is 9", "prompts_per_step = 4"],
    "algorithm=grop": ["algorithm.name", "grop", "did you mean 'grpo'"],
    "algorithm.clip_hi=0.3": ["algorithm.clip_hi", "0.3", "did you mean 'clip_high'"],
    "algorithm.clip_high=-1": ["algorithm.clip_high", "-1", "greater than 0"],
    "algorithm.reduction=mean": ["algorithm.reduction", "mean", "token_mean"],
    "algorithm.overlong_buffer=0.1": ["algorithm.overlong_buffer", "shaping: overlong"],
    "algorithm={name: grpo, kl: in_loss, kl_estimator: k1}": ["kl_estimator", "k1", "gradient", "k2, k3 or exact"],
    "algorithm={name: grpo, kl: in_reward, kl_estimator: exact}": ["kl_estimator", "exact", "kl: in_loss"],
    "algorithm={name: grpo, reduction: group_mean}": ["algorithm.reduction", "group_mean", "token_mean"],
    "algorithm={name: rebel, reduction: token_mean}": [
        "algorithm.reduction",
        "token_mean",
        "use reduction: group_mean",
    ],
    "algorithm={name: grpo, credit: gae}": ["algorithm.critic", "none", "needs values", "squared, hl_gauss"],
    "algorithm={name: grpo, truncated: bootstrap}": ["algorithm.critic", "truncated: bootstrap", "use critic: squared"],
    "algorithm={name: pass_at_k, pass_k: 4}": ["algorithm.pass_k", "4", "rollout.group_size"],
    "algorithm=gdpo": ["rewards", "1", "group_norm"],
    "algorithm=spo": ["rewards", "letters", "win rates", "(completion, other"],
    "algorithm=dvpo": ["critic.path", "missing", "critic: squared"],
    "critic.warmup_steps=2": ["critic", "grpo has no critic"],
    "reference.refresh=copy": ["reference", "grpo reads no reference"],
    "rollout.group_size=1": ["rollout.group_size", "1", "needs 2"],
    "model=nowhere/at/all": ["model.path", "nowhere/at/all"],
    "model=./nothing/here": ["model.path", "nothing/here", "does not exist"],
    "model=pkg://no_such_package/x.gguf": ["no_such_package", "not installed"],
    "data.train.source=web": ["data.train.source", "web", "reasoning_gym"],
    "data.train.path=nothing.jsonl": ["data.train", "nothing.jsonl"],
    "data.train={source: reasoning_gym, task: basic_arithmetik}": ["data.train", "basic_arithmetic"],
    "rewards=[{verifier: 'tests.graders:letterz'}]": ["rewards[0]", "letterz", "letters"],
    "rewards=[{verifier: 'no_module_here:f'}]": ["rewards[0]", "no_module_here"],
    "rewards=[{verifier: 'posttrain_verifiers.math:Math'}]": ["answer", "data.train", "letter", "columns"],
    "rewards=[]": ["rewards", "missing", "add a verifier"],
    "hardware.sampler.tensor_parallel=2": [
        "hardware.sampler.tensor_parallel",
        "2",
        "strategy: single",
        "use ddp or fsdp2",
    ],
    "hardware={sampler: {tensor_parallel: 3}, learner: {strategy: ddp, processes: 4}}": ["3 does not divide", "4"],
    "hardware={learner: {processes: 2}}": ["hardware.learner.processes: 2", "single", "use strategy ddp"],
    "hardware={learner: {strategy: ddp, offload: optimizer}}": ["offload: optimizer", "strategy ddp", "use zero1"],
    "hardware={learner: {strategy: zero2, offload: parameters}}": ["offload: parameters", "zero2", "use zero3"],
    "hardware={device: cpu, learner: {strategy: zero3, offload: optimizer}}": ["offload: optimizer", "device: cpu"],
    "hardware.sampler.placement=servers": ["hardware.sampler.placement: servers", "transformers", "use vllm"],
    "hardware.sampler.servers.replicas=2": ["hardware.sampler.servers", "nothing reads it", "placement: servers"],
    "hardware={sampler: {placement: servers, servers: {addresses: ['http://h:1'], replicas: 2}}}": [
        "replicas: 2",
        "leave",
    ],
    "hardware.dtype=int8": ["hardware.dtype", "int8"],
    "run.sinks=[wandb]": ["run.sinks", "wandb"],
    "run.steps=0": ["run.steps", "0"],
    "rollout.max_tokens=2000": ["rollout.max_tokens", "2000", "1024"],
}


TOGETHER = {
    ("algorithm=ppo", "critic.warmup_steps=6"): ["critic.warmup_steps", "6 steps", "never be trained"],
    ("algorithm=ppo", "critic={backbone: shared, path: x}"): ["critic.path", "'x'", "shared"],
    ("algorithm=ppo", "critic={backbone: shared, stop_gradient: false, warmup_steps: 1}"): ["warmup_steps", "backbone"],
    ("algorithm={name: grpo, kl: in_loss}", "model.lora.rank=4", "reference.refresh=average"): [
        "reference.refresh",
        "cannot follow an adapter",
    ],
}


@pytest.mark.parametrize("overrides", TOGETHER)
def test_blocks_that_contradict_one_another_are_refused(folder: Path, overrides: tuple[str, ...]) -> None:
    found = mistakes(folder, *overrides)
    for words in TOGETHER[overrides]:
        assert words in found, found


@pytest.mark.parametrize("override", WRONG)
def test_a_mistake_is_named_with_its_value_and_a_way_out(folder: Path, override: str) -> None:
    if "wandb" in override and importlib.util.find_spec("wandb"):
        pytest.skip("wandb is installed here")
    found = mistakes(folder, override)
    for words in WRONG[override]:
        assert words in found, found


@pytest.mark.parametrize(
    ("strategy", "changes", "words"),
    [
        ("zero3", ["algorithm={name: grpo, kl: in_loss, kl_estimator: exact}"], "kl_estimator: exact"),
        ("zero3", ["hardware.dtype=float64"], "float64 has no fp32 masters"),
        ("zero1", ["hardware.dtype=bfloat16"], "bfloat16 is for zero2 and zero3"),
        ("zero2", ["hardware.dtype=bfloat16", "algorithm=ppo"], "bfloat16 would round the head"),
    ],
)
def test_what_deepspeed_cannot_do_with_a_row_is_refused(
    folder: Path, strategy: str, changes: list[str], words: str
) -> None:
    found = mistakes(folder, f"hardware.learner.strategy={strategy}", *changes)
    assert f"hardware.learner.strategy: {strategy}" in found, found
    assert words in found, found
    assert "use fsdp2 or ddp" in found, found


def test_every_mistake_is_reported_at_once(folder: Path) -> None:
    found = mistakes(folder, "algorithm=grop", "model=./nothing", "data.eval.path=none.jsonl", "rollout.group_size=1")
    for words in ("grop", "./nothing".removeprefix("./"), "none.jsonl"):
        assert words in found
    assert found.splitlines()[0].endswith("3 mistakes")


def test_a_wrong_verifier_is_found_though_the_data_is_on_the_hub(folder: Path) -> None:
    hub = ["data.train={source: hub, path: owner/set}", "data.eval=null"]
    found = mistakes(folder, *hub, "rewards=[{verifier: 'tests.graders:letterz'}]")
    assert "rewards[0]" in found
    assert "letterz" in found


def test_a_verifier_that_gives_up_by_itself_gets_the_time_to_say_so(folder: Path) -> None:
    code = "rewards=[{verifier: 'posttrain_verifiers.code:Code', settings: {timeout: 20}}]"
    said = mistakes(folder, code, "grading.timeout=20")
    assert "grading.timeout: 20, but Code takes up to 20 s for one verdict (rewards[0].settings.timeout)" in said
    assert "raise grading.timeout, or lower that one" in said
    check(load(folder / "recipe.yaml", [code, "grading.timeout=20.5"]))
    # By default it takes 2 s.
    schema = "rewards=[{verifier: 'posttrain_verifiers.schema:Schema'}]"
    assert "grading.timeout: 1.5, but Schema takes up to 2 s" in mistakes(folder, schema, "grading.timeout=1.5")
    check(load(folder / "recipe.yaml", [schema, "grading.timeout=2.5"]))


def test_a_missing_block_is_named(folder: Path) -> None:
    tree = recipe(folder)
    del tree["run"]
    with pytest.raises(RecipeError, match="run: missing"):
        parse(tree)


def skip_without_its_files(asked: Recipe) -> None:
    """A recipe may read rows that are not shipped, and be graded by a model that another recipe trains."""
    data = asked.data
    for source in (data.train, data.eval, data.contrast, data.auxiliary and data.auxiliary.data):
        if isinstance(source, FileSource) and not (ROOT / source.path).is_file():
            pytest.skip(f"{source.path} is not here")
    for key in ("path", "policy"):
        for made in (str(reward.settings.get(key, "")) for reward in asked.rewards):
            if made.startswith("runs/") and not (ROOT / made / "summary.json").is_file():
                pytest.skip(f"{made} was not trained here")


@pytest.mark.parametrize("path", RECIPES, ids=[p.stem for p in RECIPES])
def test_every_shipped_recipe_is_right_and_reads_back_as_itself(path: Path) -> None:
    asked = load(path)
    assert parse(yaml.safe_load(dump(asked))) == asked
    skip_without_its_files(asked)
    assert check(asked, str(path)).recipe == asked


@pytest.mark.parametrize("path", PIPELINES, ids=[p.stem for p in PIPELINES])
def test_every_shipped_pipeline_is_right(path: Path) -> None:
    pipeline = read_pipeline(path)
    assert len(pipeline.stages) > 1
    for stage in pipeline.stages:
        for file in (source.get("path") for source in stage.tree["data"].values() if isinstance(source, dict)):
            if file and not (ROOT / file).is_file():
                pytest.skip(f"{file} is not here")
    # Stages that only measure have no row.
    assert set(check_pipeline(pipeline)) >= {stage.name for stage in pipeline.stages if not stage.evaluates}


FRAGMENTS = sorted(path for path in (ROOT / "configs").rglob("*.yaml") if path.parent.name != "machine")


@pytest.mark.parametrize("path", FRAGMENTS, ids=lambda p: p.stem)
def test_every_fragment_completes_a_recipe(path: Path, tmp_path: Path) -> None:
    prepare(tmp_path)
    tree: dict[str, Any] = {"extends": str(path), **recipe(tmp_path)}
    for key in yaml.safe_load(path.read_text()):
        tree.pop(key, None)
    (tmp_path / "with.yaml").write_text(yaml.safe_dump(tree))
    load(tmp_path / "with.yaml")


@pytest.mark.clock
def test_checking_imports_no_torch_and_takes_less_than_two_seconds() -> None:
    code = (
        "import sys; sys.argv = ['posttrain', 'check', 'recipes/grpo-arithmetic.yaml']\n"
        "from posttrain.cli import app\n"
        "try:\n    app()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'vllm', 'datasets', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "prompts x samples = 16 x 8 = 128 sequences" in done.stdout
    # The promise is for a machine at rest; a busy one is given four times as long.
    assert time.perf_counter() - started < 8


def test_overrides_win_over_the_file_and_fragments(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("optimizer: {learning_rate: 1e-3, epochs: 2}\nrollout: {group_size: 3}\n")
    path = prepare(tmp_path)
    path.write_text("extends: base.yaml\n" + path.read_text())
    found = load(path, ["optimizer.epochs=4", "algorithm.clip_high=0.5"])
    assert (found.rollout.group_size, found.optimizer.epochs, found.optimizer.learning_rate) == (4, 4, 1e-2)
    assert found.algorithm.overrides == {"clip_high": 0.5}
    assert found.algorithm.name == "grpo"


def test_a_key_written_twice_and_a_circle_of_fragments_are_refused(tmp_path: Path) -> None:
    (tmp_path / "twice.yaml").write_text("run: {steps: 1}\nrun: {steps: 2}\n")
    with pytest.raises(RecipeError, match="run: written twice"):
        load(tmp_path / "twice.yaml")
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(RecipeError, match="extends itself"):
        load(tmp_path / "a.yaml")


def test_the_command_line_ends_with_an_error_and_no_traceback(folder: Path) -> None:
    done = run("train", folder / "recipe.yaml", "rollout.group_sise=3", check=False)
    assert done.returncode == 1
    assert "rollout.group_sise" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (folder / "run").exists()


def test_a_folder_of_a_different_recipe_is_refused_unless_told_otherwise(tmp_path: Path) -> None:
    path = prepare(tmp_path, run={"steps": 1})
    run("train", path)
    before = (tmp_path / "run" / "recipe.yaml").read_bytes()
    done = run("train", path, "optimizer.learning_rate=0.5", check=False)
    assert done.returncode == 1
    assert "optimizer.learning_rate" in done.stderr
    assert (tmp_path / "run" / "recipe.yaml").read_bytes() == before
    run("train", path, "optimizer.learning_rate=0.5", "run.steps=2", "--force")


def test_an_over_long_prompt_is_reported_and_skipped_and_an_empty_data_set_stops(tmp_path: Path) -> None:
    path = prepare(tmp_path, run={"steps": 1})
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('{"prompt": "' + "x" * 1500 + '", "letter": "x"}\n')
    done = run("train", path)
    assert "1 too long" in done.stdout
    (tmp_path / "train.jsonl").write_text("")
    done = run("train", path, "run.folder=" + str(tmp_path / "other"), check=False)
    assert done.returncode == 1
    assert "no rows" in done.stderr
