"""An optimiser step can be taken back to the bit, and what was accumulated can be forgotten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.errors import TrainingError
from posttrain.learner.policy import PolicyLearner
from posttrain.recipe import Critic, Lora
from tests.learner.steps import accumulated, checksum, one_step
from tests.tiny import samples, tiny_folder, tiny_learner

FIRST, SECOND = samples(torch.float32), samples(torch.float32, seed=9)
KINDS = pytest.mark.parametrize(
    ("dtype", "lora"), [(torch.float32, None), (torch.bfloat16, None), (torch.float32, Lora(rank=4))], ids=str
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


def learner_of(folder: Path, dtype: torch.dtype, lora: Lora | None) -> PolicyLearner:
    return tiny_learner(folder, dtype, lora=lora, schedule="cosine", learning_rate=1e-2)


def everything(learner: PolicyLearner) -> list[Tensor]:
    """Every number that the next step depends on, in copies."""
    state = learner.stepper.optimizer.state_dict()["state"]
    moments = [v.clone() for one in state.values() for v in one.values()]
    weights = [t.clone() for _, t in learner.weights()]
    return [*weights, *(p.detach().clone() for p in learner.stepper.masters.parameters), *moments]


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return len(found) == len(expected) and all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@KINDS
@pytest.mark.parametrize("before", [0, 2])
def test_a_step_that_was_taken_back_leaves_no_trace(
    folder: Path, dtype: torch.dtype, lora: Lora | None, before: int
) -> None:
    straight, detour = learner_of(folder, dtype, lora), learner_of(folder, dtype, lora)
    for learner in (straight, detour):
        for _ in range(before):
            one_step(learner, FIRST)
    snapshot = detour.snapshot()
    start = everything(detour)
    one_step(detour, SECOND)
    one_step(detour, SECOND)
    assert detour.version == before + 2
    assert not same(everything(detour)[: len(start)], start)
    accumulated(detour, SECOND)
    detour.roll_back(snapshot)
    assert detour.version == before
    assert same(everything(detour), start)
    reports: list[dict[str, Any]] = [one_step(learner, FIRST) for learner in (straight, detour)]
    assert reports[0] == reports[1]
    assert same(everything(detour), everything(straight))


def test_a_snapshot_can_be_come_back_to_more_than_once(folder: Path) -> None:
    learner = learner_of(folder, torch.float32, None)
    one_step(learner, FIRST)
    snapshot, start = learner.snapshot(), everything(learner)
    for _ in range(2):
        one_step(learner, SECOND)
        learner.roll_back(snapshot)
        assert same(everything(learner), start)


@KINDS
def test_what_is_discarded_was_never_accumulated(folder: Path, dtype: torch.dtype, lora: Lora | None) -> None:
    plain, forgetful = learner_of(folder, dtype, lora), learner_of(folder, dtype, lora)
    accumulated(forgetful, SECOND)
    forgetful.discard()
    assert all(p.grad is None for p in forgetful.stepper.masters.parameters)
    assert one_step(forgetful, FIRST) == one_step(plain, FIRST)
    assert same(everything(forgetful), everything(plain))


def test_discarding_and_rolling_back_leave_the_critic_its_weights_and_nothing_to_add(folder: Path) -> None:
    learner = tiny_learner(folder, critic=Critic())
    weights = checksum(learner.critic.model)
    learner.critic.head.weight.sum().backward()
    learner.discard()
    assert all(p.grad is None for p in learner.critic.stepper.masters.parameters)
    assert checksum(learner.critic.model) == weights


def test_a_gradient_that_is_not_finite_leaves_the_weights_and_names_whose_it_is(folder: Path) -> None:
    learner = tiny_learner(folder, critic=Critic())
    before = checksum(learner.model), checksum(learner.critic.model)
    accumulated(learner, FIRST)
    next(iter(learner.stepper.masters.parameters)).grad[0] = float("inf")
    with pytest.raises(TrainingError, match="update 1 of the policy is inf"):
        learner.stepper.step()
    for p in learner.critic.stepper.masters.parameters:
        p.grad = torch.full_like(p, float("nan"))
    with pytest.raises(TrainingError, match="update 1 of the critic is nan"):
        learner.critic.stepper.step()
    assert (checksum(learner.model), checksum(learner.critic.model)) == before
    assert learner.version == 0
