"""Two ranks learn what one process learns, under every strategy, and go on from each other's checkpoints."""

from __future__ import annotations

import json
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
    "half",
    "a reward model",
)
REFUSED = ("a critic", "a reward model")
"""Under ZeRO, when a recipe is checked."""
EACH = [(s, c) for s in STRATEGIES for c in CASES if not (s.startswith("zero") and c in REFUSED)]


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    """Every case under every strategy: two processes, started once."""
    out: dict[str, Any] = json.loads(on_ranks("tests.learner.on_ranks").splitlines()[-1])
    return out


@pytest.mark.parametrize(("strategy", "case"), EACH)
def test_two_ranks_learn_what_one_process_learns(found: dict[str, Any], strategy: str, case: str) -> None:
    figures = found[f"{strategy}: {case}"]
    # In bf16 a sum in another order is rounded another way.
    bound = 3e-2 if case == "half" else 1e-5
    assert figures["moved"] > 1e-2
    assert figures["weights"] <= bound
    assert figures["start"] <= (2**-8 if case == "half" else 0.0)
    # Norms and losses that are near zero have fewer digits in common; in bf16 they have one.
    assert figures["figures"] <= (0.5 if case == "half" else 1e-4)
    assert figures["same on all ranks"] is True
    for name in ("policy", "reference", "logits"):
        assert figures.get(name, 0.0) <= (0.5 if case == "half" else 1e-3), name


@pytest.mark.parametrize(("strategy", "case"), EACH)
def test_a_checkpoint_of_two_ranks_is_gone_on_from_by_one_and_under_the_other_strategy(
    found: dict[str, Any], strategy: str, case: str
) -> None:
    figures = found[f"{strategy}: {case}"]
    assert figures["resumed"] == 0.0
    bound = 3e-2 if case == "half" else 1e-6
    assert figures["loaded"] <= (2**-8 if case == "half" else 0.0)
    assert figures["resumed by one"] <= bound
    assert figures["resumed otherwise"] <= bound
