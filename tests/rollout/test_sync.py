"""Weights reach the real vLLM completely, or it refuses to speak."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.errors import SyncError
from posttrain.models.checkpoint import expected_weights, load_policy, load_tokenizer, merged_weights
from posttrain.recipe import Hardware, Model, Sampler
from posttrain.rollout import Request
from posttrain.types import Rollout, Sampling
from tests.tiny import VOCABULARY, prompt, randomise, tiny_folder

pytestmark = pytest.mark.vllm
pytest.importorskip("vllm")

from posttrain.rollout.vllm import EngineOptions, VllmSampler  # noqa: E402

BOUND = 1e-4
"""Between two correct fp32 implementations on a CPU."""


class Pair:
    """An engine and a plain transformers model that should always hold the same weights."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model: Any = load_policy(folder, Model(path=str(folder)), torch.float32, "cpu")
        hardware = Hardware(device="cpu", dtype="float32", sampler=Sampler(memory=0.05, max_sequences=32))
        options = EngineOptions("cpu", "float32", 512, hardware)
        self.sampler = VllmSampler(folder, load_tokenizer(folder), options)
        self.version = 0

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        yield from merged_weights(self.model)

    def sync(self, weights: Iterator[tuple[str, Tensor]] | None = None) -> None:
        self.version += 1
        self.sampler.load(self.weights() if weights is None else weights, self.version)

    def draw(self, tokens: list[int], count: int = 1, temperature: float = 1.0, new: int = 12) -> list[Rollout]:
        requests = [Request(prompt(tokens), seed) for seed in range(count)]
        return self.sampler.generate(requests, Sampling(temperature=temperature, max_tokens=new))

    @torch.no_grad()
    def gap(self, rollouts: list[Rollout], temperature: float = 1.0) -> float:
        """The largest difference between the engine's log-probabilities and a plain forward pass."""
        worst = 0.0
        for r in rollouts:
            table = (self.model(torch.tensor([r.tokens])).logits[0].float() / temperature).log_softmax(-1)
            for t in range(len(r.tokens)):
                if r.mask[t]:
                    worst = max(worst, abs(float(table[t - 1, r.tokens[t]]) - r.logprobs[t]))
        return worst


ASKED = [0, 7, 12, 30, 31, 32, 33, 34, 40, 41, 1, 12, 0, 8, 12]


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tiny_folder(tmp_path_factory.mktemp("tiny"), tied=request.param))


def test_the_engine_refuses_before_the_first_sync_and_then_speaks_with_the_weights_it_was_given(pair: Pair) -> None:
    with pytest.raises(SyncError, match="no complete set"):
        pair.draw(ASKED)
    pair.sync()
    assert pair.gap(pair.draw(ASKED, 8)) < BOUND


def test_three_syncs_of_random_weights_in_a_row_agree_with_a_plain_forward_pass(pair: Pair) -> None:
    for seed in (1, 2, 3):
        before = [r.tokens for r in pair.draw(ASKED, 4)] if pair.sampler.version else []
        randomise(pair.model, seed)
        pair.sync()
        after = pair.draw(ASKED, 4)
        assert [r.tokens for r in after] != before
        assert pair.gap(after) < BOUND
        assert {v for r in after for v, said in zip(r.versions, r.mask, strict=True) if said} == {pair.version}


@pytest.mark.parametrize("temperature", [0.6, 1.0, 1.7])
def test_log_probabilities_are_those_of_the_tempered_policy(pair: Pair, temperature: float) -> None:
    pair.sync()
    assert pair.gap(pair.draw(ASKED, 8, temperature), temperature) < BOUND


def test_a_long_prefix_cached_under_old_weights_is_scored_with_the_new_ones(pair: Pair) -> None:
    generator = torch.Generator().manual_seed(5)
    long = torch.randint(2, VOCABULARY, (384,), generator=generator).tolist()
    pair.sync()
    assert pair.gap(pair.draw(long, 2)) < BOUND
    randomise(pair.model, 9)
    pair.sync()
    assert pair.gap(pair.draw(long, 2)) < BOUND


def test_syncing_the_same_weights_again_changes_nothing(pair: Pair) -> None:
    pair.sync()
    first = pair.draw(ASKED, 6)
    pair.sync()
    again = pair.draw(ASKED, 6)
    assert [(r.tokens, r.logprobs) for r in first] == [(r.tokens, r.logprobs) for r in again]


def test_the_engine_notices_every_single_parameter(pair: Pair) -> None:
    """Change one tensor alone: the engine's numbers must change, and to the ones a plain forward pass gives."""
    pair.sync()
    for name, parameter in pair.model.named_parameters():
        before = pair.draw(ASKED, 1, new=4)[0]
        with torch.no_grad():
            kept = parameter.clone()
            generator = torch.Generator().manual_seed(len(name))
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
        pair.sync()
        after = pair.draw(ASKED, 1, new=4)
        assert pair.gap(after) < BOUND, name
        assert (after[0].tokens, after[0].logprobs) != (before.tokens, before.logprobs), name
        with torch.no_grad():
            parameter.copy_(kept)
    pair.sync()


FAULTS = {
    "dropped": lambda name, tensor: None,
    "renamed": lambda name, tensor: (name.replace("norm", "nrom"), tensor),
    "empty": lambda name, tensor: (name, tensor[:0]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_stream_is_refused_by_name_and_only_a_full_sync_repairs_it(pair: Pair, fault: str) -> None:
    pair.sync()
    victim = "model.layers.1.post_attention_layernorm.weight"

    def faulty() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in pair.weights():
            passed = FAULTS[fault](name, tensor) if name == victim else (name, tensor)
            if passed is not None:
                yield passed

    with pytest.raises(SyncError, match=r"post_attention_layernorm|post_attention_layernrom"):
        pair.sync(faulty())
    with pytest.raises(SyncError, match="no complete set"):
        pair.draw(ASKED)
    pair.sync()
    assert pair.gap(pair.draw(ASKED, 4)) < BOUND


def test_one_shard_of_a_fused_projection_is_not_enough(pair: Pair) -> None:
    only_q = (item for item in pair.weights() if not item[0].endswith(("k_proj.weight", "v_proj.weight")))
    with pytest.raises(SyncError, match="k_proj"):
        pair.sync(only_q)
    pair.sync()


def test_a_trainer_that_fails_half_way_leaves_an_engine_that_refuses(pair: Pair) -> None:
    def breaks() -> Iterator[tuple[str, Tensor]]:
        for i, item in enumerate(pair.weights()):
            if i == 3:
                raise ConnectionError("the trainer went away")
            yield item

    with pytest.raises(ConnectionError):
        pair.sync(breaks())
    with pytest.raises(SyncError):
        pair.draw(ASKED)
    pair.sync()
    assert pair.gap(pair.draw(ASKED, 4)) < BOUND


def test_what_is_expected_includes_the_tied_alias(pair: Pair) -> None:
    expected = expected_weights(pair.folder)
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= set(expected)
    assert set(expected) == {name for name, _ in pair.weights()}


def test_generation_is_the_same_for_the_same_seed_and_ends_with_the_stop_token(pair: Pair) -> None:
    pair.sync()
    first, again = pair.draw(ASKED, 8, new=64), pair.draw(ASKED, 8, new=64)
    assert [r.tokens for r in first] == [r.tokens for r in again]
    assert len({r.tokens for r in first}) > 1
    for r in first:
        assert (r.tokens[-1] == 1) == (r.finish_reason == "stop")
        assert r.mask == (False,) * len(ASKED) + (True,) * (len(r.tokens) - len(ASKED))


def test_without_a_salt_per_version_the_old_prefix_would_have_been_used(pair: Pair) -> None:
    """The control of the long-prefix test: with one salt for all versions the same comparison fails."""
    from vllm import SamplingParams

    generator = torch.Generator().manual_seed(6)
    long = torch.randint(2, VOCABULARY, (384,), generator=generator).tolist()

    def draw() -> Rollout:
        parameters = SamplingParams(max_tokens=4, seed=0, logprobs=0, detokenize=False)
        asked = {"prompt_token_ids": long, "cache_salt": "always the same"}
        return pair.sampler._rollout(
            Request(prompt(long), 0), pair.sampler.engine.generate([asked], parameters, use_tqdm=False)[0], Sampling()
        )

    pair.sync()
    assert pair.gap([draw()]) < BOUND
    randomise(pair.model, 10)
    pair.sync()
    assert pair.gap([draw()]) > 10 * BOUND
