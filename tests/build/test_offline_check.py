"""Recipes of runs on given answers: what would not be read, or could not be done, is named before anything starts."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import RecipeError
from tests.offline_runs import Rows, checked, lists, pairs, prepare, scored, steps, texts, thumbs
from tests.runs import ROOT

SAMPLED = {"rollout": {"engine": "transformers", "group_size": 2, "max_tokens": 6}}
GRADED = {"rewards": [{"verifier": "tests.graders:always_one"}]}
WITH_MARGINS: Rows = [{**row, "margin": 1.5} for row in pairs(4)]


def mistakes(folder: Path, algorithm: Any, train: Rows, held: Rows | None, changes: dict[str, Any]) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        checked(prepare(folder, algorithm, train, held, **changes))
    return caught.value.mistakes


WRONG: dict[str, tuple[Any, Rows, Rows | None, dict[str, Any], list[str]]] = {
    "nothing grades what is sampled": ("rloo", texts(4), None, SAMPLED, ["rewards: missing", "add a verifier"]),
    "nothing is sampled": (
        "dpo",
        pairs(4),
        pairs(2, 9),
        SAMPLED,
        ["rollout: dpo samples nothing", "leave the block out"],
    ),
    "nothing held out is graded": ("sft", texts(4), None, GRADED, ["rewards: sft learns from given", "add data.eval"]),
    "a reward model says nothing": (
        "reward_bradley_terry",
        pairs(4),
        pairs(2, 9),
        {**GRADED, **SAMPLED},
        ["rewards: a reward model responds to nothing", "leave the block out"],
    ),
    "no text before the question": ("rcrl", thumbs(4), None, {}, ["data.conditioning: rcrl needs such texts; add it"]),
    "a text before the question that nobody reads": (
        "dpo",
        pairs(4),
        None,
        {"data": {"conditioning": {}}},
        ["data.conditioning: dpo reads no such texts", "source: conditioned"],
    ),
    "more opponents than responses": (
        {"name": "spin", "opponent_responses": 3},
        texts(4),
        None,
        {**SAMPLED, "reference": {"refresh": "copy"}},
        ["algorithm.opponent_responses: 3", "rollout.group_size: 2", "raise group_size"],
    ),
    "an adapter against its base": (
        "spin",
        texts(4),
        None,
        {**SAMPLED, "model": {"lora": {"rank": 2}}, "reference": {"refresh": "copy"}},
        ["model.lora: ", "no model of its own", "leave lora out"],
    ),
    "a reference that must follow": (
        "accelerated_dpo",
        pairs(4),
        None,
        {},
        ["reference.refresh: never", "use refresh: copy, every: STEPS"],
    ),
    "momentum without a copy": (
        "dpo",
        pairs(4),
        None,
        {"reference": {"refresh": "average", "momentum": 0.5}},
        ["reference.momentum: 0.5", "only refresh: copy"],
    ),
    "a cache of a reference that moves": (
        "dpo",
        pairs(4),
        None,
        {"reference": {"refresh": "copy", "cache": True}},
        ["reference.cache: true", "use refresh: never"],
    ),
    "a cache of what is sampled": (
        {"name": "rloo", "kl": "in_loss"},
        texts(4),
        None,
        {**SAMPLED, **GRADED, "reference": {"cache": True}},
        ["reference.cache: true", "source: given", "or leave it out"],
    ),
    "a reference that nobody reads": (
        "sft",
        texts(4),
        None,
        {"reference": {"cache": True}},
        ["reference: sft reads no"],
    ),
    "an adapter's base that should move": (
        "dpo",
        pairs(4),
        None,
        {"model": {"lora": {"rank": 2}}, "reference": {"refresh": "copy"}},
        ["reference.refresh: copy", "cannot follow an adapter", "leave model.lora out"],
    ),
    "pairs of single answers": ("dpo", texts(4), None, {}, ["data.train", "prompt, completion", "chosen and rejected"]),
    "margins of plain pairs": ("odpo", pairs(4), None, {}, ["data.train", "margin", "chosen_score"]),
    "margins of plain pairs for a reward model": ("reward_margin", pairs(4), None, {}, ["data.train", "margin"]),
    "steps of pairs": ("reward_process", pairs(4), None, {}, ["data.train", "completions with labels"]),
    "a worth of plain texts": ("kto", texts(4), None, {}, ["data.train", "score, reward or label"]),
    "a penalty on samples without any": (
        {"name": "sft", "kl": "in_reward"},
        texts(4),
        None,
        {},
        ["algorithm.kl: in_reward", "did not sample", "in_loss or online"],
    ),
    "a reward model with a penalty": (
        {"name": "reward_bradley_terry", "kl": "in_loss"},
        pairs(4),
        None,
        {},
        ["algorithm.kl: in_loss", "use kl: none"],
    ),
    "a game without the data's answers": (
        {"name": "spin", "source": "sampled"},
        texts(4),
        None,
        {**SAMPLED, **GRADED, "reference": {"refresh": "copy"}},
        ["algorithm.source: sampled", "spin", "use source: joined"],
    ),
    "optimism without an opponent": (
        {"name": "xpo", "opponent": "none"},
        texts(4),
        None,
        {**SAMPLED, **GRADED},
        ["algorithm.opponent: none", "xpo", "use reference"],
    ),
    "a number outside a formula's range": (
        {"name": "dpo", "label_smoothing": 0.5},
        pairs(4),
        None,
        {},
        ["algorithm.label_smoothing", "0.499", "0.5"],
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_named_with_its_value_and_a_way_out(tmp_path: Path, case: str) -> None:
    *asked, words = WRONG[case]
    found = mistakes(tmp_path, *asked)
    # One line has it all: its key, its value, and what to do.
    assert any(all(word in line for word in words) for line in found), found


RIGHT: dict[str, tuple[Any, Rows, Rows | None, dict[str, Any]]] = {
    "texts": ("sft", texts(4), texts(2, 9), {}),
    "texts, graded": ("sft", texts(4), texts(2, 9), {**GRADED, **SAMPLED}),
    "pairs": ("dpo", pairs(4), pairs(2, 9), {"reference": {"cache": True}}),
    "margins": ("odpo", WITH_MARGINS, WITH_MARGINS, {}),
    "thumbs": ("kto", thumbs(4), thumbs(2, 9), {}),
    "thumbs of pairs": ("kto", pairs(4), None, {}),
    "lists": ("lipo", lists(4), lists(2, start=9), {}),
    "scores": ("dro_v", scored(4), None, {"critic": {"learning_rate": 1e-3}}),
    "steps": ("reward_process", steps(4), steps(2, 9), {}),
    "a pool of opponents": ("spin_pool", texts(4), None, {**SAMPLED, "reference": {"refresh": "copy", "every": 2}}),
    "samples beside pairs": ("hypo", pairs(4), pairs(2, 9), SAMPLED),
}


@pytest.mark.parametrize("case", RIGHT)
def test_what_can_be_done_is_right(tmp_path: Path, case: str) -> None:
    algorithm, train, held, changes = RIGHT[case]
    found = checked(prepare(tmp_path, algorithm, train, held, **changes))
    lines = "\n".join(found.equations)
    assert "steps x prompts = 4 x 4 = 16 prompts in all" in lines
    sampled = "sequences a step" in lines
    assert sampled == (case == "a pool of opponents")
    assert ("prompts x kl_responses = 4 x 1 = 4 sampled responses a step" in lines) == (algorithm == "hypo")
    assert ("evaluations" in lines) == (held is not None)


@pytest.mark.clock
def test_checking_imports_no_torch_and_takes_less_than_two_seconds(tmp_path: Path) -> None:
    files = [
        prepare(tmp_path / name, algorithm, train, held, **changes)
        for name, (algorithm, train, held, changes) in RIGHT.items()
        if name in ("pairs", "steps", "samples beside pairs")
    ]
    code = (
        f"import sys; sys.argv = ['posttrain', 'check', *{[str(file) for file in files]!r}]\n"
        "from posttrain.cli import app\n"
        "try:\n    app()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'vllm', 'datasets', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("optimiser steps in all") == 3
    # The promise is for a machine at rest; a busy one is given four times as long.
    assert time.perf_counter() - started < 8
