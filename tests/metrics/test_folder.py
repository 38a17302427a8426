"""The run folder: nothing half written, nothing overwritten, and only the same run goes on in it."""

import json
import os
import subprocess
import sys

import pytest

from posttrain.errors import PosttrainError
from posttrain.metrics import RunFolder

RECIPE = """
model: {path: m}
optimizer: {learning_rate: 1.0e-05, schedule: constant}
rewards:
- {verifier: a.b:C, weight: 1.0}
run: {steps: 10, folder: runs/a, seed: 3, sinks: [], keep_checkpoints: null, evaluate_every: 0}
hardware: {device: cpu}
"""


@pytest.fixture
def folder(tmp_path):
    made = RunFolder(tmp_path / "run")
    assert made.open(RECIPE) is False
    return made


def test_a_new_folder_says_what_runs_on_what(folder):
    assert (folder.path / "recipe.yaml").read_text() == RECIPE
    assert folder.recipe()["optimizer"]["learning_rate"] == 1e-5
    told = json.loads((folder.path / "environment.json").read_text())
    assert told["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"torch", "transformers", "posttrain"} <= set(told["versions"])
    assert (told["device"], told["seed"], told["cpu_count"]) == ("cpu", 3, os.cpu_count())
    assert {"platform", "git"} <= set(told)


def test_the_git_commit_of_the_working_directory_and_its_dirt_are_told(tmp_path):
    def git(*arguments):
        who = ["-c", "user.name=n", "-c", "user.email=e"]
        return subprocess.run(
            ["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True
        ).stdout

    program = (
        "import json; from posttrain.metrics.environment import environment as e; print(json.dumps(e(None, 0)['git']))"
    )

    def told():
        run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
        return json.loads(run.stdout)

    assert told() is None
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "first")
    commit = git("rev-parse", "HEAD").strip()
    assert told() == {"commit": commit, "dirty": False}
    (tmp_path / "new.txt").write_text("x")
    assert told() == {"commit": commit, "dirty": True}


def test_the_same_recipe_goes_on(folder):
    folder.append_metrics(1, {"reward/mean": 0.5})
    again = RunFolder(folder.path)
    assert again.open(RECIPE) is True
    assert again.read_metrics() == [{"step": 1, "reward/mean": 0.5}]


@pytest.mark.parametrize(
    ("old", "new", "line"),
    [
        ("1.0e-05", "2.0e-05", "optimizer.learning_rate: 1e-05 -> 2e-05"),
        ("weight: 1.0", "weight: 0.5", "rewards.0.weight: 1.0 -> 0.5"),
        ("steps: 10", "steps: 9", "run.steps: 10 -> 9"),
        ("evaluate_every: 0", "evaluate_every: 5", "run.evaluate_every: 0 -> 5"),
        ("seed: 3, ", "", "run.seed: 3 -> (absent)"),
        ("{path: m}", "{path: m, lora: {rank: 4}}", "model.lora.rank: (absent) -> 4"),
    ],
)
def test_another_recipe_is_refused_by_key_and_changes_nothing(folder, old, new, line):
    before = {p.name: p.read_bytes() for p in folder.path.iterdir() if p.is_file()}
    changed = RECIPE.replace(old, new)
    with pytest.raises(PosttrainError) as refused:
        folder.open(changed)
    assert [told.strip() for told in str(refused.value).splitlines() if told.startswith("  - ")] == [f"- {line}"]
    assert {p.name: p.read_bytes() for p in folder.path.iterdir() if p.is_file()} == before
    assert folder.open(changed, override=True) is True
    assert (folder.path / "recipe.yaml").read_text() == changed


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("steps: 10", "steps: 20"),
        ("sinks: []", "sinks: [tensorboard, wandb]"),
        ("keep_checkpoints: null", "keep_checkpoints: 2"),
        ("hardware: {device: cpu}", "hardware: {device: cpu}\ngrading: {early: false}"),
        ("runs/a", "moved/b"),
        ("device: cpu", "device: cpu, dtype: auto"),
    ],
)
def test_a_difference_that_changes_no_number_is_let_through(folder, old, new):
    assert folder.open(RECIPE.replace(old, new)) is True
    assert (folder.path / "recipe.yaml").read_text() == RECIPE.replace(old, new)


def test_more_steps_under_a_schedule_that_ends_with_them_are_refused(tmp_path):
    decaying = RECIPE.replace("schedule: constant", "schedule: cosine")
    folder = RunFolder(tmp_path / "run")
    folder.open(decaying)
    with pytest.raises(PosttrainError, match=r"run\.steps: 10 -> 20 \(the cosine schedule ends at run\.steps"):
        folder.open(decaying.replace("steps: 10", "steps: 20"))


def test_more_steps_under_a_term_that_fades_until_the_last_are_refused(tmp_path):
    fading = RECIPE + "data: {auxiliary: {coefficient: 0.1, final_coefficient: 0.0}}\n"
    folder = RunFolder(tmp_path / "run")
    folder.open(fading)
    with pytest.raises(PosttrainError, match=r"run\.steps: 10 -> 20 \(data.auxiliary.final_coefficient is reached at"):
        folder.open(fading.replace("steps: 10", "steps: 20"))


@pytest.mark.parametrize("name", ["thesis.tex", "recipe.yaml", "environment.json"])
def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path, name):
    (tmp_path / name).write_text("{}")
    for act in (lambda f: f.open(RECIPE), lambda f: f.open(RECIPE, override=True), lambda f: f.lock()):
        with pytest.raises(PosttrainError, match=f"no run folder but holds {name}"):
            act(RunFolder(tmp_path))
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [(name, "{}")]


def test_an_empty_folder_is_taken_and_a_file_is_not(tmp_path):
    (tmp_path / "empty").mkdir()
    assert RunFolder(tmp_path / "empty").open(RECIPE) is False
    (tmp_path / "file").write_text("")
    with pytest.raises(PosttrainError, match="is a file"):
        RunFolder(tmp_path / "file").open(RECIPE)


def test_metrics_keep_every_bit_and_put_the_step_first(folder):
    folder.append_metrics(0, {"eval/accuracy": 0.1 + 0.2, "rollout/tokens": 12345678901234567})
    folder.append_metrics(5, {"z": 5e-324, "a": 1 / 3})
    assert folder.read_metrics() == [
        {"step": 0, "eval/accuracy": 0.30000000000000004, "rollout/tokens": 12345678901234567},
        {"step": 5, "z": 5e-324, "a": 1 / 3},
    ]
    assert [next(iter(line)) for line in folder.read_metrics()] == ["step", "step"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), "high", None])
def test_metrics_that_are_no_finite_numbers_are_refused_by_name(folder, bad):
    with pytest.raises(PosttrainError, match="reward/mean is"):
        folder.append_metrics(1, {"ok": 1.0, "reward/mean": bad})
    assert folder.read_metrics() == []


def test_a_step_is_written_once(folder):
    folder.append_metrics(3, {})
    for step in (2, 3):
        with pytest.raises(PosttrainError, match=f"step {step} after step 3"):
            RunFolder(folder.path).append_metrics(step, {})


def test_truncation_forgets_later_steps_and_a_torn_line(folder):
    for step in range(5):
        folder.append_metrics(step, {"x": float(step)})
        folder.write_rollouts("step", step, [{"step": step}])
        folder.write_rollouts("eval", step, [{"step": step}])
    with open(folder.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "x": 0.')
    assert [line["step"] for line in folder.read_metrics()] == [0, 1, 2, 3, 4]
    folder.truncate_after(2)
    assert (folder.path / "metrics.jsonl").read_text().splitlines() == [
        f'{{"step": {s}, "x": {s}.0}}' for s in range(3)
    ]
    assert folder.rollout_steps() == folder.rollout_steps("eval") == [0, 1, 2]
    folder.append_metrics(3, {"x": 9.0})
    assert [line["x"] for line in folder.read_metrics()] == [0.0, 1.0, 2.0, 9.0]


def test_a_torn_line_never_grows_into_the_next(folder):
    folder.append_metrics(1, {"x": 1.0})
    with open(folder.path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "x"')
    RunFolder(folder.path).append_metrics(2, {"x": 2.0})
    assert folder.read_metrics() == [{"step": 1, "x": 1.0}, {"step": 2, "x": 2.0}]


def test_a_damaged_line_in_the_middle_is_named(folder):
    (folder.path / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(PosttrainError, match=r"metrics\.jsonl, line 2: not JSON"):
        folder.read_metrics()


def test_roll_outs_read_back_whatever_their_text(folder):
    records = [{"completion": "line\u2028break \x1b[31m 你好 \ud83d", "logprobs": [-0.1, 1e-300]}, {"completion": ""}]
    folder.write_rollouts("step", 1234567, records)
    assert folder.read_rollouts("step", 1234567) == records
    assert folder.rollout_steps() == [1234567]
    with pytest.raises(PosttrainError, match="steps with step roll-outs: 1 from 1234567 to 1234567"):
        folder.read_rollouts("step", 2)


def test_a_record_that_json_cannot_hold_is_named_and_the_old_file_stays(folder):
    folder.write_rollouts("step", 1, [{"a": 1}])
    bad = [{"a": 2}, {"updates": [{"logprobs": [0.0, float("nan")]}]}]
    with pytest.raises(PosttrainError, match=r"record 1: updates\.0\.logprobs\.1 is nan"):
        folder.write_rollouts("step", 1, bad)
    assert folder.read_rollouts("step", 1) == [{"a": 1}]
    assert [p.name for p in (folder.path / "rollouts").iterdir()] == ["step-000001.jsonl"]


def test_a_folder_killed_at_birth_can_be_opened(tmp_path):
    (tmp_path / ".environment.json.123.partial").write_text("{")
    (tmp_path / "run.lock").write_text("123\n")
    folder = RunFolder(tmp_path)
    assert folder.open(RECIPE) is False
    (tmp_path / "recipe.yaml").unlink()
    assert folder.open(RECIPE) is True


def test_only_checkpoints_with_a_manifest_count(folder):
    for step in (20, 10, 30):
        folder.checkpoint_path(step).mkdir()
    assert folder.checkpoint_path(10).name == "step-000010"
    assert folder.checkpoints() == []
    for step in (20, 10):
        (folder.checkpoint_path(step) / "manifest.json").write_text("{}")
    (folder.path / "checkpoints" / "step-000040.partial").mkdir()
    assert folder.checkpoints() == [10, 20]


def test_the_summary_is_replaced_whole_or_not_at_all(folder):
    folder.write_summary({"accuracy_after": 0.5, "greedy_after": None})
    with pytest.raises(PosttrainError, match="summary: accuracy_after is nan"):
        folder.write_summary({"accuracy_after": float("nan")})
    assert json.loads((folder.path / "summary.json").read_text()) == {"accuracy_after": 0.5, "greedy_after": None}


def test_where_a_run_was_before_is_kept(folder):
    path = folder.path / "environment.json"
    first = json.loads(path.read_text()) | {"python": "3.0.0"}
    path.write_text(json.dumps(first))
    folder.open(RECIPE, device="cuda")
    told = json.loads(path.read_text())
    assert told["device"] == "cuda"
    assert told["earlier"] == [first]
    folder.open(RECIPE, device="cuda")
    assert json.loads(path.read_text())["earlier"] == [first]


def test_reading_what_is_no_run_says_so(tmp_path):
    with pytest.raises(PosttrainError, match="is no run folder"):
        RunFolder(tmp_path / "nowhere").recipe()
    assert RunFolder(tmp_path / "nowhere").read_metrics() == []
    assert RunFolder(tmp_path / "nowhere").checkpoints() == []
