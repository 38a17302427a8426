"""A run on given answers that is killed in the middle of a step and started again is the same run, bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from posttrain.metrics import RunFolder
from tests.loops.test_resume import same
from tests.offline_runs import Rows, killed, lists, pairs, prepare, scored, texts, thumbs, train
from tests.runs import metrics, run

SAMPLED = {"rollout": {"engine": "transformers", "group_size": 2, "max_tokens": 5}}

CASES: dict[str, tuple[Any, Rows, dict[str, Any]]] = {
    "sft": ("sft", texts(10), {"optimizer": {"schedule": "cosine", "warmup_steps": 2}}),
    "dpo": ("dpo", pairs(10), {"optimizer": {"minibatches": 2, "epochs": 2}}),
    "dpo from a cache": ("dpo", pairs(10), {"reference": {"cache": True}}),
    "dpo of an adapter": ("dpo", pairs(10), {"model": {"lora": {"rank": 4}}}),
    "a moving reference": ("dpo", pairs(10), {"reference": {"refresh": "average", "decay": 0.5}}),
    "bradley terry": (
        {"name": "reward_bradley_terry", "heads": 3, "head_dropout": 0.3},
        pairs(10),
        {"optimizer": {"schedule": "linear"}},
    ),
    "an adapter's reward model": ("reward_plackett_luce", lists(10), {"model": {"lora": {"rank": 4}}}),
    "kto": ("kto", thumbs(10), {}),
    "bco": ("bco", thumbs(10), {}),
    "dqo": ("dqo", scored(10), {"critic": {"learning_rate": 1e-2}}),
    "dro_v": ("dro_v", scored(10), {"critic": {"learning_rate": 1e-2}}),
    "spin_pool": ("spin_pool", texts(10), {"reference": {"refresh": "copy", "every": 1}, **SAMPLED}),
    "hypo": ("hypo", pairs(10), SAMPLED),
    "accelerated_dpo": ("accelerated_dpo", pairs(10), {"reference": {"refresh": "copy", "every": 1, "momentum": 0.3}}),
}
AGAIN = ("an adapter's reward model", "bco", "dro_v")
"""What carries no more from step to step than another case does; a heavier proof."""
TELLS = {
    "kto": "learn/reference_point",
    "dqo": "learn/value_loss",
    "hypo": "learn/sampled_kl",
    "spin_pool": "sync/seconds",
}
"""A figure that is there only where the case does what it is here for."""


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.prove if case in AGAIN else []) for case in CASES]
)
def test_three_steps_a_kill_and_the_rest_are_four_steps(tmp_path: Path, case: str) -> None:
    algorithm, rows, changes = CASES[case]
    calm, rough = (prepare(tmp_path / name, algorithm, rows, **changes) for name in ("calm", "rough"))
    train(calm)
    killed(rough, step=3)
    folder = RunFolder(tmp_path / "rough" / "run")
    assert folder.checkpoints() == [2]
    assert [line["step"] for line in folder.read_metrics()] == [0, 1, 2, 3]
    train(rough)
    same(tmp_path / "calm" / "run", folder.path, 4)
    for name in ("opponents", "reference"):
        kept = [sorted((tmp_path / which / "run" / name).glob("*")) for which in ("calm", "rough")]
        assert [f.name for f in kept[0]] == [f.name for f in kept[1]] or name == "reference"
        assert [f.read_bytes() for f in kept[0]] == [f.read_bytes() for f in kept[1]]
        assert bool(kept[0]) == (case == {"opponents": "spin_pool", "reference": "dpo from a cache"}[name])
    assert case not in TELLS or TELLS[case] in folder.read_metrics()[-1]


def test_a_run_that_was_never_cut_is_the_same_through_the_command_line(tmp_path: Path) -> None:
    """In a process of its own, with its own seeds of hashes."""
    here, there = (prepare(tmp_path / name, "dpo", pairs(10)) for name in ("here", "there"))
    train(here)
    run("train", there, "--quiet")
    same(tmp_path / "here" / "run", tmp_path / "there" / "run", 4)


def test_more_steps_go_on_from_where_it_ended(tmp_path: Path) -> None:
    once, twice = (prepare(tmp_path / name, "kto", thumbs(10)) for name in ("once", "twice"))
    train(once)
    train(twice, "run.steps=2")
    train(twice)
    assert metrics(tmp_path / "once" / "run") == metrics(tmp_path / "twice" / "run")
    same(tmp_path / "once" / "run", tmp_path / "twice" / "run", 4)
