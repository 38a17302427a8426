"""What stands beside a policy works on several ranks too: caches, opponents, moving references, critics, scorers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
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
REPLICATED = ("a cached reference", "a pool of opponents", "an objective of a whole step")
EACH = [(strategy, case) for strategy in STRATEGIES for case in CASES]
QUICK = {("ddp" if case in REPLICATED else "fsdp2", case) for case in CASES}
"""Every case under one of the strategies; under the other it is a heavier proof."""
Runs = Callable[[bool], dict[str, Path]]


def recipe(folder: Path, case: str, strategy: str) -> Path:
    algorithm, rows, changes = CASES[case]
    learner = {**changes.get("hardware", {}).get("learner", {}), "strategy": strategy, "micro_batch_tokens": 64}
    if strategy != "single":
        learner["processes"] = 2
    changes = {**changes, "hardware": {"learner": learner, "patience": 120.0}, "run": {"steps": 3, "save_every": 3}}
    held = pairs(4, 20) if algorithm == "reward_bradley_terry" else None
    return prepare(folder / strategy, algorithm, rows, held, **changes)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Every case on one process; and on two ranks the quick pairs or all others: two processes, started once."""

    @cache
    def alone() -> dict[str, Path]:
        made = {case: tmp_path_factory.mktemp("case") for case in CASES}
        for case, folder in made.items():
            train(recipe(folder, case, "single"))
        return made

    @cache
    def made(quick: bool) -> dict[str, Path]:
        pairs = [(strategy, case) for strategy, case in EACH if ((strategy, case) in QUICK) == quick]
        on_ranks("tests.loops.on_ranks", *(str(recipe(alone()[case], case, strategy)) for strategy, case in pairs))
        return alone()

    return made


@pytest.mark.parametrize(
    ("strategy", "case"), [pytest.param(*p, marks=[] if p in QUICK else pytest.mark.prove) for p in EACH]
)
def test_a_row_learns_on_two_ranks_what_it_learns_on_one(runs: Runs, strategy: str, case: str) -> None:
    folder = runs((strategy, case) in QUICK)[case]
    one, two = (metrics(folder / name / "run") for name in ("single", strategy))
    assert len(two) == len(one) == 4
    for a, b in zip(one, two, strict=True):
        assert b == pytest.approx(a, rel=2e-3, abs=1e-4)
