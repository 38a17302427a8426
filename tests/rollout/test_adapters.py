"""Adapters reach the real vLLM apart from the weights they stand beside: completely, or it refuses to speak."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.errors import ModelError, SyncError
from posttrain.hybrid.publishing import Apart, Gathered
from posttrain.models.adapters import Form, expected_adapter
from posttrain.models.checkpoint import load_tokenizer
from posttrain.recipe import Hardware, Lora, Sampler
from posttrain.rollout import Request
from posttrain.types import Rollout, Sampling
from tests.tiny import VOCABULARY, prompt, tiny_folder, tiny_learner

pytestmark = pytest.mark.vllm
pytest.importorskip("vllm")

from posttrain.rollout.adapters import settings  # noqa: E402
from posttrain.rollout.vllm import EngineOptions, VllmSampler  # noqa: E402

BOUND = 1e-4
"""Between two correct fp32 implementations on a CPU."""
LORA = Lora(rank=4, alpha=12.0)
ASKED = [0, 7, 12, 30, 31, 32, 33, 34, 40, 41, 1, 12, 0, 8, 12]


class Pair:
    """An engine, and a learner whose plain peft forward pass it should agree with."""

    def __init__(self, folder: Path, lora: Lora = LORA) -> None:
        self.learner = tiny_learner(folder, lora=lora)
        self.model: Any = self.learner.model
        self.randomise(0)
        hardware = Hardware(device="cpu", dtype="float32", sampler=Sampler(memory=0.05, max_sequences=32))
        options = EngineOptions("cpu", "float32", 512, hardware, adapter=expected_adapter(folder, lora))
        self.sampler = VllmSampler(folder, load_tokenizer(folder), options)
        self.apart = Apart(self.learner, self.sampler)

    def adapter(self) -> dict[str, torch.nn.Parameter]:
        return {name: p for name, p in self.model.named_parameters() if ".lora_" in name}

    @torch.no_grad()
    def randomise(self, seed: int) -> None:
        """Another adapter: B is not zero, or nothing would be tested."""
        generator = torch.Generator().manual_seed(seed)
        for name, p in self.adapter().items():
            p.copy_(torch.randn(p.shape, generator=generator) * (0.1 if "lora_B" in name else 0.2))

    def sync(self) -> int:
        """The bytes that were sent."""
        self.learner.version += 1
        self.apart.publish(self.learner, self.sampler)
        return self.apart.sent

    def draw(self, tokens: list[int] = ASKED, count: int = 2, new: int = 8) -> list[Rollout]:
        requests = [Request(prompt(tokens), seed) for seed in range(count)]
        return self.sampler.generate(requests, Sampling(temperature=1.0, max_tokens=new))

    @torch.no_grad()
    def gap(self, rollouts: list[Rollout]) -> float:
        """The largest difference between the engine's log-probabilities and a plain forward pass."""
        worst = 0.0
        for r in rollouts:
            assert r.logprobs is not None
            table = self.model(torch.tensor([r.tokens])).logits[0].log_softmax(-1)
            found = [abs(float(table[t - 1, r.tokens[t]]) - r.logprobs[t]) for t in range(len(r.tokens)) if r.mask[t]]
            worst = max(worst, *found)
        return worst


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tiny_folder(tmp_path_factory.mktemp("tiny"), tied=request.param, initializer_range=0.2))


def test_three_adapters_in_a_row_agree_with_a_plain_forward_pass_of_peft(pair: Pair) -> None:
    before: list[tuple[int, ...]] = []
    for seed in (1, 2, 3):
        pair.randomise(seed)
        pair.sync()
        drawn = pair.draw(count=6)
        assert [r.tokens for r in drawn] != before
        before = [r.tokens for r in drawn]
        assert pair.gap(drawn) < BOUND
        said = {v for r in drawn for v, masked in zip(r.versions or (), r.mask, strict=True) if masked}
        assert said == {pair.learner.version}


def test_the_engine_notices_every_single_tensor_of_an_adapter(pair: Pair) -> None:
    pair.sync()
    assert len(pair.adapter()) == 2 * 7 * 2
    for number, (name, parameter) in enumerate(pair.adapter().items()):
        before = pair.draw(new=3)
        with torch.no_grad():
            kept = parameter.clone()
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) * 0.3)
        pair.sync()
        after = pair.draw(new=3)
        assert [r.logprobs for r in after] != [r.logprobs for r in before], name
        assert pair.gap(after) < BOUND, name
        assert pair.gap(before) > 10 * BOUND, name
        with torch.no_grad():
            parameter.copy_(kept)


def test_nothing_of_the_trainer_is_changed_by_being_published(pair: Pair) -> None:
    before = {name: p.detach().clone() for name, p in pair.model.named_parameters()}
    Gathered().publish(pair.learner, pair.sampler)
    pair.sync()
    pair.draw()
    assert all(torch.equal(p, before[name]) for name, p in pair.model.named_parameters())


def test_what_is_sent_for_a_version_is_its_adapter(pair: Pair) -> None:
    pair.sync()
    assert pair.sync() == sum(4 * p.numel() for p in pair.adapter().values())
    gathered = Gathered()
    gathered.publish(pair.learner, pair.sampler)
    whole = gathered.sent
    assert pair.gap(pair.draw()) < BOUND
    # Other weights have come: the base is sent once more.
    assert pair.sync() == whole + sum(4 * p.numel() for p in pair.adapter().values())
    assert pair.gap(pair.draw()) < BOUND


def test_an_old_adapter_is_gone_and_its_id_is_never_given_again(pair: Pair) -> None:
    adapters = pair.sampler.adapters
    assert adapters is not None
    seen = []
    for seed in (4, 5, 6):
        pair.randomise(seed)
        pair.sync()
        assert adapters.held() == [adapters.request.lora_int_id]
        seen.append((adapters.request.lora_int_id, adapters.request.lora_name))
    assert len({number for number, _ in seen}) == len({name for _, name in seen}) == 3


def test_a_long_prefix_cached_under_an_old_adapter_is_scored_with_the_new_one(pair: Pair) -> None:
    long = torch.randint(2, VOCABULARY, (384,), generator=torch.Generator().manual_seed(5)).tolist()
    for seed in (7, 8):
        pair.randomise(seed)
        pair.sync()
        assert pair.gap(pair.draw(long)) < BOUND


FAULTS: dict[str, Callable[[str, Tensor], list[tuple[str, Tensor]]]] = {
    "dropped": lambda name, tensor: [],
    "renamed": lambda name, tensor: [(name.replace("proj", "porj"), tensor)],
    "empty": lambda name, tensor: [(name, tensor[:0])],
    "twice": lambda name, tensor: [(name, tensor), (name, tensor)],
    "of a narrower rank": lambda name, tensor: [(name, tensor[:, :-1])],
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_adapter_is_refused_by_name_and_only_a_complete_one_repairs_it(pair: Pair, fault: str) -> None:
    pair.sync()
    victim = "model.layers.1.mlp.down_proj.lora_B.weight"

    def faulty() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in pair.learner.adapter().tensors():
            yield from FAULTS[fault](name, tensor) if name == victim else [(name, tensor)]

    with pytest.raises(SyncError, match=r"layers\.1\.mlp\.down_p(ro|or)j\.lora_B"):
        pair.sampler.attach(faulty(), 99)
    with pytest.raises(SyncError, match="no complete set"):
        pair.draw()
    assert pair.sampler.adapters is not None
    assert pair.sampler.adapters.held() == []
    pair.sync()
    assert pair.gap(pair.draw()) < BOUND


def test_whole_weights_leave_no_adapter_behind_and_none_is_put_on_them(pair: Pair) -> None:
    pair.sync()
    Gathered().publish(pair.learner, pair.sampler)
    assert pair.sampler.adapters is not None
    assert pair.sampler.adapters.held() == []
    with pytest.raises(SyncError, match="no base"):
        pair.sampler.attach(pair.learner.adapter().tensors(), 99)
    pair.sync()


def test_a_request_for_an_adapter_that_is_gone_is_never_answered_by_another(pair: Pair) -> None:
    pair.sync()
    adapters = pair.sampler.adapters
    assert adapters is not None
    old = adapters.request
    pair.sync()
    now, adapters.request = adapters.request, old
    with pytest.raises(Exception, match=r"(?i)lora|adapter|No such file"):
        pair.draw()
    adapters.request = now


def test_some_projections_only(tmp_path: Path) -> None:
    some = Pair(tiny_folder(tmp_path, initializer_range=0.2), Lora(rank=3, alpha=3.0, targets=("q_proj", "down_proj")))
    assert len(some.adapter()) == 2 * 2 * 2
    for seed in (1, 2):
        some.randomise(seed)
        some.sync()
        assert some.gap(some.draw()) < BOUND


def test_what_this_vllm_cannot_serve_is_refused_with_the_reason(tmp_path: Path) -> None:
    folder = tiny_folder(tmp_path)
    with pytest.raises(ModelError, match=r"model\.lora\.rank: 513, but this vLLM has room for 512"):
        settings(folder, Form(513, 1.0, {}), False)
    assert settings(folder, Form(4, 1.0, {}), False)["max_lora_rank"] == 8
