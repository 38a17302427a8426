"""Rules of the house that a reader relies on: sizes, names, imports, and one place for an algorithm's name."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from posttrain.algorithms.catalogue import CATALOGUE
from posttrain.algorithms.choice import choose
from posttrain.algorithms.table import ALGORITHMS
from posttrain.recipe import blocks, parse
from tests.runs import ROOT, run

PACKAGES = ["posttrain", "verifiers/posttrain_verifiers", "reward_models/posttrain_reward_models"]
FILES = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]


LIMITS = {"constant": 7, "clip_cov": 7, "mpo": 7, "kto": 8, "kto_apo_zero": 8, "audit": 9}
"""A reduction takes the step's two denominators beside the tensors; its signature is the same for all. The others are
objectives: three or four inputs, and numbers of which a recipe sets each by its name; and a command's options."""


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(ROOT)))
def test_a_file_is_one_noun_and_a_function_one_thought(file: Path) -> None:
    text = file.read_text()
    assert len(text.splitlines()) <= 300
    assert not re.search(r"utils|common|helpers|misc|manager", file.name)
    for function in functions(ast.parse(text)):
        assert function.end_lineno - function.lineno < 60, function.name
        arguments = function.args
        named = [a.arg for a in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]]
        named = [a for a in named if a not in ("self", "cls", "ctx")]
        assert len(named) <= LIMITS.get(function.name, 6), (function.name, named)


@pytest.mark.parametrize("package", ["posttrain", "posttrain_verifiers", "posttrain_reward_models"])
def test_every_module_can_be_imported(package: str) -> None:
    root = importlib.import_module(package)
    for module in pkgutil.walk_packages(root.__path__, f"{package}."):
        if module.name.endswith("__main__"):
            continue
        if module.name in ("posttrain.rollout.weight_transfer", "posttrain.rollout.server.worker"):
            pytest.importorskip("vllm")
        importlib.import_module(module.name)


def test_an_algorithm_is_named_in_the_table_and_nowhere_else() -> None:
    names = "|".join(ALGORITHMS)
    algorithms = ROOT / "posttrain" / "algorithms"
    # A cell, named after its function in posttrain.objectives, may have an algorithm's name: pass_at_k, clip_cov.
    allowed = [*(algorithms / "rows").iterdir(), *(algorithms / "catalogue").iterdir()]
    for file in FILES:
        if file in allowed:
            continue
        tree = ast.parse(file.read_text())
        # A string that is a name would be a comparison with a row's. One with the kind of a cell is none, nor is a set
        # of kinds that such a comparison reads, nor what puts a kind into its column.
        nodes = list(ast.walk(tree))
        of_kinds = [n for n in nodes if isinstance(n, ast.Compare) and getattr(n.left, "attr", "") == "kind"]
        read = {n.id for comparison in of_kinds for n in ast.walk(comparison) if isinstance(n, ast.Name)}
        of_kinds += [n for n in nodes if isinstance(n, ast.Assign) and read & {getattr(t, "id", "") for t in n.targets}]
        of_kinds += [n for n in nodes if isinstance(n, ast.keyword) and n.arg in CATALOGUE]
        cells = {id(node) for comparison in of_kinds for node in ast.walk(comparison)}
        found = [n for n in ast.walk(tree) if isinstance(n, ast.Constant) and id(n) not in cells]
        assert not [n.value for n in found if isinstance(n.value, str) and re.fullmatch(names, n.value)], file


def test_a_block_of_a_recipe_has_at_most_twelve_fields() -> None:
    for name, block in vars(blocks).items():
        if isinstance(block, type) and issubclass(block, blocks.Block):
            assert len(block.model_fields) <= 12, name


def test_a_catalogued_cell_has_exactly_its_formulas_parameters() -> None:
    for column, kinds in CATALOGUE.items():
        for kind, entry in kinds.items():
            if entry.function is None:
                continue
            module, _, name = entry.function.partition(".")
            function = getattr(importlib.import_module(f"posttrain.objectives.{module}"), name)
            signature = inspect.signature(function).parameters
            defaults = {p.name: p.default for p in signature.values() if p.default is not p.empty}
            defaults = {n: d for n, d in defaults.items() if n not in entry.takes}
            read = {n: p.default for n, p in entry.parameters.items() if p.formula}
            # The recipe fills what a formula cannot do without: no default there, None here.
            derived = {n for n in read if n in signature and n not in defaults}
            assert all(read[n] is None for n in derived), (column, kind)
            assert {n: d for n, d in read.items() if n not in derived} == defaults, (column, kind)
            # What the run itself reads is no input of the formula.
            assert not (set(entry.parameters) - set(read)) & set(signature), (column, kind)


NAMES = """
reinforce reinforce_baseline rloo remax opo reinforce_pp reinforce_pp_baseline
grpo dr_grpo lite_ppo dapo max_rl pass_at_k gdpo spo self rlpr
gspo gspo_token gmpo cispo sapo dppo_tv dppo_kl discovered mdpo fixpo m2po clip_cov kl_cov rapid pipeline_rl
rec opmd asymre rover oreal raft expert_iteration rejection_sampling best_of_two
ppo ppo_max vapo pf_ppo dvpo a2c impala trpo
kimi rebel copg agro online_dpo online_ipo
sft dft rcrl
dpo robust_dpo slic ipo exo_pair nca bco_pair sppo_hard aot aot_unpaired apo_zero apo_down discopop dpo_norm f_dpo wpo
ld_dpo rpo mpo dpop odpo modpo step_dpo sera hypo
simpo cpo orpo alphapo cpl
lipo pro exo k_way kto kto_apo_zero bco
rebel_offline copg_offline agro_offline dro_v a_lol a_lol_seq a_lol_ref_free a_lol_kl direct_advantage dqo
iterative_dpo accelerated_dpo sppo inpo dno xpo spin spin_pool spac
reward_bradley_terry reward_margin reward_ties reward_plackett_luce reward_gap reward_regression reward_outcome
reward_binned reward_process reward_goal_conditioned
"""
"""Rows that recipes rely on."""
SWITCHES = {
    *(
        "reference",
        "behaviour",
        "previous",
        "trainer",
        "critic",
        "greedy",
        "preference",
        "parts",
        "uniform",
        "collision",
    ),
    *("given", "sampler", "opponent", "refresh", "mismatched", "shift", "pairs", "margins", "ties", "steps"),
    *("in_context", "conditioning", "scorer", "states"),
}


def test_the_table_is_printed_as_json_with_papers_needs_and_cells() -> None:
    rows = {row["name"]: row for row in json.loads(run("algorithms", "--json").stdout)}
    assert list(rows) == list(ALGORITHMS)
    assert set(NAMES.split()) <= set(rows)
    for row in rows.values():
        assert set(row) == {"name", "paper", "needs", "cells"}
        assert re.fullmatch(r"\d{4}\.\d{5}|10\.\d{4,}/\S+", row["paper"]), row["paper"]
        assert SWITCHES | {"min_group"} == set(row["needs"])
        assert row["needs"]["min_group"] >= 1
        assert all(isinstance(row["needs"][name], bool) for name in SWITCHES)
        assert list(row["cells"]) == list(CATALOGUE)
        for column, cell in row["cells"].items():
            assert set(cell) == {"kind", *CATALOGUE[column][cell["kind"]].parameters}


def test_the_recipe_in_the_readme_is_one() -> None:
    blocks_found = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert len(blocks_found) == 1
    tree = yaml.safe_load(blocks_found[0])
    assert (ROOT / tree.pop("extends")).is_file()
    found = parse(tree)
    assert choose(found.algorithm.name, found.algorithm.overrides).reduction.kind == "token_mean"


def test_nothing_names_a_machine_or_a_registry() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "benchmarks").glob("*.*")]
    for file in [*FILES, *pages, ROOT / "Makefile", *(ROOT / "requirements").iterdir()]:
        assert not re.search(r"/work/|/root/|pypi\.org|pythonhosted", file.read_text()), file
