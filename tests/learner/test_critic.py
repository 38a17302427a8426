"""The value function: values of plain forward passes, a checkpoint others can load, and whom its loss moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from posttrain.algorithms.choice import choose
from posttrain.algorithms.table import ALGORITHMS
from posttrain.errors import TrainingError
from posttrain.learner.critic import Critic as Value
from posttrain.learner.layout import Layout
from posttrain.learner.policy import PolicyLearner
from posttrain.models.checkpoint import load_scorer
from posttrain.recipe import Critic, Lora, Optimizer
from posttrain.types import Rollout, Sample
from tests.learner.steps import accumulated, checksum, one_step, policy_gradient
from tests.tiny import samples, taking_trees, tiny_folder, tiny_learner

PPO = ALGORITHMS["ppo"]
OWN, SHARED = Critic(learning_rate=1e-2), Critic(backbone="shared", learning_rate=1e-2)
REACHING = SHARED.model_copy(update={"stop_gradient": False})
ALL = pytest.mark.parametrize("critic", [OWN, SHARED, REACHING], ids=["own", "shared", "reaching"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


def taught(batch: Sequence[Sample]) -> list[Sample]:
    """With something for the critic to learn."""
    generator = torch.Generator().manual_seed(7)
    out = []
    for s in batch:
        returns = torch.randn(len(s.mask), generator=generator) * s.mask
        out.append(replace(s, returns=returns, values=returns / 2))
    return out


BATCH = taught(samples(torch.float32))


def plain_values(learner: PolicyLearner, rollout: Rollout) -> Tensor:
    """`[T + 1, B]` by one unpadded forward pass."""
    ids, critic = torch.tensor([rollout.tokens]), learner.critic
    with torch.no_grad():
        if critic.own:
            hidden = critic.model.model(ids).last_hidden_state[0]
        else:
            hidden = learner.model(ids, output_hidden_states=True).hidden_states[-1][0]
        outputs = hidden.to(critic.head.weight.dtype) @ critic.head.weight.t()
    return torch.cat([torch.zeros_like(outputs[:1]), outputs])


@ALL
@pytest.mark.parametrize("layout", ["tree", "rows", "packed"])
@pytest.mark.parametrize("bins", [1, 5])
def test_values_are_those_of_a_plain_forward_pass_also_after_the_last_token(
    folder: Path, critic: Critic, layout: Layout, bins: int
) -> None:
    learner = tiny_learner(folder, torch.float64, layout, budget=40, critic=critic, bins=bins)
    learner.critic.head.double()
    rollouts = [s.rollout for s in samples()]
    # A tool's answer may also be the last thing in a response.
    rollouts.append(replace(rollouts[3], mask=(*rollouts[3].mask[:-1], False)))
    for found, rollout in zip(learner.values(rollouts), rollouts, strict=True):
        asked = torch.tensor((*rollout.mask, True))
        expected = plain_values(learner, rollout)
        assert found.shape == (len(rollout.tokens) + 1, bins)
        torch.testing.assert_close(found[asked], expected[asked], atol=1e-6, rtol=1e-6)
        assert not bool(found[~asked].any())
        assert not found.requires_grad


def test_values_of_a_response_that_fills_a_models_last_position_can_be_read(tmp_path: Path) -> None:
    learner = tiny_learner(tiny_folder(tmp_path, max_position_embeddings=16), critic=OWN)
    rollout = Rollout(tuple(range(2, 18)), (False,) * 4 + (True,) * 12, "", "length")
    torch.testing.assert_close(learner.values([rollout])[0][-1], plain_values(learner, rollout)[-1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@ALL
def test_save_and_load_continue_bit_for_bit(folder: Path, tmp_path: Path, dtype: torch.dtype, critic: Critic) -> None:
    whole = tiny_learner(folder, dtype, critic=critic, bins=1, schedule="cosine")
    one_step(whole, BATCH, PPO)
    whole.save(tmp_path)
    again = tiny_learner(folder, dtype, critic=critic, bins=1, schedule="cosine")
    with torch.no_grad():
        again.critic.head.weight.zero_()
    again.load(tmp_path)
    traces = [[one_step(learner, BATCH, PPO) for _ in range(2)] for learner in (whole, again)]
    assert traces[0] == traces[1]
    for a, b in zip(whole.critic.model.parameters(), again.critic.model.parameters(), strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b)
    rollouts = [s.rollout for s in BATCH]
    assert all(torch.equal(a, b) for a, b in zip(whole.values(rollouts), again.values(rollouts), strict=True))


@pytest.mark.parametrize("bins", [1, 5])
def test_its_folder_is_a_sequence_classifier_that_scores_a_text_by_its_last_state(
    folder: Path, tmp_path: Path, bins: int
) -> None:
    name = "squared" if bins == 1 else "hl_gauss"
    learner = tiny_learner(folder, critic=OWN, bins=bins)
    one_step(learner, BATCH, choose("ppo", {"critic": name}))
    learner.save(tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "critic")
    assert model.config.num_labels == bins
    rollouts = [s.rollout for s in BATCH]
    for found, rollout in zip(learner.values(rollouts), rollouts, strict=True):
        # The classifier reads the last token that is not padding, and here every id is a token.
        model.config.pad_token_id = None
        with torch.no_grad():
            said = model(torch.tensor([rollout.tokens])).logits[0]
        torch.testing.assert_close(found[-1], said, atol=1e-5, rtol=1e-5)
    start = load_scorer(tmp_path / "critic", bins, torch.float32, "cpu")
    assert torch.equal(start.score.weight, learner.critic.head.weight)


def test_a_head_on_the_policys_states_moves_the_policy_only_where_it_may(folder: Path) -> None:
    none = tiny_learner(folder, torch.float64)
    accumulated(none, samples(), choose("ppo", {"critic": "frozen"}))
    batch = taught(samples())
    gradients = {}
    for critic in (OWN, SHARED, REACHING):
        learner = tiny_learner(folder, torch.float64, critic=critic)
        accumulated(learner, batch, PPO)
        gradients[critic] = policy_gradient(learner)
        assert all(bool(p.grad.any()) for p in learner.critic.stepper.masters.parameters if p.grad is not None)
        assert bool(learner.critic.head.weight.grad.any())
    assert torch.equal(gradients[OWN], policy_gradient(none))
    assert torch.equal(gradients[SHARED], policy_gradient(none))
    assert float((gradients[REACHING] - policy_gradient(none)).abs().max()) > 1e-3


@pytest.mark.parametrize("critic", [OWN, SHARED], ids=["own", "shared"])
def test_while_the_policy_waits_only_the_critic_moves(folder: Path, critic: Critic) -> None:
    learner = tiny_learner(folder, critic=critic, learning_rate=1e-1)
    before = checksum(learner.model), checksum(learner.critic.model)
    accumulated(learner, BATCH, PPO)
    report = learner.step(policy=False).values()
    assert checksum(learner.model) == before[0]
    assert checksum(learner.critic.model) != before[1]
    assert learner.version == 0
    assert all(p.grad is None for p in learner.stepper.masters.parameters)
    assert set(report) == {"learn/critic_grad_norm", "learn/critic_learning_rate"}
    assert learner.step().values()["learn/grad_norm"] == 0


def test_it_learns_at_its_own_rate_and_within_its_own_norm(folder: Path) -> None:
    critic = Critic(learning_rate=3e-3, clip_norm=1e-4)
    learner = tiny_learner(folder, critic=critic, learning_rate=1e-5, clip_norm=1e9)
    norms: list[float] = []
    learner.critic.stepper.optimizer.register_step_pre_hook(
        lambda *_: norms.append(
            float(torch.stack([p.grad.norm() for p in learner.critic.stepper.masters.parameters]).norm())
        )
    )
    found = one_step(learner, BATCH, PPO)
    assert found["learn/critic_learning_rate"] == 3e-3
    assert found["learn/learning_rate"] == 1e-5
    assert found["learn/critic_grad_norm"] > 1e-3
    assert norms == [pytest.approx(1e-4, rel=1e-3)]


def test_it_comes_to_say_what_it_was_taught(folder: Path) -> None:
    learner = tiny_learner(folder, critic=OWN)
    found = [one_step(learner, BATCH, choose("ppo", {"value_clip": None}))["learn/value_loss"] for _ in range(30)]
    assert found[-1] < 0.2 * found[0]


def test_beside_an_adapter_it_learns_and_is_saved_as_well(folder: Path, tmp_path: Path) -> None:
    learner = tiny_learner(folder, lora=Lora(rank=4), critic=REACHING)
    before = checksum(learner.critic.model)
    one_step(learner, BATCH, PPO)
    assert checksum(learner.critic.model) != before
    learner.save(tmp_path)
    again = tiny_learner(folder, lora=Lora(rank=4), critic=REACHING)
    again.load(tmp_path)
    assert torch.equal(again.critic.head.weight, learner.critic.head.weight)


def test_a_head_in_half_precision_would_say_too_little(folder: Path) -> None:
    for critic in (OWN, SHARED):
        learner = tiny_learner(folder, torch.bfloat16, critic=critic)
        assert learner.critic.head.weight.dtype == torch.float32
        assert learner.values([BATCH[0].rollout])[0].dtype == torch.float32


def test_a_frozen_critic_is_read_saved_and_never_moves(folder: Path, tmp_path: Path) -> None:
    learner = tiny_learner(folder)
    model = taking_trees(load_scorer(folder, 1, torch.float32, "cpu"))
    torch.nn.init.normal_(model.score.weight)
    model.requires_grad_(False)
    learner.critic = Value(model, OWN, Optimizer(learning_rate=1e-3), 10)
    before = checksum(model)
    assert bool(learner.values([BATCH[0].rollout])[0].any())
    report = one_step(learner, samples(torch.float32), ALGORITHMS["dvpo"])
    assert "learn/critic_grad_norm" not in report
    assert checksum(model) == before
    learner.save(tmp_path)
    learner.load(tmp_path)
    assert checksum(model) == before


def test_values_without_a_critic_are_refused(folder: Path) -> None:
    with pytest.raises(TrainingError, match="built without a critic"):
        tiny_learner(folder).values([BATCH[0].rollout])
