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
from posttrain.errors import ModelError, TrainingError
from posttrain.learner.backbone import prove_layout, take_trees
from posttrain.learner.layout import Layout
from posttrain.learner.policy import PolicyLearner
from posttrain.models.checkpoint import load_policy
from posttrain.recipe import Lora, Model
from posttrain.types import Sample
from tests.learner.steps import accumulated, checksum, loss, one_step, policy_gradient
from tests.tiny import samples, tiny_folder, tiny_learner

LAYOUTS: list[Layout] = ["tree", "rows", "packed"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


def plain(learner: PolicyLearner, sample: Sample, temperature: float = 1.0) -> Tensor:
    """`[T]` log-probabilities by one unpadded forward pass of the whole vocabulary."""
    ids = torch.tensor([sample.rollout.tokens])
    with torch.no_grad():
        table = (learner.model(ids).logits[0] / temperature).log_softmax(-1)
    out = torch.zeros(ids.shape[1], dtype=table.dtype)
    out[1:] = table[:-1].gather(1, ids[0, 1:, None])[:, 0]
    return out * torch.tensor(sample.rollout.mask)


@pytest.mark.parametrize("temperature", [0.6, 1.0])
@pytest.mark.parametrize("flat", [True, False], ids=["trees", "masked"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_log_probabilities_are_those_of_one_unpadded_forward_pass(
    folder: Path, layout: Layout, flat: bool, temperature: float
) -> None:
    learner = tiny_learner(folder, torch.float64, layout, budget=30, temperature=temperature, flat=flat)
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
    start = [p.detach().clone() for p in wide.stepper.masters.parameters]
    for _ in range(100):
        for one in (learner, wide):
            for p in one.stepper.masters.parameters:
                p.grad = torch.ones_like(p)
            one.step()
    for before, exact, after in zip(
        start, wide.stepper.masters.parameters, learner.stepper.masters.parameters, strict=True
    ):
        moved, found = ((before - p.detach()).mean().item() for p in (exact, after.double()))
        assert moved == pytest.approx(1e-4, rel=1e-4)
        # One fp32 step at 0.3 is 3e-8, against updates of 1e-6.
        assert found - (before - before.to(torch.bfloat16).double()).mean().item() == pytest.approx(moved, rel=3e-2)
    for model, master in zip(learner.stepper.masters.model_parameters, learner.stepper.masters.parameters, strict=True):
        assert torch.equal(model, master.to(torch.bfloat16))


def test_bf16_gradients_add_up_in_fp32_whatever_the_number_of_micro_batches(folder: Path) -> None:
    grads = []
    for budget in (10**6, 1):
        learner = tiny_learner(folder, torch.bfloat16, "rows", budget)
        accumulated(learner, samples(torch.float32))
        assert all(p.grad is None for p in learner.stepper.masters.model_parameters)
        grads.append(policy_gradient(learner))
    assert grads[0].dtype == torch.float32
    # bf16 has 8 bits of precision: single products differ by 2^-8 of the largest, sums must not drift further.
    assert float((grads[0] - grads[1]).abs().max()) <= 2**-6 * float(grads[0].abs().max())


def test_one_step_lowers_the_loss_it_was_computed_from(folder: Path) -> None:
    learner, batch = tiny_learner(folder, torch.float64, learning_rate=1e-3), samples()
    algorithm = choose("grpo", {"correction": "none", "clip_low": 0.99, "clip_high": 100})
    before = loss(accumulated(learner, batch, algorithm))
    learner.step()
    after = loss(accumulated(learner, batch, algorithm))
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
    accumulated(learner, samples(torch.float32))
    norms: list[float] = []
    learner.stepper.optimizer.register_step_pre_hook(lambda *_: norms.append(float(policy_gradient(learner).norm())))
    assert learner.step().values()["learn/grad_norm"] > 1e-3
    assert norms == [pytest.approx(1e-3, rel=1e-3)]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("name", "budget"), [("grpo", 4096), ("kl_cov", 30)])
def test_a_number_that_is_not_finite_stops_before_anything_is_updated(
    folder: Path, value: float, name: str, budget: int
) -> None:
    learner = tiny_learner(folder, budget=budget)
    before = checksum(learner.model)
    batch = samples(torch.float32)
    batch[2] = replace(batch[2], advantages=torch.full_like(batch[2].advantages, value))
    with pytest.raises(TrainingError, match=r"advantage.*sample 2"):
        accumulated(learner, batch, ALGORITHMS[name])
    assert checksum(learner.model) == before


def test_a_model_that_drops_attention_in_training_has_the_same_log_probabilities_twice(tmp_path: Path) -> None:
    learner = tiny_learner(tiny_folder(tmp_path, attention_dropout=0.5))
    assert learner.model.training
    rollouts = [s.rollout for s in samples()]
    for a, b in zip(learner.logprobs(rollouts), learner.logprobs(rollouts), strict=True):
        assert torch.equal(a, b)


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
            accumulated(learner, samples())
            grads.append(policy_gradient(learner))
        assert torch.equal(grads[-1], grads[-2])
        assert bool(grads[-1].any())


def replace_model(learner: PolicyLearner, model: Any) -> PolicyLearner:
    """The same learner over another model."""
    assert take_trees(model) == learner.computation.flat
    return PolicyLearner(model, learner.tokenizer, learner.stepper.settings, learner.computation, total_updates=10)
