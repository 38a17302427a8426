"""The learner computes what transformers computes, in chunks, with masters in full precision, and mutates nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GemmaConfig, GemmaForCausalLM, MistralConfig, MistralForCausalLM

from posttrain.algorithms.choice import choose
from posttrain.algorithms.table import ALGORITHMS
from posttrain.data.packing import pack
from posttrain.errors import ModelError, TrainingError
from posttrain.learner.backbone import prove_layout
from posttrain.learner.layout import Layout
from posttrain.learner.logprobs import chosen_logprobs
from posttrain.learner.single import SingleLearner
from posttrain.models.checkpoint import expected_weights, load_policy, merged_weights
from posttrain.recipe import Lora, Model
from posttrain.types import Sample
from tests.tiny import samples, tiny_folder, tiny_learner

LAYOUTS: list[Layout] = ["tree", "rows", "packed"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


def one_step(learner: SingleLearner, batch: list[Sample], name: str = "grpo") -> dict[str, float]:
    report = [learner.accumulate(b, ALGORITHMS[name])[0] for b in pack(batch, learner.packing)]
    return sum([*report[1:], learner.step()], report[0]).values()


def checksum(model: Any) -> float:
    return sum(float(p.detach().double().sum()) for p in model.parameters())


def plain(learner: SingleLearner, sample: Sample, temperature: float = 1.0) -> Tensor:
    """`[T]` log-probabilities by one unpadded forward pass of the whole vocabulary."""
    ids = torch.tensor([sample.rollout.tokens])
    with torch.no_grad():
        table = (learner.model(ids).logits[0] / temperature).log_softmax(-1)
    out = torch.zeros(ids.shape[1], dtype=table.dtype)
    out[1:] = table[:-1].gather(1, ids[0, 1:, None])[:, 0]
    return out * torch.tensor(sample.rollout.mask)


@pytest.mark.parametrize("temperature", [0.6, 1.0])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_log_probabilities_are_those_of_one_unpadded_forward_pass(
    folder: Path, layout: Layout, temperature: float
) -> None:
    learner = tiny_learner(folder, torch.float64, layout, budget=30, temperature=temperature)
    batch = samples()
    for found, sample in zip(learner.logprobs([s.rollout for s in batch]), batch, strict=True):
        torch.testing.assert_close(found, plain(learner, sample, temperature), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_samples_in_one_micro_batch_do_not_see_each_other(folder: Path, layout: Layout) -> None:
    learner, batch = tiny_learner(folder, torch.float64, layout), samples()
    before = learner.logprobs([s.rollout for s in batch])
    changed = replace(batch[0].rollout, tokens=(*batch[0].rollout.tokens[:-1], 77))
    after = learner.logprobs([changed, *(s.rollout for s in batch[1:])])
    for a, b in zip(before[1:], after[1:], strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


class TestChunks:
    def reference(self, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        table = (hidden @ weight.t() / temperature).log_softmax(-1)
        return table.gather(1, targets[:, None])[:, 0], -(table.exp() * table).sum(-1)

    @pytest.mark.parametrize("chunk", [1, 5, 64])
    def test_values_entropy_and_gradients_equal_the_full_table(self, chunk: int) -> None:
        torch.manual_seed(1)
        hidden, weight = torch.randn(13, 6, dtype=torch.float64), torch.randn(29, 6, dtype=torch.float64)
        targets, grad = torch.randint(0, 29, (13,)), torch.randn(13, dtype=torch.float64)
        inputs = [t.clone().requires_grad_() for t in (hidden, weight)]
        expected, entropy = self.reference(*inputs, targets, 0.7)
        expected.backward(grad)
        again = [t.clone().requires_grad_() for t in (hidden, weight)]
        found, found_entropy = chosen_logprobs(*again, targets, 0.7, chunk)
        found.backward(grad)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(found_entropy, entropy)
        for a, b in zip(again, inputs, strict=True):
            torch.testing.assert_close(a.grad, b.grad)
        check = lambda h, w: chosen_logprobs(h, w, targets, 0.7, chunk)[0]  # noqa: E731
        assert torch.autograd.gradcheck(check, tuple(t.clone().requires_grad_() for t in (hidden, weight)))

    def test_nothing_of_the_size_of_the_table_is_kept_for_the_backward_pass(self) -> None:
        positions, vocabulary, width, chunk = 4096, 49152, 8, 64
        hidden = torch.randn(positions, width, dtype=torch.bfloat16, requires_grad=True)
        weight = torch.randn(vocabulary, width, dtype=torch.bfloat16, requires_grad=True)
        kept: dict[int, int] = {}

        def pack_hook(tensor: Tensor) -> Tensor:
            kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack_hook, lambda t: t):
            chosen_logprobs(hidden, weight, torch.randint(0, vocabulary, (positions,)), 1.0, chunk)
        assert sum(kept.values()) <= 2 * chunk * vocabulary * 4


def test_a_layout_that_a_model_does_not_bear_is_refused_by_name() -> None:
    small: dict[str, Any] = {
        "vocab_size": 97, "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "pad_token_id": 0,
    }  # fmt: skip
    prove_layout(GemmaForCausalLM(GemmaConfig(**small)), "tree")
    sliding = MistralForCausalLM(MistralConfig(**small, sliding_window=2, layer_types=["sliding_attention"]))
    with pytest.raises(ModelError, match=r"layout: 'tree'.*sliding_attention"):
        prove_layout(sliding, "tree")


@pytest.mark.parametrize("name", ["tree", "rows", "packed"])
def test_a_scaled_output_head_is_noticed_whatever_the_layout(folder: Path, name: Layout) -> None:
    class Doubled(torch.nn.Linear):
        def forward(self, hidden: Tensor) -> Tensor:
            return 2 * super().forward(hidden)

    model = AutoModelForCausalLM.from_pretrained(folder)
    head = Doubled(64, 96, bias=False)
    head.weight = model.lm_head.weight
    model.lm_head = head
    with pytest.raises(ModelError, match=f"layout: '{name}'"):
        prove_layout(model, name)


def test_masters_keep_what_bf16_would_lose(folder: Path) -> None:
    """A hundred updates far below bf16's resolution: the model in between stands still, its masters do not."""
    learner = tiny_learner(folder, torch.bfloat16, learning_rate=1e-6)
    wide = tiny_learner(folder, torch.float64, learning_rate=1e-6)
    start = [p.detach().clone() for p in wide.masters.parameters]
    for _ in range(100):
        for one in (learner, wide):
            for p in one.masters.parameters:
                p.grad = torch.ones_like(p)
            one.step()
    for before, exact, after in zip(start, wide.masters.parameters, learner.masters.parameters, strict=True):
        moved, found = ((before - p.detach()).mean().item() for p in (exact, after.double()))
        assert moved == pytest.approx(1e-4, rel=1e-4)
        # One fp32 step at 0.3 is 3e-8, against updates of 1e-6.
        assert found - (before - before.to(torch.bfloat16).double()).mean().item() == pytest.approx(moved, rel=3e-2)
    for model, master in zip(learner.masters.model_parameters, learner.masters.parameters, strict=True):
        assert torch.equal(model, master.to(torch.bfloat16))


def test_bf16_gradients_add_up_in_fp32_whatever_the_number_of_micro_batches(folder: Path) -> None:
    grads = []
    for budget in (10**6, 1):
        learner = tiny_learner(folder, torch.bfloat16, "rows", budget)
        for b in pack(samples(torch.float32), learner.packing):
            learner.accumulate(b, ALGORITHMS["grpo"])
        assert all(p.grad is None for p in learner.masters.model_parameters)
        grads.append(torch.cat([p.grad.flatten() for p in learner.masters.parameters]))
    assert grads[0].dtype == torch.float32
    # bf16 has 8 bits of precision: single products differ by 2^-8 of the largest, sums must not drift further.
    assert float((grads[0] - grads[1]).abs().max()) <= 2**-6 * float(grads[0].abs().max())


def test_one_step_lowers_the_loss_it_was_computed_from(folder: Path) -> None:
    learner, batch = tiny_learner(folder, torch.float64, learning_rate=1e-3), samples()
    algorithm = choose("grpo", {"correction": "none", "clip_low": 0.99, "clip_high": 100})
    before = sum(learner.accumulate(b, algorithm)[0].values()["learn/loss"] for b in pack(batch, learner.packing))
    learner.step()
    after = sum(learner.accumulate(b, algorithm)[0].values()["learn/loss"] for b in pack(batch, learner.packing))
    assert after < before


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 2, [0.0, 0.5, 1, 1, 1, 1, 1, 1, 1, 1]),
        ("linear", 0, [1 - i / 10 for i in range(10)]),
        ("cosine", 0, [(1 + math.cos(math.pi * i / 10)) / 2 for i in range(10)]),
    ],
)
def test_the_learning_rate_follows_its_closed_form_in_optimiser_steps(
    folder: Path, schedule: str, warmup: int, expected: list[float]
) -> None:
    learner = tiny_learner(folder, learning_rate=0.1, schedule=schedule, warmup_steps=warmup)
    found = [one_step(learner, samples(torch.float32))["learn/learning_rate"] for _ in range(10)]
    assert found == pytest.approx([0.1 * e for e in expected])


def test_gradients_are_clipped_to_the_norm(folder: Path) -> None:
    learner = tiny_learner(folder, clip_norm=1e-3)
    for b in pack(samples(torch.float32), learner.packing):
        learner.accumulate(b, ALGORITHMS["grpo"])
    norms: list[float] = []
    learner.optimizer.register_step_pre_hook(
        lambda *_: norms.append(float(torch.cat([p.grad.flatten() for p in learner.masters.parameters]).norm()))
    )
    assert learner.step().values()["learn/grad_norm"] > 1e-3
    assert norms == [pytest.approx(1e-3, rel=1e-3)]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_stops_before_anything_is_updated(folder: Path, value: float) -> None:
    learner = tiny_learner(folder)
    before = checksum(learner.model)
    batch = samples(torch.float32)
    batch[2] = replace(batch[2], advantages=torch.full_like(batch[2].advantages, value))
    (whole,) = pack(batch, learner.packing)
    with pytest.raises(TrainingError, match=r"advantage.*sample 2"):
        learner.accumulate(whole, ALGORITHMS["grpo"])
    assert checksum(learner.model) == before


def test_the_reference_equals_the_policy_exactly_before_the_first_step(folder: Path) -> None:
    rollouts = [s.rollout for s in samples()]
    for learner in (tiny_learner(folder, reference=True), tiny_learner(folder, lora=Lora(rank=4))):
        for a, b in zip(learner.logprobs(rollouts), learner.logprobs(rollouts, "reference"), strict=True):
            assert torch.equal(a, b)
        before = learner.logprobs(rollouts, "reference")
        one_step(learner, samples(torch.float32))
        one_step(learner, samples(torch.float32))
        assert not torch.equal(learner.logprobs(rollouts)[0], before[0])
        for a, b in zip(before, learner.logprobs(rollouts, "reference"), strict=True):
            assert torch.equal(a, b)


def test_a_model_that_drops_attention_in_training_has_the_same_log_probabilities_twice(tmp_path: Path) -> None:
    learner = tiny_learner(tiny_folder(tmp_path, attention_dropout=0.5))
    assert learner.model.training
    rollouts = [s.rollout for s in samples()]
    for a, b in zip(learner.logprobs(rollouts), learner.logprobs(rollouts), strict=True):
        assert torch.equal(a, b)


class TestAdapters:
    def trained(self, folder: Path) -> SingleLearner:
        learner = tiny_learner(folder, lora=Lora(rank=4, alpha=8), learning_rate=1e-2)
        for _ in range(3):
            one_step(learner, samples(torch.float32))
        return learner

    def test_what_is_sent_is_base_plus_scaled_product_under_the_checkpoints_names(self, folder: Path) -> None:
        learner = self.trained(folder)
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

    def test_sending_changes_none_of_the_trainers_weights_even_when_the_receiver_fails(self, folder: Path) -> None:
        learner = self.trained(folder)
        before = checksum(learner.model)
        first = {n: t.clone() for n, t in learner.weights()}
        for number, _ in enumerate(learner.weights()):
            if number == 3:
                break
        assert checksum(learner.model) == before
        assert all(torch.equal(t, first[n]) for n, t in learner.weights())

    def test_the_saved_policy_is_the_merged_one_and_loads_without_peft(self, folder: Path, tmp_path: Path) -> None:
        learner = self.trained(folder)
        learner.save(tmp_path)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
        sent = dict(learner.weights())
        for name, tensor in loaded.state_dict().items():
            torch.testing.assert_close(tensor, sent[name])

    def test_targets_that_bind_to_nothing_are_refused(self, folder: Path) -> None:
        with pytest.raises(ModelError, match=r"model\.lora\.targets"):
            tiny_learner(folder, lora=Lora(targets=("no_such_module",)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lora", [None, Lora(rank=4)])
def test_save_and_load_continue_bit_for_bit(
    folder: Path, tmp_path: Path, dtype: torch.dtype, lora: Lora | None
) -> None:
    batch = samples(torch.float32)
    whole = tiny_learner(folder, dtype, lora=lora, schedule="cosine", learning_rate=1e-2)
    one_step(whole, batch)
    whole.save(tmp_path)
    other = tiny_learner(folder, dtype, lora=lora, schedule="cosine", learning_rate=1e-2)
    other.load(tmp_path)
    assert other.version == 1
    for learner in (whole, other):
        learner_values = [one_step(learner, batch) for _ in range(2)]
        learner.trace = learner_values  # type: ignore[attr-defined]
    assert whole.trace == other.trace  # type: ignore[attr-defined]
    for (name, a), (_, b) in zip(whole.weights(), other.weights(), strict=True):
        assert torch.equal(a, b), name


def test_a_checkpoint_loads_with_transformers_and_gives_the_same_logits(folder: Path, tmp_path: Path) -> None:
    learner = tiny_learner(folder)
    one_step(learner, samples(torch.float32))
    learner.save(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    ids = torch.tensor([samples()[0].rollout.tokens])
    with torch.no_grad():
        assert torch.equal(again(ids).logits, learner.model(ids).logits)
    assert (tmp_path / "policy" / "chat_template.jinja").is_file()
    assert again.generation_config.eos_token_id == 1


def test_recomputing_activations_changes_no_gradient(folder: Path) -> None:
    grads = []
    for lora in (None, Lora(rank=4)):
        for recompute in (False, True):
            learner = tiny_learner(folder, torch.float64, lora=lora)
            if recompute:
                settings = Model(path=str(folder), lora=lora)
                torch.manual_seed(0)
                learner = replace_model(learner, load_policy(folder, settings, torch.float64, "cpu", True))
            for b in pack(samples(), learner.packing):
                learner.accumulate(b, ALGORITHMS["grpo"])
            grads.append(torch.cat([p.grad.flatten() for p in learner.masters.parameters]))
        assert torch.equal(grads[-1], grads[-2])
        assert bool(grads[-1].any())


def replace_model(learner: SingleLearner, model: Any) -> SingleLearner:
    """The same learner over another model."""
    return SingleLearner(model, learner.tokenizer, learner.settings, learner.computation, total_updates=10)
