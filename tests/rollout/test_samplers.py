"""Samplers draw from the policy itself, whatever the model's own defaults say, and the same for the same seed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.errors import SyncError
from posttrain.models.checkpoint import load_policy, load_tokenizer, merged_weights, stop_tokens
from posttrain.recipe import Hardware, Model
from posttrain.recipe import Sampler as SamplerBlock
from posttrain.rollout import Request, Sampler, request_seed
from posttrain.rollout.local import LocalSampler
from posttrain.types import Rollout, Sampling
from tests.tiny import VOCABULARY, prompt, tiny_folder

ASKED = [0, 7, 12, 30, 31, 1, 12, 0, 8, 12]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose own defaults would penalise, filter and cool, and name a second stop token."""
    folder = tiny_folder(tmp_path_factory.mktemp("hostile"), initializer_range=0.12)
    defaults = json.loads((folder / "generation_config.json").read_text())
    defaults |= {"eos_token_id": [1, 5], "do_sample": True}
    defaults |= {"temperature": 0.2, "top_k": 3, "top_p": 0.5, "repetition_penalty": 2.0}
    (folder / "generation_config.json").write_text(json.dumps(defaults))
    return folder


def policy(folder: Path) -> Any:
    return load_policy(folder, Model(path=str(folder)), torch.float32, "cpu")


@pytest.fixture(scope="module", params=["transformers", pytest.param("vllm", marks=pytest.mark.vllm)])
def sampler(request: pytest.FixtureRequest, hostile: Path) -> Sampler:
    tokenizer = load_tokenizer(hostile)
    if request.param == "vllm":
        pytest.importorskip("vllm")
        from posttrain.rollout.vllm import EngineOptions, VllmSampler

        hardware = Hardware(device="cpu", dtype="float32", sampler=SamplerBlock(memory=0.05, max_sequences=64))
        made: Sampler = VllmSampler(hostile, tokenizer, EngineOptions("cpu", "float32", 256, hardware))
    else:
        made = LocalSampler(policy(hostile), tokenizer, stop_tokens(hostile, tokenizer))
    with pytest.raises(SyncError):
        made.generate([Request(prompt(ASKED), 0)], Sampling())
    made.load(merged_weights(policy(hostile)), 0)
    return made


def first_tokens(sampler: Sampler, count: int, sampling: Sampling) -> list[int]:
    requests = [Request(prompt(ASKED), request_seed(0, "test", 0, "p", i)) for i in range(count)]
    return [r.tokens[len(ASKED)] for r in sampler.generate(requests, sampling)]


def test_tokens_are_drawn_from_the_policys_own_distribution(sampler: Sampler, hostile: Path) -> None:
    count = 3000
    drawn = Counter(first_tokens(sampler, count, Sampling(max_tokens=1)))
    with torch.no_grad():
        expected = policy(hostile)(torch.tensor([ASKED])).logits[0, -1].softmax(-1) * count
    observed = torch.tensor([float(drawn[t]) for t in range(VOCABULARY)])
    common = expected >= 5
    rest = torch.tensor([float(expected[~common].sum())]), torch.tensor([float(observed[~common].sum())])
    e, o = torch.cat([expected[common], rest[0]]), torch.cat([observed[common], rest[1]])
    statistic = float(((o - e).square() / e.clamp(min=1e-9)).sum())
    # Chi-squared: mean k, standard deviation sqrt(2k); six deviations leave one false alarm in a hundred million.
    assert statistic < len(e) + 6 * (2 * len(e)) ** 0.5
    assert len(drawn) > 20


def test_either_stop_token_of_the_model_ends_a_response_and_belongs_to_it(sampler: Sampler) -> None:
    requests = [Request(prompt(ASKED), seed) for seed in range(200)]
    ends: Counter[int] = Counter()
    for r in sampler.generate(requests, Sampling(max_tokens=60)):
        said = [t for t, m in zip(r.tokens, r.mask, strict=True) if m]
        assert not {1, 5} & set(said[:-1])
        assert (r.finish_reason == "stop") == (said[-1] in (1, 5))
        assert len(said) <= 60
        ends[said[-1]] += 1
        assert all(lp == 0 and v == -1 for lp, v, m in zip(r.logprobs, r.versions, r.mask, strict=True) if not m)
    assert ends[1] > 0
    assert ends[5] > 0


def test_a_seed_gives_the_same_response_alone_and_in_a_crowd(sampler: Sampler) -> None:
    crowd = [Request(prompt(ASKED), seed) for seed in range(40)]
    together = sampler.generate(crowd, Sampling(max_tokens=12))
    alone = sampler.generate(crowd[17:18], Sampling(max_tokens=12))
    assert alone[0].tokens == together[17].tokens
    assert len({r.tokens for r in together}) > 30


def test_each_response_is_told_once_as_soon_as_it_is_there_and_is_the_one_that_is_returned(sampler: Any) -> None:
    requests = [Request(prompt(ASKED), seed) for seed in range(70)]
    told: list[tuple[int, Rollout]] = []
    drawn = sampler.stream(requests, Sampling(max_tokens=40), lambda *each: told.append(each))
    assert drawn == sampler.generate(requests, Sampling(max_tokens=40))
    assert sorted(index for index, _ in told) == list(range(70))
    assert all(drawn[index] == rollout for index, rollout in told)
    if not isinstance(sampler, LocalSampler):
        # Short ones before long ones, whose place is before them.
        assert [index for index, _ in told] != list(range(70))
        assert [r.length for _, r in told[:10]] < [r.length for _, r in told[-10:]]


def test_an_engine_goes_on_after_what_stopped_its_drawing(sampler: Any) -> None:
    requests = [Request(prompt(ASKED), seed) for seed in range(6)]
    before = sampler.generate(requests, Sampling(max_tokens=20))

    def stop(index: int, rollout: Rollout) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sampler.stream(requests, Sampling(max_tokens=20), stop)
    assert sampler.generate(requests, Sampling(max_tokens=20)) == before


def test_greedy_takes_the_likeliest_token(sampler: Sampler, hostile: Path) -> None:
    (r,) = sampler.generate([Request(prompt(ASKED), 3)], Sampling(temperature=0.0, max_tokens=8))
    model, at = policy(hostile), len(ASKED)
    with torch.no_grad():
        likeliest = model(torch.tensor([r.tokens])).logits[0].argmax(-1)
    assert r.tokens[at:] == tuple(likeliest[at - 1 : -1].tolist())


def test_seeds_differ_by_run_step_prompt_sample_and_purpose_and_by_nothing_else() -> None:
    base = (0, "train", 3, "p/1", 2)
    seeds = {request_seed(*base)}
    for changed in ((1, *base[1:]), (0, "evaluate", *base[2:]), (0, "train", 4, "p/1", 2), (0, "train", 3, "p/2", 2)):
        seeds.add(request_seed(*changed))
    seeds.add(request_seed(0, "train", 3, "p/1", 3))
    assert len(seeds) == 6
    assert request_seed(*base) == request_seed(*base) == 26859930648592010
    assert all(0 <= s < 2**56 for s in seeds)
