"""Whether an adapter is published apart is decided by a probe of the engine, and said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.errors import ModelError, SyncError
from posttrain.hybrid.adapting import Apart
from posttrain.hybrid.publishing import Gathered, choose
from posttrain.models.checkpoint import load_policy, load_tokenizer
from posttrain.recipe import Lora, Model
from posttrain.rollout import Request
from posttrain.rollout.local import LocalSampler
from posttrain.types import Rollout, Sampling
from posttrain.world import ALONE
from tests.tiny import prompt, tiny_folder, tiny_learner

LORA = Lora(rank=4, alpha=12.0)
ENDING = ".lora_A.weight"


class Small:
    """A sampler over transformers that serves an adapter beside a base, with a fault if one is asked for."""

    def __init__(self, folder: Path, fault: str = "") -> None:
        self.model: Any = load_policy(folder, Model(path=str(folder)), torch.float32, "cpu")
        self.own = LocalSampler(self.model, load_tokenizer(folder), (1,), 8)
        self.fault, self.based, self.base = fault, False, dict[str, Tensor]()
        self.unadapted = "it has no room" if fault == "no room" else None

    @property
    def version(self) -> int | None:
        return self.own.version

    def load(self, weights: Iterator[tuple[str, Tensor]], version: int) -> None:
        self.based = False
        self.own.load(weights, version)

    def hold(self, base: Iterator[tuple[str, Tensor]]) -> None:
        self.base = {name: tensor.clone() for name, tensor in base}
        self.based, self.own.version = True, None

    def attach(self, adapter: Iterator[tuple[str, Tensor]], version: int) -> None:
        given = dict(adapter)
        if self.fault == "refuses":
            raise SyncError("no such adapter")
        weights = {name: tensor.clone() for name, tensor in self.base.items()}
        scale = LORA.alpha / LORA.rank * (1.02 if self.fault == "scale" else 1.0)
        for name, a in given.items():
            module = name.removesuffix(ENDING)
            if (
                module == name
                or self.fault == "deaf"
                or (self.fault == "one" and name.endswith("0.mlp.up_proj" + ENDING))
            ):
                continue
            weights[f"{module}.weight"] += scale * given[f"{module}.lora_B.weight"] @ a
        self.own.load(iter(weights.items()), version)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Rollout]:
        drawn = self.own.generate(requests, sampling)
        if self.fault == "constant":
            return [replace(r, logprobs=(-1.0,) * len(r.tokens), tokens=tuple(range(len(r.tokens)))) for r in drawn]
        return drawn

    def sleep(self) -> None:
        self.own.sleep()

    def wake(self) -> None:
        self.own.wake()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


def test_an_engine_that_serves_adapters_exactly_is_given_them_apart(folder: Path) -> None:
    learner, sampler = tiny_learner(folder, lora=LORA), Small(folder)
    before = {name: p.detach().clone() for name, p in learner.model.named_parameters()}
    for way in ("auto", "apart"):
        chosen = choose("auto", learner, sampler, ALONE, way)
        assert isinstance(chosen, Apart)
        assert "the adapter apart" in chosen.words
        assert "mean gap" in chosen.words
    assert all(torch.equal(p, before[name]) for name, p in learner.model.named_parameters())
    learner.version = 3
    chosen.publish(learner, sampler)
    assert chosen.sent == sum(4 * p.numel() for name, p in learner.model.named_parameters() if ".lora_" in name)
    assert sampler.version == 3


FAULTS = {
    "no room": "it has no room",
    "refuses": "no such adapter",
    "deaf": "not what it is with merged weights",
    "one": "not what it is with merged weights",
    "scale": "not what it is with merged weights",
    "constant": "changes nothing",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_one_that_does_not_is_given_merged_weights_and_the_reason_is_said(folder: Path, fault: str) -> None:
    learner = tiny_learner(folder, lora=LORA)
    chosen = choose("auto", learner, Small(folder, fault), ALONE, "auto")
    assert isinstance(chosen, Gathered)
    assert f"the adapter merged: {FAULTS[fault]}" in chosen.words or FAULTS[fault] in chosen.words
    with pytest.raises(ModelError, match=rf"hardware\.sampler\.adapters: apart, but .*{FAULTS[fault]}.*merged or auto"):
        choose("auto", learner, Small(folder, fault), ALONE, "apart")


def test_merged_is_merged_without_a_probe(folder: Path) -> None:
    learner, sampler = tiny_learner(folder, lora=LORA), Small(folder)
    assert isinstance(choose("gathered", learner, sampler, ALONE, "merged"), Gathered)
    assert sampler.version is None


def test_a_sampler_of_whole_weights_is_not_asked_for_more(folder: Path) -> None:
    learner = tiny_learner(folder, lora=LORA)
    plain = LocalSampler(Small(folder).model, load_tokenizer(folder), (1,), 8)
    assert "takes whole weights" in choose("auto", learner, plain, ALONE, "auto").words


def test_weights_that_came_between_cost_the_base_once_more(folder: Path) -> None:
    learner, sampler = tiny_learner(folder, lora=LORA), Small(folder)
    apart = Apart(learner, sampler)
    sampler.load(learner.weights(), 7)
    sent = []
    for _ in range(2):
        apart.publish(learner, sampler)
        sent.append(apart.sent)
    first, second = sent
    assert first == second + sum(4 * tensor.numel() for _, tensor in learner.adapter().base())
    assert sampler.generate([Request(prompt([3, 4]), 0)], Sampling(temperature=1.0, max_tokens=2))
