"""The parity gate passes two honest engines, stops on each known fault, and names it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.errors import ParityError
from posttrain.hybrid import Hybrid
from posttrain.hybrid.parity import ParityGate
from posttrain.learner.policy import PolicyLearner
from posttrain.models.checkpoint import load_policy, load_tokenizer, original_head
from posttrain.recipe import Model
from posttrain.rollout import Request
from posttrain.rollout.local import LocalSampler
from posttrain.types import Rollout, Sampling
from tests.tiny import prompt, randomise, tiny_folder, tiny_learner

ASKED = [[0, 7, 12, 30 + i, 31, 46, 47, 1, 12, 0, 8, 12] for i in range(4)]


class Faulty(LocalSampler):
    """A sampler whose model, prompts or distribution are not what it says."""

    before: Callable[[LocalSampler], None] = staticmethod(lambda sampler: None)
    sampling: Callable[[Sampling], Sampling] = staticmethod(lambda sampling: sampling)
    seen: Callable[[tuple[int, ...]], tuple[int, ...]] = staticmethod(lambda tokens: tokens)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Rollout]:
        self.before(self)
        asked = [replace(r, prompt=replace(r.prompt, tokens=self.seen(r.prompt.tokens))) for r in requests]
        out = []
        for request, r in zip(requests, super().generate(asked, self.sampling(sampling)), strict=True):
            # It reports the prompt it was asked about, as an engine that does not echo ids would.
            said = r.tokens[r.mask.index(True) :]
            before = len(request.prompt.tokens)
            tail = tuple(v for v, m in zip(r.logprobs, r.mask, strict=True) if m)
            out.append(
                replace(
                    r,
                    tokens=request.prompt.tokens + said,
                    mask=(False,) * before + (True,) * len(said),
                    logprobs=(0.0,) * before + tail,
                    versions=(-1,) * before + (0,) * len(said),
                )
            )
        return out


class Case:
    def __init__(self, folder: Path, tied: bool, temperature: float = 1.0) -> None:
        self.folder = folder
        self.learner: PolicyLearner = tiny_learner(folder, temperature=temperature)
        model: Any = load_policy(folder, Model(path=str(folder)), torch.float32, "cpu")
        self.sampler = Faulty(model, load_tokenizer(folder), stops=(1,))
        self.gate = ParityGate(self.learner, torch.float32, lambda: original_head(folder))
        self.temperature = temperature

    def check(self) -> None:
        requests = [Request(prompt(asked), seed) for asked in ASKED for seed in range(4)]
        with Hybrid(self.learner, self.sampler).generating() as sampler:
            rollouts = sampler.generate(requests, Sampling(temperature=self.temperature, max_tokens=10))
        self.gate.check(rollouts, self.learner.logprobs(rollouts), step=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("tied"), initializer_range=0.15)


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("untied"), tied=False, initializer_range=0.15)


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.4])
def test_two_honest_engines_pass(folder: Path, temperature: float) -> None:
    case = Case(folder, True, temperature)
    randomise(case.learner.model, 4, 0.02)
    case.check()


def test_a_temperature_on_one_side_only_is_named(folder: Path) -> None:
    case = Case(folder, True, 0.6)
    case.sampler.sampling = lambda s: replace(s, temperature=1.0)
    with pytest.raises(ParityError, match=r"Probable cause: temperature: .* at 1, the trainer at 0\.6"):
        case.check()


@pytest.mark.parametrize(
    ("change", "words"), [({"top_p": 0.9}, "top_p 0.9"), ({"top_k": 12}, "top_k 12"), ({"min_p": 0.1}, "min_p 0.1")]
)
def test_filters_of_the_engine_are_named_with_their_value(folder: Path, change: dict[str, Any], words: str) -> None:
    case = Case(folder, True)
    case.sampler.sampling = lambda s: replace(s, **change)
    with pytest.raises(ParityError, match=f"Probable cause: filters: .*{words} "):
        case.check()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: (t[0], *t), "first token doubled"),
        (lambda t: t[1:], "without its first token"),
        (lambda t: t[:-1], "without its last token"),
    ],
)
def test_another_prompt_than_was_asked_is_named_as_the_template(
    folder: Path, change: Callable[[tuple[int, ...]], tuple[int, ...]], words: str
) -> None:
    case = Case(folder, True)
    case.sampler.seen = change
    with pytest.raises(ParityError, match=f"Probable cause: template: .*{words}"):
        case.check()


def test_an_engine_in_fewer_bits_is_named_as_the_dtype(folder: Path) -> None:
    case = Case(folder, True)
    case.sampler.before = lambda s: setattr(s, "model", s.model.to(torch.bfloat16))
    with pytest.raises(ParityError, match="Probable cause: dtype: the engine computes in bfloat16"):
        case.check()


def test_a_head_that_stayed_old_is_named(untied: Path) -> None:
    case = Case(untied, False)
    old = copy.deepcopy(case.sampler.model.lm_head.weight.data)
    randomise(case.learner.model, 6, 0.05)
    case.sampler.before = lambda s: s.model.lm_head.weight.data.copy_(old)
    with pytest.raises(ParityError, match="Probable cause: tied head"):
        case.check()


def test_weights_that_are_simply_others_are_not_blamed_on_something_else(folder: Path) -> None:
    case = Case(folder, True)
    case.sampler.before = lambda s: randomise(s.model, 8, 0.05)
    with pytest.raises(ParityError, match=r"none of the known ones.*other weights"):
        case.check()


def test_the_report_lists_the_ten_worst_tokens_with_both_numbers(folder: Path) -> None:
    case = Case(folder, True, 0.6)
    case.sampler.sampling = lambda s: replace(s, temperature=1.0)
    with pytest.raises(ParityError) as caught:
        case.check()
    lines = str(caught.value).splitlines()
    table = lines[lines.index("  roll-out  token      id   engine  trainer      gap") + 1 :]
    assert len(table) == 10
    gaps = [abs(float(line.split()[-1])) for line in table]
    assert gaps == sorted(gaps, reverse=True)
    for line in table:
        _, _, _, engine, trainer, gap = line.split()
        assert float(engine) - float(trainer) == pytest.approx(float(gap), abs=2e-4)
