"""Two ranks learn what one process learns, under every strategy, and go on from each other's checkpoints."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest

from tests.ranks import on_ranks

STRATEGIES = ("ddp", "fsdp2", "zero1", "zero2", "zero3")
CASES = (
    "full",
    "untied",
    "fewer micro-batches than ranks",
    "adapters",
    "a reference",
    "a set objective in two passes",
    "a critic",
    "a shared critic",
    "a critic that is ahead",
    "a moving reference",
    "half",
    "a reward model",
    "a critic in half",
    "a reward model in half",
)
ROUNDED = ("a critic in half", "a reward model in half")
REFUSED = {"zero1": (*ROUNDED, "half"), "zero2": ROUNDED, "zero3": ROUNDED}
"""When a recipe is checked."""
EACH = [(s, c) for s in STRATEGIES for c in CASES if c not in REFUSED.get(s, ())]
QUICK = {
    *(("ddp", c) for c in ("full", "fewer micro-batches than ranks", "a set objective in two passes")),
    *(("fsdp2", c) for c in ("untied", "adapters", "a reference", "a critic", "half", "a reward model", *ROUNDED)),
    *(("zero1", "full"), ("zero2", "half"), ("zero3", "full"), ("zero3", "adapters")),
    *(("zero2", "a shared critic"), ("zero2", "a moving reference"), ("zero3", "a critic that is ahead")),
    *(("zero2", "a reward model"), ("zero3", "a moving reference")),
}
"""Every strategy and every case. All pairs of them are the heavier proof."""
PAIRS = pytest.mark.parametrize(
    ("strategy", "case"), [pytest.param(*p, marks=[] if p in QUICK else pytest.mark.prove) for p in EACH]
)


def figures_of(strategy: str, case: str) -> dict[str, Any]:
    found: dict[str, Any] = started((strategy, case) in QUICK)[f"{strategy}: {case}"]
    return found


@cache
def started(quick: bool) -> dict[str, Any]:
    """All quick pairs, or all others: two processes, started once."""
    asked = [f"{strategy}: {case}" for strategy, case in EACH if ((strategy, case) in QUICK) == quick]
    out: dict[str, Any] = json.loads(on_ranks("tests.learner.on_ranks", *asked).splitlines()[-1])
    return out


def test_every_strategy_and_every_case_is_among_the_quick_ones() -> None:
    assert set(EACH) >= QUICK
    assert {strategy for strategy, _ in QUICK} == set(STRATEGIES)
    assert {case for _, case in QUICK} == set(CASES)


@PAIRS
def test_two_ranks_learn_what_one_process_learns(strategy: str, case: str) -> None:
    figures = figures_of(strategy, case)
    # A sum in another order may be rounded to the next number of bf16.
    bound = 2**-8 if case.endswith("half") else 1e-5
    assert figures["moved"] > 1e-2
    assert figures["weights"] <= bound
    assert figures["start"] <= (2**-8 if case.endswith("half") else 0.0)
    # Norms and losses that are near zero have fewer digits in common.
    assert figures["figures"] <= (1e-2 if case.endswith("half") else 1e-4)
    assert figures["same on all ranks"] is True
    # Half of it, and no rank still holds what it was cut from; a scorer's head is whole.
    assert figures.get("stored", 0.5) == pytest.approx(0.5, abs=0.01)
    assert figures.get("stepped", 1.0) > 1e-3
    assert figures.get("taken back", 0.0) == figures.get("dropped", 0.0) == 0.0
    for name in ("policy", "reference", "logits", "values"):
        assert figures.get(name, 0.0) <= (0.1 if case.endswith("half") else 1e-3), name


@PAIRS
def test_a_checkpoint_of_two_ranks_is_gone_on_from_by_one_and_under_the_other_strategy(
    strategy: str, case: str
) -> None:
    figures = figures_of(strategy, case)
    assert figures["resumed"] == 0.0
    bound = 2**-8 if case.endswith("half") else 1e-6
    assert figures["loaded"] <= (2**-8 if case.endswith("half") else 0.0)
    assert figures["resumed by one"] <= bound
    assert figures["resumed otherwise"] <= bound
