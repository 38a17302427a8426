"""Gradients do not depend on how a batch was cut or laid out, and equal a slow reference that pads nothing."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from posttrain.algorithms.catalogue import CATALOGUE
from posttrain.algorithms.choice import choose
from posttrain.algorithms.row import Algorithm
from posttrain.algorithms.table import ALGORITHMS
from posttrain.data.packing import Packing, pack
from posttrain.learner.layout import Layout
from posttrain.learner.single import SingleLearner
from posttrain.types import Sample
from tests.tiny import samples, tiny_folder, tiny_learner

MAX_TOKENS = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def learners(folder: Path) -> dict[Layout, SingleLearner]:
    return {name: tiny_learner(folder, torch.float64, name) for name in ("tree", "rows", "packed")}


def gradient(learner: SingleLearner, algorithm: Algorithm, batch: list[Sample], budget: int) -> tuple[float, Tensor]:
    """Loss and flat gradient of one optimiser step over all samples."""
    learner.masters.zero_grad()
    packing = Packing(budget, learner.packing.share_prompts, learner.packing.dtype)
    loss = sum(learner.accumulate(b, algorithm)[0].values()["learn/loss"] for b in pack(batch, packing))
    return loss, torch.cat([p.grad.flatten() for p in learner.masters.parameters])


def with_reduction(name: str, reduction: str, **more: object) -> Algorithm:
    return choose(name, {"reduction": reduction, **more})


@pytest.mark.parametrize("reduction", CATALOGUE["reduction"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_gradients_do_not_depend_on_micro_batches_packing_or_padding(
    learners: dict[Layout, SingleLearner], name: str, reduction: str
) -> None:
    algorithm, batch = with_reduction(name, reduction), samples()
    loss, expected = gradient(learners["rows"], algorithm, batch, 10**9)
    assert float(expected.abs().max()) > 1e-4
    for layout, learner in learners.items():
        for budget in (1, 24, 10**9):
            again, found = gradient(learner, algorithm, batch, budget)
            assert again == pytest.approx(loss, abs=1e-6), (layout, budget)
            close(found, expected)


def close(found: Tensor, expected: Tensor) -> None:
    """Within 1e-6 of the gradient's largest entry: transformers normalises in fp32 whatever the model's dtype."""
    assert float((found - expected).abs().max()) <= 1e-6 * max(float(expected.abs().max()), 1.0)


def slow_loss(learner: SingleLearner, algorithm: Algorithm, batch: list[Sample]) -> Tensor:
    """The row's formula written out: one sequence at a time, one token at a time, no masks of tensors."""
    cells = algorithm.cells
    tokens = sum(int(s.mask.sum()) for s in batch)
    sequences = sum(bool(s.mask.any()) for s in batch)
    total = torch.zeros((), dtype=torch.float64)
    for s in batch:
        said = [t for t in range(len(s.rollout.tokens)) if s.mask[t]]
        if not said:
            continue
        table = learner.model(torch.tensor([s.rollout.tokens])).logits[0].log_softmax(-1)
        logp = {t: table[t - 1, s.rollout.tokens[t]] for t in said}
        ratios = {t: logp[t] - s.previous[t] for t in said}
        if cells["ratio"].kind == "sequence":
            mean = sum(ratios.values()) / len(said)
            ratios = dict.fromkeys(said, mean)
        terms = []
        for t in said:
            ratio, advantage = ratios[t].exp(), s.advantages[t]
            if cells["objective"].kind == "clip":
                low, high = 1 - cells["objective"]["clip_low"], 1 + cells["objective"]["clip_high"]
                clipped = min(max(ratio.item(), low), high)
                outside = clipped != ratio.item()
                bounded = clipped * advantage
                free = ratio * advantage
                term = -bounded if outside and bounded < free else -free
            else:
                term = -advantage * logp[t] if not ratios[t].requires_grad else -advantage * _unit(ratios[t])
            weight = 1.0
            if cells["correction"].kind == "truncated_importance":
                gap = float(s.previous[t]) - s.rollout.logprobs[t]
                weight = min(torch.tensor(gap, dtype=torch.float64).exp().item(), cells["correction"]["importance_cap"])
            term = weight * term
            if cells["kl"].kind == "in_loss":
                d = s.reference[t] - logp[t]
                value = d * d / 2 if cells["kl"]["kl_estimator"] == "k2" else d.exp() - d - 1
                term = term + cells["kl"]["kl_coefficient"] * value
            terms.append(term)
        summed = sum(terms)
        total = (
            total
            + {
                "token_mean": summed / tokens,
                "sequence_mean": summed / len(said) / sequences,
                "sequence_sum": summed / sequences,
                "constant": summed / MAX_TOKENS / sequences,
            }[cells["reduction"].kind]
        )
    return total


def _unit(log_ratio: Tensor) -> Tensor:
    """1 in value, the log-ratio's gradient: what reinforce multiplies with."""
    return 1 + log_ratio - log_ratio.detach()


@pytest.mark.parametrize("kl", ["none", "k2", "k3"])
@pytest.mark.parametrize("name", ALGORITHMS)
def test_loss_and_gradient_equal_the_formula_written_out_token_by_token(
    learners: dict[Layout, SingleLearner], name: str, kl: str
) -> None:
    changes = {} if kl == "none" else {"kl": "in_loss", "kl_estimator": kl, "kl_coefficient": 0.3}
    algorithm, batch = choose(name, changes), samples()
    loss, found = gradient(learners["tree"], algorithm, batch, 40)
    learner = learners["rows"]
    learner.masters.zero_grad()
    expected = slow_loss(learner, algorithm, batch)
    expected.backward()
    flat = torch.cat([p.grad.flatten() for p in learner.masters.parameters])
    assert loss == pytest.approx(float(expected.detach()), abs=1e-6)
    close(found, flat)


def test_a_sample_that_teaches_nothing_changes_nothing(learners: dict[Layout, SingleLearner]) -> None:
    batch = samples()
    without = [s for s in batch if bool(s.mask.any())]
    assert len(without) == len(batch) - 1
    for name in ALGORITHMS:
        loss, expected = gradient(learners["tree"], ALGORITHMS[name], without, 50)
        again, found = gradient(learners["tree"], ALGORITHMS[name], batch, 50)
        assert again == pytest.approx(loss, abs=1e-6)
        close(found, expected)


def test_one_update_without_recorded_log_probabilities_has_the_policy_gradient(
    learners: dict[Layout, SingleLearner],
) -> None:
    """On-policy, clip = reinforce: the ratio is 1 in value and the log-probability in its gradient."""
    batch = [replace(s, previous=None) for s in samples()]
    plain = {"correction": "none", "credit": "group_mean", "reduction": "token_mean"}
    _, clipped = gradient(learners["tree"], choose("grpo", plain), batch, 60)
    _, expected = gradient(learners["tree"], choose("reinforce", plain), batch, 60)
    torch.testing.assert_close(clipped, expected, atol=1e-12, rtol=0)
