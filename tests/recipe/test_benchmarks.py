"""The shipped benchmarks: each is a whole evaluation, asks with columns that its data have, and takes a local file."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from posttrain.build.check import check
from posttrain.build.pipeline import check_pipeline
from posttrain.data.chat import Chat
from posttrain.data.formats import question
from posttrain.data.readings import reading
from posttrain.data.rows import read_rows
from posttrain.errors import RecipeError
from posttrain.recipe import load
from posttrain.recipe.load import merge
from posttrain.recipe.pipeline import read_pipeline
from posttrain.rewards import signature_of
from tests.data import tiny_tokenizer
from tests.runs import prepare
from tests.tiny import tiny_folder

ROOT = Path(__file__).parents[2]
DATA = ROOT.parent / "shared" / "data"
NAMES = sorted(path.stem for path in (ROOT / "configs" / "benchmark").glob("*.yaml"))

COLUMNS = {
    "aime-2024": "id problem solution answer url year",
    "aime-2025": "problem answer id",
    "amc-23": "id question answer url",
    "file": "problem answer",
    "gsm8k": "question answer",
    "humaneval": "task_id prompt canonical_solution test entry_point",
    "humaneval-plus": "task_id prompt canonical_solution entry_point test",
    "ifeval": "key prompt instruction_id_list kwargs",
    "livecodebench": "question_title question_content platform question_id contest_id contest_date starter_code "
    "difficulty public_test_cases private_test_cases metadata",
    "math-500": "problem solution answer subject level unique_id",
    "mbpp": "task_id text code test_list test_setup_code challenge_test_list",
    "mbpp-plus": "task_id code prompt source_file test_imports test_list test",
    "minerva": "question answer",
    "olympiadbench": "question answer",
    "reasoning-gym": "question answer metadata",
    "svamp": "ID Body Question Equation Answer Type question_concat",
}
"""What a row of each has, as its data set's page says."""

LOCAL = {
    "gsm8k": "gsm8k_test.jsonl",
    "math-500": "math500.jsonl",
    "aime-2024": "aime24.jsonl",
    "humaneval": "humaneval.jsonl",
    "mbpp": "mbpp.jsonl",
}
FAR = ["data.eval.path=none.jsonl"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tiny_folder(tmp_path_factory.mktemp("tiny") / "model", max_position_embeddings=32768))


def overrides(name: str, model: str, *more: str) -> list[str]:
    own = FAR if name == "file" else []
    return [f"model={model}", "rollout.engine=transformers", "hardware.device=cpu", *own, *more]


def test_every_benchmark_is_held_against_its_columns() -> None:
    assert set(NAMES) == set(COLUMNS)


@pytest.mark.parametrize("name", NAMES)
def test_a_benchmark_asks_and_grades_with_columns_that_its_rows_have(name: str, model: str) -> None:
    recipe = load(ROOT / "configs" / "benchmark" / f"{name}.yaml", overrides(name, model))
    source = recipe.data.eval
    assert source is not None
    names = COLUMNS[name].split()
    made = {origin: reading(origin) for origin in source.columns.values()}
    read = {column for origin, found in made.items() for column in (found[1] if found else (origin,))}
    row = {column: f"<{column}>" for column in names if column not in read}
    row |= {new: f"<{old}>" for new, old in source.columns.items()}
    assert read <= set(names)
    if source.since is not None:
        assert source.since.column in names
    asked = question(row, source, Chat(tiny_tokenizer()))
    assert isinstance(asked, list)
    assert "<" in asked[-1]["content"]
    assert not any(
        secret in asked[-1]["content"]
        for secret in ("<answer>", "<solution>", "<canonical_solution>", "<code>")
        if name != "reasoning-gym"
    )
    assert len(asked) == 1 + 2 * len(source.shots)
    for reward in recipe.rewards:
        assert set(signature_of(reward).required) <= set(row), reward.verifier


@pytest.mark.parametrize("name", [name for name in NAMES if name != "file"])
def test_a_benchmark_is_a_whole_recipe_that_only_lacks_its_model(name: str, model: str) -> None:
    checked = check(load(ROOT / "configs" / "benchmark" / f"{name}.yaml", overrides(name, model)))
    assert checked.row is None
    assert checked.recipe.run.folder.name == f"eval-{name}"


@pytest.mark.parametrize("name", LOCAL)
def test_a_benchmark_reads_a_local_file_by_one_key_and_asks_as_before(name: str, model: str) -> None:
    if not DATA.is_dir():
        pytest.skip("no ../shared/data")
    file = ROOT / "configs" / "benchmark" / f"{name}.yaml"
    hub = load(file, overrides(name, model)).data.eval
    key = f"data.eval={{source: file, path: {DATA / LOCAL[name]}}}"
    recipe = load(file, overrides(name, model, key))
    local = recipe.data.eval
    assert hub is not None
    assert local is not None
    assert (local.prompt, local.columns, local.shots) == (hub.prompt, hub.columns, hub.shots)
    check(recipe)
    rows = read_rows(local, "data.eval")
    asked = question(rows[0], local, Chat(tiny_tokenizer()))
    assert len(rows) == sum(1 for _ in (DATA / LOCAL[name]).open())
    assert isinstance(asked, list)
    words = rows[0].get("question") or rows[0].get("problem") or rows[0].get("text") or rows[0]["prompt"]
    assert words in asked[-1]["content"]


def test_a_list_of_tests_is_asked_one_a_line(model: str) -> None:
    source = load(ROOT / "configs" / "benchmark" / "mbpp.yaml", overrides("mbpp", model)).data.eval
    assert source is not None
    row = {"text": "Add.", "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0"]}
    asked = question(row, source, Chat(tiny_tokenizer()))
    assert isinstance(asked, list)
    assert "tests:\nassert add(1, 2) == 3\nassert add(0, 0) == 0\nAnswer" in asked[-1]["content"]


def test_of_another_source_what_says_how_rows_are_asked_stays() -> None:
    base = {
        "source": "hub",
        "path": "a/b",
        "split": "test",
        "skip": 3,
        "limit": 5,
        "prompt": "{q}",
        "system": "Be brief.",
        "columns": {"answer": "gold", "q": "text"},
        "since": {"column": "day"},
    }
    found = merge({"eval": base}, {"eval": {"source": "file", "path": "c", "columns": {"q": "ask"}}})["eval"]
    assert found == {
        "source": "file",
        "path": "c",
        "prompt": "{q}",
        "system": "Be brief.",
        "columns": {"answer": "gold", "q": "ask"},
        "since": {"column": "day"},
    }
    same = merge({"eval": base}, {"eval": {"source": "hub", "limit": 2}})["eval"]
    assert same == {**base, "limit": 2}
    # An algorithm's cell of this name is no source of data.
    cell = merge({"algorithm": {"name": "dpo"}}, {"algorithm": {"source": "given"}})
    assert cell == {"algorithm": {"name": "dpo", "source": "given"}}


MISTAKES = {
    "run.steps=3": "algorithm: missing, but run.steps is there",
    "data.train={source: file, path: x.jsonl}": "algorithm: missing, but data.train is there",
    "rewards=[]": "To evaluate only, data.eval and rewards are needed: rewards is missing",
    "data.eval=null": "To evaluate only, data.eval and rewards are needed: data.eval is missing",
    "optimizer.learning_rate=0.1": "optimizer: nothing is trained without an algorithm",
    "critic.warmup_steps=3": "critic: nothing is trained without an algorithm",
    "algorithm=grpo": "data.train: missing; add it, or leave algorithm out to evaluate only",
    "evaluation={samples: 0, greedy: false}": "evaluation.samples: 0 and evaluation.greedy: false measure nothing",
    "evaluation={samples: 0, best_of: x}": "evaluation.best_of: 'x' chooses among samples",
    "evaluation.max_tokens=40000": "evaluation.max_tokens: 40000 leave no room in a context of 32768 tokens",
}


@pytest.mark.parametrize("override", MISTAKES)
def test_what_an_evaluation_cannot_be_is_named(override: str, model: str) -> None:
    with pytest.raises(RecipeError) as caught:
        check(load(ROOT / "configs" / "benchmark" / "gsm8k.yaml", overrides("gsm8k", model, override)))
    assert MISTAKES[override] in str(caught.value)


def test_a_benchmark_measures_a_stage_of_a_pipeline_and_is_no_stage_of_its_own(tmp_path: Path) -> None:
    trained = prepare(tmp_path)
    measured = {"extends": str(ROOT / "configs" / "benchmark" / "file.yaml"), "rollout": {"engine": "transformers"}}
    rows = {"data": {"eval": {"path": str(tmp_path / "rows.jsonl")}}, "evaluation": {"max_tokens": 64}}
    (tmp_path / "rows.jsonl").write_text('{"problem": "1 + 1?", "answer": "2"}\n')
    stages = {"first": {"extends": str(trained)}, "last": {"evaluate": "stage:first", **measured, **rows}}
    file = tmp_path / "pipeline.yaml"
    file.write_text(yaml.safe_dump({"folder": str(tmp_path / "out"), "stages": stages}))
    found = check_pipeline(read_pipeline(file))
    assert found["first"].row is not None
    assert found["last"].row is None
    del stages["last"]["evaluate"]
    file.write_text(
        yaml.safe_dump(
            {"folder": str(tmp_path / "out"), "stages": {**stages, "last": {**stages["last"], "model": "stage:first"}}}
        )
    )
    with pytest.raises(RecipeError, match=r"stages.last.algorithm: missing, so nothing is trained"):
        check_pipeline(read_pipeline(file))
