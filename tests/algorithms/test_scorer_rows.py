"""Reward models: every row's loss and gradient equal the formula written out, in every layout and cut."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.algorithms.choice import choose
from posttrain.algorithms.row import Algorithm
from posttrain.algorithms.scorer_loss import label
from posttrain.algorithms.table import ALGORITHMS
from posttrain.data.packing import pack
from posttrain.learner.scorer import ScorerLearner
from posttrain.types import Group, Rollout, Verdict
from tests.algorithms.made_scorers import BUDGETS, GROUPS, LAYOUTS, gradient, learner_over, outputs_of
from tests.algorithms.slow_scores import SCORES, goal_loss, nothing, step_loss

ROWS = {name: row for name, row in ALGORITHMS.items() if row.needs.scorer}
CHANGED = [
    *((name, {}) for name in ROWS),
    ("reward_bradley_terry", {"heads": 3, "centring": 0.2}),
    ("reward_margin", {"heads": 3, "centring": 0.2}),
    ("reward_ties", {"heads": 3, "tie_theta": 3.0}),
    ("reward_outcome", {"heads": 3}),
    ("reward_process", {"heads": 3, "reduction": "sequence_mean"}),
    ("reward_process", {"reduction": "sequence_sum"}),
    ("reward_binned", {"value_bins": 7, "value_low": -0.2, "value_high": 1.2, "value_sigma": 1.0}),
    ("reward_goal_conditioned", {"contrast_temperature": 0.5, "contrast_coefficient": 2.0}),
    ("reward_plackett_luce", {"contrast": "goal", "contrast_coefficient": 1.0}),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scorers")


Learners = dict[tuple[str, int], ScorerLearner]


@pytest.fixture(scope="module")
def learners(root: Path) -> Learners:
    """By layout and how many outputs."""
    counts = sorted({outputs_of(choose(name, changes)) for name, changes in CHANGED})
    return {(layout, n): learner_over(root / str(n), layout, n) for layout, n in product(LAYOUTS, counts)}


def slow_loss(model: Any, algorithm: Algorithm, groups: Sequence[Group] = GROUPS) -> Tensor:
    """Whole sequences, one after another, through the plain classifier."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    losses, steps = [], []
    for group in groups:
        graded = [i for i, v in enumerate(group.verdicts) if v.score is not None]
        if len(graded) < algorithm.needs.min_group:
            continue
        read = {i: _read(inner, group.rollouts[i]) for i in graded}
        worth = {i: float(group.verdicts[i].score) for i in graded}
        if algorithm.needs.steps:
            marks = [(i, group.verdicts[i].steps) for i in graded]
            steps += [[step_loss(list(read[i][1][at]), label) for at, label in found] for i, found in marks]
            continue
        members = [(list(read[i][1][-1]), worth[i]) for i in graded]
        loss = SCORES[algorithm.objective.kind](members, algorithm.objective)
        if algorithm.contrast.kind == "goal":
            temperature = algorithm.contrast["contrast_temperature"]
            term = goal_loss([read[i][0] for i in graded], list(worth.values()), temperature)
            loss = loss + algorithm.contrast["contrast_coefficient"] * term
        losses.append(loss + nothing(members))
    if not algorithm.needs.steps:
        return sum(losses) / len(losses)
    per = {
        "token_mean": lambda: sum(map(sum, steps)) / sum(map(len, steps)),
        "sequence_mean": lambda: sum(sum(s) / len(s) for s in steps) / len(steps),
        "sequence_sum": lambda: sum(map(sum, steps)) / len(steps),
    }
    return per[algorithm.reduction.kind]()


def _read(inner: Any, rollout: Rollout) -> tuple[Tensor, Tensor]:
    """`[A, H]` states after each token that was said, and `[A, B]` what the head says of them."""
    states = inner.model(torch.tensor([rollout.tokens])).last_hidden_state[0][torch.tensor(rollout.mask)]
    return states, inner.score(states)


def close(found: tuple[dict[str, float], Tensor], learner: ScorerLearner, algorithm: Algorithm) -> None:
    """Within 1e-6 of the gradient's largest entry: transformers normalises in fp32 whatever the model's dtype."""
    loss = slow_loss(learner.model, algorithm)
    grads = torch.autograd.grad(loss, learner.stepper.masters.parameters, allow_unused=True)
    pairs = zip(learner.stepper.masters.parameters, grads, strict=True)
    expected = torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in pairs])
    assert found[0]["learn/loss"] == pytest.approx(float(loss.detach()), rel=1e-6)
    assert float(expected.abs().max()) > 1e-3
    assert float((found[1] - expected).abs().max()) <= 1e-6 * float(expected.abs().max())


@pytest.mark.parametrize(("name", "changes"), CHANGED, ids=str)
def test_a_reward_models_loss_and_gradient_equal_the_formula_in_every_layout_and_cut(
    learners: Learners, name: str, changes: dict[str, Any]
) -> None:
    algorithm = choose(name, changes)
    count = outputs_of(algorithm)
    everywhere = not changes and name in ("reward_bradley_terry", "reward_process", "reward_goal_conditioned")
    first = None
    for layout, budget in product(LAYOUTS, BUDGETS) if everywhere else zip(LAYOUTS, BUDGETS, strict=True):
        found = gradient(learners[layout, count], algorithm, budget)
        close(found, learners[layout, count], algorithm)
        first = first or found[0]
        assert found[0] == pytest.approx(first, rel=1e-6, abs=1e-9)


def test_the_margin_beside_a_preference_reaches_the_loss_in_every_layout(learners: Learners) -> None:
    (pair, *_), found = GROUPS, set()
    for layout in LAYOUTS:
        learner = learners[layout, 1]
        for margin in (2.5, -1.5):
            stated = replace(pair, verdicts=(Verdict(1.0, offset=margin), Verdict(0.0, offset=0.0)))
            loss = gradient(learner, ALGORITHMS["reward_margin"], groups=[stated])[0]["learn/loss"]
            said = [float(_read(learner.model, r)[1][-1, 0]) for r in pair.rollouts]
            assert loss == pytest.approx(math.log1p(math.exp(said[1] - said[0] + margin)), rel=1e-6)
            found.add(round(loss, 3))
    assert len(found) == 2


@pytest.mark.parametrize("name", ["reward_bradley_terry", "reward_goal_conditioned", "reward_process"])
def test_adapters_learn_and_the_head_beside_them_is_trained_whole(root: Path, name: str) -> None:
    algorithm, learner = ALGORITHMS[name], learner_over(root / "1", "packed", lora=True)
    trained = {n for n, p in learner.model.named_parameters() if p.requires_grad}
    assert all("lora_" in n or "score.modules_to_save" in n for n in trained)
    close(gradient(learner, algorithm, 24), learner, algorithm)
    assert all(p.grad is not None and bool(p.grad.any()) for p in learner.stepper.masters.parameters)


@pytest.mark.parametrize("name", ["reward_bradley_terry", "reward_process"])
def test_what_dropout_hides_from_the_heads_is_the_same_however_an_update_is_cut(learners: Learners, name: str) -> None:
    algorithm = choose(name, {"heads": 3, "head_dropout": 0.4})
    plain = choose(name, {"heads": 3})
    expected = gradient(learners["rows", 3], algorithm)
    assert expected[0]["learn/loss"] != pytest.approx(gradient(learners["rows", 3], plain)[0]["learn/loss"], rel=1e-3)
    for layout, budget in product(LAYOUTS, BUDGETS):
        found = gradient(learners[layout, 3], algorithm, budget)
        assert found[0] == pytest.approx(expected[0], rel=1e-6, abs=1e-9)
        assert float((found[1] - expected[1]).abs().max()) <= 1e-6 * float(expected[1].abs().max())
    learner = learners["rows", 3]
    learner.version += 1
    again = gradient(learner, algorithm)
    learner.version -= 1
    assert again[0]["learn/loss"] != pytest.approx(expected[0]["learn/loss"], rel=1e-3)


def test_dropout_leaves_scores_as_they_are_on_average_and_does_not_touch_what_is_read(learners: Learners) -> None:
    learner, algorithm = learners["tree", 1], choose("reward_bradley_terry", {"head_dropout": 0.5})
    before, scores = learner.version, []
    plain = gradient(learner, ALGORITHMS["reward_bradley_terry"])[0]["learn/score"]
    for learner.version in range(100):
        with torch.no_grad():
            (batch,) = pack(label(algorithm, GROUPS[:1])[0], replace(learner.packing, budget=10**9))
            scores.append(learner._score(batch, algorithm).values[batch.mask].flatten())
    learner.version = before
    found, expected = torch.stack(scores), torch.stack(learner.outputs(GROUPS[0].rollouts)).flatten()
    error = found.std(0) / 10
    # The order in a batch is by length; five standard errors of the mean of 100.
    assert bool(((found.mean(0).sort().values - expected.sort().values).abs() <= 5 * error.max()).all())
    assert gradient(learner, ALGORITHMS["reward_bradley_terry"])[0]["learn/score"] == plain
