"""Reference policies: several by their shares, none until training leaves them, and following as they are told."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from posttrain.algorithms.choice import choose
from posttrain.algorithms.state import Terms
from posttrain.errors import TrainingError
from posttrain.learner.layout import Layout
from posttrain.learner.policy import PolicyLearner
from posttrain.learner.references import References
from posttrain.models.checkpoint import load_policy
from posttrain.recipe import Lora, Model
from posttrain.types import Sample
from tests.learner.steps import accumulated, one_step
from tests.tiny import randomise, samples, taking_trees, tiny_folder, tiny_learner

ROLLOUTS = [s.rollout for s in samples()]
BATCH = samples(torch.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


def other(folder: Path, seed: int, dtype: torch.dtype = torch.float64) -> torch.nn.Module:
    model: torch.nn.Module = taking_trees(load_policy(folder, Model(path=str(folder)), dtype, "cpu"))
    randomise(model, seed)
    return model


def with_base(folder: Path, lora: Lora, **settings: object) -> PolicyLearner:
    """An adapter whose own base is the reference."""
    return tiny_learner(folder, lora=lora, reference=True, **settings)


def equal(found: list[Tensor], expected: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def first(learner: PolicyLearner) -> list[Tensor]:
    return [t[:, 0] for t in learner.logprobs(ROLLOUTS, "reference")]


def noted(learner: PolicyLearner, batch: list[Sample]) -> list[Sample]:
    """With what the references say."""
    found = learner.logprobs([s.rollout for s in batch], "reference")
    return [replace(s, reference=reference) for s, reference in zip(batch, found, strict=True)]


@pytest.mark.parametrize("layout", ["tree", "rows", "packed"])
def test_each_reference_says_what_its_own_plain_forward_pass_says(folder: Path, layout: Layout) -> None:
    learner = tiny_learner(folder, torch.float64, layout, budget=40, temperature=0.6)
    models = [other(folder, 1), other(folder, 2)]
    learner.references = References(models)
    for found, rollout in zip(learner.logprobs(ROLLOUTS, "reference"), ROLLOUTS, strict=True):
        assert found.shape == (len(rollout.tokens), 2)
        for r, model in enumerate(models):
            with torch.no_grad():
                table = (model(torch.tensor([rollout.tokens])).logits[0] / 0.6).log_softmax(-1)
            for t, said in enumerate(rollout.mask):
                expected = table[t - 1, rollout.tokens[t]].item() if said else 0.0
                assert found[t, r].item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("estimator", ["k2", "k3", "exact"])
def test_a_penalty_towards_several_is_that_towards_each_by_its_share(folder: Path, estimator: str) -> None:
    learner = tiny_learner(folder, torch.float64)
    models = [other(folder, 1), other(folder, 2)]
    algorithm = choose("grpo", {"kl": "in_loss", "kl_estimator": estimator})

    def measured(references: References, shares: tuple[float, ...]) -> float:
        learner.references = references
        batch = noted(learner, samples())
        learner.discard()
        return accumulated(learner, batch, algorithm, Terms(12, references=shares)).values()["learn/kl"]

    alone = [measured(References([model]), (1.0,)) for model in models]
    assert measured(References(models), (0.3, 0.7)) == pytest.approx(0.3 * alone[0] + 0.7 * alone[1])
    assert alone[0] != pytest.approx(alone[1])


@pytest.mark.parametrize("estimator", ["k2", "k3", "exact"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lora", [None, Lora(rank=4)])
def test_before_the_first_step_the_divergence_is_exactly_nothing(
    folder: Path, estimator: str, dtype: torch.dtype, lora: Lora | None
) -> None:
    learner = tiny_learner(folder, dtype, lora=lora, reference=True, budget=40)
    assert equal(learner.logprobs(ROLLOUTS), first(learner))
    # The same micro-batches for both, so that sums are taken in the same order.
    batch = noted(learner, [s for s in samples(torch.float32) if bool(s.mask.any())])
    algorithm = choose("grpo", {"kl": "in_loss", "kl_estimator": estimator})
    assert accumulated(learner, batch, algorithm).values()["learn/kl"] == 0.0


def test_the_reference_stands_still_while_the_policy_moves(folder: Path) -> None:
    for learner in (tiny_learner(folder, reference=True), with_base(folder, Lora(rank=4))):
        before = first(learner)
        one_step(learner, BATCH)
        one_step(learner, BATCH)
        assert not equal(learner.logprobs(ROLLOUTS), before)
        assert equal(first(learner), before)


def test_an_adapter_that_was_loaded_is_held_near_its_base_and_not_near_itself(folder: Path, tmp_path: Path) -> None:
    learner = with_base(folder, Lora(rank=4), learning_rate=1e-2)
    before = first(learner)
    for _ in range(2):
        one_step(learner, BATCH)
    learner.save(tmp_path)
    again = with_base(folder, Lora(rank=4), learning_rate=1e-2)
    assert equal(again.logprobs(ROLLOUTS), before)
    again.load(tmp_path)
    assert equal(again.logprobs(ROLLOUTS), learner.logprobs(ROLLOUTS))
    assert equal(first(again), before)
    assert not equal(again.logprobs(ROLLOUTS), before)


class TestRefresh:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_copy_is_the_policy_as_it_is_then(self, folder: Path, dtype: torch.dtype) -> None:
        learner = tiny_learner(folder, dtype, reference=True)
        one_step(learner, BATCH)
        learner.refresh_reference(0.0)
        copied = learner.logprobs(ROLLOUTS)
        assert equal(first(learner), copied)
        one_step(learner, BATCH)
        assert equal(first(learner), copied)
        assert not equal(learner.logprobs(ROLLOUTS), copied)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_an_average_keeps_its_share_of_itself_in_full_precision(self, folder: Path, dtype: torch.dtype) -> None:
        """bf16 alone would never move by a thousandth of an update."""
        learner = tiny_learner(folder, dtype, reference=True, learning_rate=1e-3)
        own = [p.detach().double().clone() for p in learner.references.models[0].parameters()]
        for _ in range(4):
            one_step(learner, BATCH)
            learner.refresh_reference(0.99)
            policy = [p.detach().double() for p in learner.stepper.masters.parameters]
            own = [0.99 * mean + 0.01 * now for mean, now in zip(own, policy, strict=True)]
        for parameter, expected in zip(learner.references.models[0].parameters(), own, strict=True):
            # Of the average in single precision, rounded once where the model is in half.
            bound = 2**-8 if dtype == torch.bfloat16 else 2**-22
            assert float((parameter.double() - expected).abs().max()) <= bound * float(expected.abs().max())
        for average, expected in zip(learner.references.average, own, strict=True):
            assert average.dtype == torch.float32
            torch.testing.assert_close(average.double(), expected, atol=3e-7, rtol=1e-6)

    def test_only_the_first_of_several_follows(self, folder: Path) -> None:
        learner = tiny_learner(folder)
        learner.references = References([other(folder, 1, torch.float32), other(folder, 2, torch.float32)])
        before = learner.logprobs(ROLLOUTS, "reference")
        one_step(learner, BATCH)
        learner.refresh_reference(0.5)
        after = learner.logprobs(ROLLOUTS, "reference")
        assert not equal([t[:, 0] for t in after], [t[:, 0] for t in before])
        assert equal([t[:, 1] for t in after], [t[:, 1] for t in before])

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_a_saved_average_goes_on_bit_for_bit(self, folder: Path, tmp_path: Path, dtype: torch.dtype) -> None:
        whole = tiny_learner(folder, dtype, reference=True)
        one_step(whole, BATCH)
        whole.refresh_reference(0.9)
        whole.save(tmp_path)
        again = tiny_learner(folder, dtype, reference=True)
        again.load(tmp_path)
        assert equal(first(again), first(whole))
        for learner in (whole, again):
            one_step(learner, BATCH)
            learner.refresh_reference(0.9)
        assert equal(again.references.average, whole.references.average)
        assert equal(first(again), first(whole))

    def test_an_adapters_base_cannot_follow_and_the_way_out_is_named(self, folder: Path) -> None:
        learner = with_base(folder, Lora(rank=4))
        with pytest.raises(TrainingError, match=r"reference: an adapter's base .* leave model\.lora out"):
            learner.refresh_reference(0.5)


def test_a_reference_that_is_not_there_is_said_so(folder: Path) -> None:
    with pytest.raises(TrainingError, match="built without one"):
        tiny_learner(folder).logprobs(ROLLOUTS, "reference")
    bare = tiny_learner(folder)
    bare.references = References([None])
    with pytest.raises(TrainingError, match="the policy has no adapter"):
        bare.logprobs(ROLLOUTS, "reference")
