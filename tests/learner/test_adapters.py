"""Adapters: what is sent and saved is the merged policy, and sending it changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from posttrain.errors import ModelError
from posttrain.learner.policy import PolicyLearner
from posttrain.models.checkpoint import expected_weights, merged_weights
from posttrain.recipe import Lora
from tests.learner.steps import checksum, one_step
from tests.tiny import samples, tiny_folder, tiny_learner


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


def trained(folder: Path) -> PolicyLearner:
    learner = tiny_learner(folder, lora=Lora(rank=4, alpha=8), learning_rate=1e-2)
    for _ in range(3):
        one_step(learner, samples(torch.float32))
    return learner


def test_what_is_sent_is_base_plus_scaled_product_under_the_checkpoints_names(folder: Path) -> None:
    learner = trained(folder)
    sent = dict(learner.weights())
    assert {n: tuple(t.shape) for n, t in sent.items()} == expected_weights(folder)
    base = dict(merged_weights(AutoModelForCausalLM.from_pretrained(folder)))
    state, moved = learner.model.state_dict(), 0
    for name, tensor in sent.items():
        stem = "base_model.model." + name.removesuffix(".weight")
        delta = torch.zeros_like(tensor)
        if f"{stem}.lora_A.default.weight" in state:
            delta = 2.0 * state[f"{stem}.lora_B.default.weight"] @ state[f"{stem}.lora_A.default.weight"]
            moved += bool(delta.abs().max() > 1e-4)
        torch.testing.assert_close(tensor - base[name], delta, atol=1e-6, rtol=0)
    assert moved == 14


def test_sending_changes_none_of_the_trainers_weights_even_when_the_receiver_fails(folder: Path) -> None:
    learner = trained(folder)
    before = checksum(learner.model)
    first = {n: t.clone() for n, t in learner.weights()}
    for number, _ in enumerate(learner.weights()):
        if number == 3:
            break
    assert checksum(learner.model) == before
    assert all(torch.equal(t, first[n]) for n, t in learner.weights())


def test_the_saved_policy_is_the_merged_one_and_loads_without_peft(folder: Path, tmp_path: Path) -> None:
    learner = trained(folder)
    learner.save(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    sent = dict(learner.weights())
    for name, tensor in loaded.state_dict().items():
        torch.testing.assert_close(tensor, sent[name])


def test_targets_that_bind_to_nothing_are_refused(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"model\.lora\.targets"):
        tiny_learner(folder, lora=Lora(targets=("no_such_module",)))
