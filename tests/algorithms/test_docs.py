"""What is said of the table is true: the page is the table's, and every line of a recipe on it is one."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from posttrain.algorithms.catalogue import CATALOGUE
from posttrain.algorithms.choice import choose
from posttrain.algorithms.describe import FAMILIES, find, markdown, page
from posttrain.algorithms.row import Algorithm
from posttrain.algorithms.table import ALGORITHMS
from posttrain.algorithms.variants import VARIANTS, Variant
from posttrain.algorithms.words import COLUMNS, needs, sentence
from posttrain.build.check import check
from posttrain.cli import app
from posttrain.errors import PosttrainError, RecipeError
from posttrain.recipe import parse
from posttrain.recipe.blocks import AlgorithmChoice
from posttrain.recipe.load import merge, read_yaml
from tests.offline_runs import pairs, scored, steps, write
from tests.runs import ROOT, prepare, recipe

REFUSED = "not beside this row's other cells: "
ALL = [variant for variants in VARIANTS.values() for variant in variants]
SAME = {
    "DAPO with equal clips and sequence mean": "grpo",
    "PPO-max, switch by switch": "ppo_max",
    "PF-PPO, best and worst": "pf_ppo",
    "Truncated importance sampling by token": "grpo",
    "DPO and SFT of the best response": "rpo",
    "REBEL on given responses": "rebel_offline",
    "CoPG on given responses": "copg_offline",
    "AGRO on given responses": "agro_offline",
    "DNO on best and worst": "iterative_dpo",
}
"""Variants that are said to be a row's own cells."""


def shell(*args: str) -> Result:
    return CliRunner().invoke(app, ["algorithms", *args], env={"COLUMNS": "400"})


def chosen(text: str) -> Algorithm:
    """What a recipe means by the value of its `algorithm`. libyaml's parser: there are thousands of lines."""
    value = yaml.load(text, yaml.CSafeLoader)
    block = AlgorithmChoice.model_validate({"name": value} if isinstance(value, str) else value)
    return choose(block.name, block.overrides)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, prompts with a grader, and given answers of every form."""
    folder = tmp_path_factory.mktemp("docs")
    prepare(folder)
    graded = [{**row, "chosen_score": 0.9, "rejected_score": 0.2} for row in pairs(8)]
    for name, rows in (("pairs", graded), ("scored", scored(8)), ("steps", steps(8))):
        write(folder / f"{name}.jsonl", [{**row, "letter": "a"} for row in rows])
    return folder


def complete(folder: Path, row: Algorithm) -> dict[str, Any]:
    """A recipe for the row, of files in `folder`."""
    tree = recipe(folder, run={"steps": 1000})
    if not row.needs.given:
        return tree
    form = "steps" if row.needs.steps else "pairs" if row.needs.min_group > 1 else "scored"
    tree["data"] = {"train": {"source": "file", "path": str(folder / f"{form}.jsonl")}}
    if not row.needs.sampler:
        del tree["rollout"], tree["evaluation"]
    if row.source.kind != "joined":
        del tree["rewards"]
    return tree


def cells(row: Algorithm) -> dict[str, tuple[str, dict[str, Any]]]:
    return {column: (cell.kind, cell.settings) for column, cell in row.cells.items()}


def test_the_page_is_up_to_date() -> None:
    assert (ROOT / "docs" / "algorithms.md").read_text() == markdown(), "out of date: run `make docs`"
    assert shell("--markdown").stdout == markdown()


def test_the_page_has_every_row_column_kind_and_parameter() -> None:
    text = markdown()
    for row in ALGORITHMS.values():
        assert f"\n### {row.name}\n" in text
        assert f"](#{row.name})" in text
    assert set(COLUMNS) == set(CATALOGUE)
    for column, kinds in CATALOGUE.items():
        rest = text[text.index(f"\n### {column}\n\n{COLUMNS[column]}") :]
        for kind, entry in kinds.items():
            line = next(found for found in rest.splitlines() if re.match(rf"\| (\*\*)?{kind}(\*\*)? \|", found))
            assert all(f"`{name}` = " in line for name in entry.parameters)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_line_of_a_rows_page_is_a_recipe_with_what_it_names_and_what_is_called_impossible_is(name: str) -> None:
    row, lines = find(name), 0
    for section in page(row)[1:]:
        column, _, own = section.heading.partition(": ")
        assert own == row.cells[column].kind
        offered = {own}
        for line in section.lines:
            if line.startswith(REFUSED):
                for kind in line.removeprefix(REFUSED).split(", "):
                    offered.add(kind)
                    with pytest.raises(RecipeError):
                        choose(name, {column: kind})
            if "  algorithm: " not in line:
                continue
            lines += 1
            left, _, text = line.partition("  algorithm: ")
            changed = chosen(text)
            if left.startswith("or "):
                offered.add(changed.cells[column].kind)
                assert changed.cells[column].kind == re.split(r"[(\s]", left[3:])[0]
            else:
                assert cells(changed) == cells(row)
        assert offered == set(CATALOGUE[column])
    parameters = sum(len(cell.entry.parameters) for cell in row.cells.values())
    assert lines > parameters
    shown = {line for section in page(row) for line in section.lines}
    assert {sentence(cell.entry) for cell in row.cells.values()} <= shown


@pytest.mark.parametrize("variant", ALL, ids=lambda v: v.title)
def test_a_variant_is_a_recipe_and_does_what_its_title_says(variant: Variant, folder: Path) -> None:
    lines = read_yaml(variant.recipe, variant.title)
    meant = lines["algorithm"]
    row = choose(meant, {}) if isinstance(meant, str) else choose(meant.pop("name"), meant)
    found = parse(merge(complete(folder, row), read_yaml(variant.recipe, variant.title)))
    assert set(found.algorithm.overrides) <= {*CATALOGUE, *(n for c in row.cells.values() for n in c.settings)}
    assert check(found).algorithm == row
    if variant.title in SAME:
        assert cells(row) == cells(find(SAME[variant.title]))
    changed = cells(row) != cells(find(row.name)) or len(lines) > 1
    assert changed == (SAME.get(variant.title) != row.name and variant.title != "Rewards by step")


def test_a_row_stands_in_the_first_family_that_is_true_of_it() -> None:
    of = {name: next(title for title, belongs in FAMILIES if belongs(row)) for name, row in ALGORITHMS.items()}
    assert set(of.values()) == {title for title, _ in FAMILIES}
    expected = {
        "Reward models": ["reward_bradley_terry", "reward_process", "reward_goal_conditioned"],
        "Supervised": ["sft", "dft", "rcrl"],
        "Played against an earlier policy": ["iterative_dpo", "spin_pool", "xpo", "sppo"],
        "Lists, and single answers with a thumb": ["lipo", "exo", "kto", "bco"],
        "Pairs without a reference": ["simpo", "cpo", "orpo", "alphapo", "cpl"],
        "Pairs against a reference": ["dpo", "ipo", "hypo", "aot"],
        "Responses that come with scores": ["dro_v", "a_lol_ref_free", "direct_advantage", "dqo", "rebel_offline"],
        "With a critic": ["ppo", "impala"],
        "A group learnt as a set": ["online_dpo", "kimi"],
    }
    for title, names in expected.items():
        assert [of[name] for name in names] == [title] * len(names)
    text = markdown()
    for title, _ in FAMILIES:
        assert f"### {title}\n\n| row | paper |" in text


def test_titles_of_variants_differ_and_stand_on_the_page() -> None:
    titles = [variant.title for variant in ALL]
    assert len(set(titles)) == len(titles)
    text = markdown()
    for variant in ALL:
        assert f"**{variant.title}.** {variant.about}\n\n```yaml\n{variant.recipe}\n```" in text


def test_a_sentence_is_the_formulas_own() -> None:
    for kinds in CATALOGUE.values():
        for entry in kinds.values():
            if entry.function is None:
                assert sentence(entry) == entry.about != ""
                continue
            module, _, name = entry.function.partition(".")
            function = getattr(importlib.import_module(f"posttrain.objectives.{module}"), name)
            said = inspect.getdoc(function) or ""
            assert sentence(entry) == " ".join(said.split("\n\n")[0].split()) != ""


def test_no_parameter_has_the_name_of_a_column() -> None:
    names = {name for kinds in CATALOGUE.values() for entry in kinds.values() for name in entry.parameters}
    assert not names & {*CATALOGUE, "name"}


def test_a_row_shows_its_paper_needs_and_defaults() -> None:
    text = shell("rloo").stdout
    assert "arXiv:2402.14740" in text
    assert "groups of 2 or more" in text
    assert "importance_cap = 2.0, > 0" in text
    assert "algorithm: {name: rloo, reduction: token_mean}" in text
    assert "algorithm: {name: rloo, critic: squared, credit: gae}" in text
    assert "doi:10.1007/BF00992696" in shell("reinforce").stdout
    assert "clip_high = 0.28 (0.2 by default), > 0" in shell("dapo").stdout


def test_the_table_has_a_line_for_each_row() -> None:
    lines = shell().stdout.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(ALGORITHMS)
    dapo = next(line for line in lines if line.startswith("dapo"))
    for words in ("arXiv:2503.14476", "objective: clip(clip_high=0.28)", "shaping: overlong", "groups of 2"):
        assert words in dapo
    assert "correction" not in dapo


def test_what_a_row_needs_is_said_in_words() -> None:
    for row in ALGORITHMS.values():
        asked = {name for name, value in vars(row.needs).items() if value is True}
        assert asked == {name for name in needs(row) if not name.startswith("groups")}


def test_json_has_one_row_where_one_is_named() -> None:
    assert json.loads(shell("grpo", "--json").stdout) == find("grpo").as_json()
    assert json.loads(shell("--json").stdout) == [row.as_json() for row in ALGORITHMS.values()]


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(PosttrainError, match="unknown algorithm 'grpoo'; did you mean 'grpo'"):
        find("grpoo")
    with pytest.raises(PosttrainError, match="unknown algorithm 'zzz'; the table has reinforce, "):
        find("zzz")
    assert isinstance(shell("grpoo").exception, PosttrainError)
    assert isinstance(shell("grpo", "--markdown").exception, PosttrainError)


@pytest.mark.parametrize("args", [[], ["ppo"], ["--json"], ["--markdown"]], ids=lambda a: " ".join(a) or "table")
def test_printing_the_table_imports_no_torch(args: list[str]) -> None:
    code = (
        f"import sys; sys.argv = ['posttrain', 'algorithms', *{args!r}]\n"
        "from posttrain.cli import app\n"
        "try:\n    app()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'vllm', 'datasets', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
