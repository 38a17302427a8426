"""What has no gradient gets no backward pass, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from posttrain.algorithms.catalogue import CATALOGUE
from posttrain.algorithms.choice import choose
from posttrain.algorithms.row import Algorithm
from posttrain.algorithms.state import RowState
from posttrain.algorithms.table import ALGORITHMS
from posttrain.data.packing import pack
from posttrain.learner.accumulate import Passes, accumulate
from posttrain.learner.policy import PolicyLearner
from posttrain.learner.sharding import WHOLE
from posttrain.metrics import Report
from posttrain.types import Sample
from tests.learner.steps import TERMS, policy_gradient
from tests.tiny import samples, tiny_folder, tiny_learner

SILENT = [name for name, row in ALGORITHMS.items() if row.silent_at_zero]
OBJECTIVES = [
    kind
    for kind, entry in CATALOGUE["objective"].items()
    if entry.level in ("token", "step") and not entry.asks & {"steps", "critic"}
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


def filled(batch: list[Sample], silenced: range) -> list[Sample]:
    """Samples with all that a row may read, those of some groups without advantage."""
    out = []
    for sample in batch:
        generator = torch.Generator().manual_seed(len(out))
        near = 0.1 * torch.randn(len(sample.mask), generator=generator, dtype=torch.float64)
        share = 0.0 if sample.group in silenced else 1.0
        engine = torch.tensor(sample.rollout.logprobs, dtype=torch.float64)
        out.append(
            replace(
                sample, advantages=share * sample.advantages, previous=engine + near, uniform=near, ends=sample.mask
            )
        )
    return out


def passed(
    learner: PolicyLearner, algorithm: Algorithm, batch: list[Sample]
) -> tuple[int, Report, list[Tensor], Tensor]:
    """How many backward passes there were, what was reported, log-probabilities, and the gradient."""
    count = 0

    def backward(loss: Tensor) -> None:
        nonlocal count
        count += 1
        loss.backward()

    learner.discard()
    passes = Passes(lambda b: learner._score(b, algorithm), backward, WHOLE, skips=learner.computation.skips)
    batches = list(pack(batch, learner.packing))
    report, logprobs = accumulate(passes, batches, algorithm, RowState.of(algorithm).coefficients(TERMS))
    return count, report, logprobs, policy_gradient(learner)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_an_objective_says_truly_whether_it_teaches_where_the_advantage_is_zero(folder: Path, kind: str) -> None:
    algorithm = choose("reinforce", {"objective": kind})
    learner = tiny_learner(folder, torch.float64)
    learner.computation = replace(learner.computation, skips=False)
    *_, gradient = passed(learner, algorithm, filled(samples(), range(9)))
    assert bool(gradient.any()) == CATALOGUE["objective"][kind].teaches_at_zero


@pytest.mark.parametrize("name", SILENT)
def test_skipping_them_changes_neither_gradient_nor_figures(folder: Path, name: str) -> None:
    algorithm, batch = ALGORITHMS[name], filled(samples(groups=4), range(1, 3))
    learner = tiny_learner(folder, torch.float64, budget=40)
    plain = tiny_learner(folder, torch.float64, budget=40)
    plain.computation = replace(plain.computation, skips=False)
    (fewer, report, logprobs, gradient), (all_, *expected) = (passed(one, algorithm, batch) for one in (learner, plain))
    assert fewer < all_
    assert report.values() == expected[0].values()
    assert all(torch.equal(a, b) for a, b in zip(logprobs, expected[1], strict=True))
    assert bool(gradient.any())
    torch.testing.assert_close(gradient, expected[2], rtol=0, atol=1e-12 * float(gradient.abs().max()))


def test_where_nothing_teaches_the_optimiser_still_gets_a_gradient_of_zeros(folder: Path) -> None:
    learner = tiny_learner(folder, torch.float64, budget=40)
    count, *_, gradient = passed(learner, ALGORITHMS["grpo"], filled(samples(), range(9)))
    assert count == 1
    assert not bool(gradient.any())


@pytest.mark.parametrize("changes", [{"kl": "in_loss"}, {"entropy": "bonus"}, {"trust": "penalty"}], ids=str)
def test_rows_with_other_terms_are_learnt_from_everywhere(changes: dict[str, str]) -> None:
    assert ALGORITHMS["grpo"].silent_at_zero
    assert not choose("grpo", changes).silent_at_zero
