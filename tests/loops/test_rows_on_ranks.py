"""What stands beside a policy works on several ranks too: caches, opponents, moving references, critics, scorers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.loops.test_self_play import CASES as PLAYED
from tests.offline_runs import Rows, pairs, prepare, texts, train
from tests.ranks import on_ranks
from tests.runs import metrics

CASES: dict[str, tuple[Any, Rows, dict[str, Any]]] = {
    "a cached reference": ("dpo", pairs(12), {"reference": {"cache": True}}),
    "packed texts": ("sft", texts(12), {"hardware": {"learner": {"layout": "packed"}}}),
    "a pool of opponents": PLAYED["spin_pool"][:3],
    "a moving reference": PLAYED["accelerated_dpo"][:3],
    "an opponent and rewards": PLAYED["xpo"][:3],
    "a reward model": ("reward_bradley_terry", pairs(12), {}),
    "an objective of a whole step": ("kto", pairs(12), {}),
}
STRATEGIES = ("ddp", "fsdp2")


def recipe(folder: Path, case: str, strategy: str) -> Path:
    algorithm, rows, changes = CASES[case]
    learner = {**changes.get("hardware", {}).get("learner", {}), "strategy": strategy, "micro_batch_tokens": 64}
    if strategy != "single":
        learner["processes"] = 2
    changes = {**changes, "hardware": {"learner": learner, "patience": 120.0}, "run": {"steps": 3, "save_every": 3}}
    held = pairs(4, 20) if algorithm == "reward_bradley_terry" else None
    return prepare(folder / strategy, algorithm, rows, held, **changes)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every case on one process, and on two ranks under each strategy: two processes, started once."""
    made = {case: tmp_path_factory.mktemp("case") for case in CASES}
    for case, folder in made.items():
        train(recipe(folder, case, "single"))
    on_ranks("tests.loops.on_ranks", *(str(recipe(f, c, s)) for s in STRATEGIES for c, f in made.items()))
    return made


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_row_learns_on_two_ranks_what_it_learns_on_one(folders: dict[str, Path], strategy: str, case: str) -> None:
    one, two = (metrics(folders[case] / name / "run") for name in ("single", strategy))
    assert len(two) == len(one) == 4
    for a, b in zip(one, two, strict=True):
        assert b == pytest.approx(a, rel=2e-3, abs=1e-4)
