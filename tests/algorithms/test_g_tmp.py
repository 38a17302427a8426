"""Reward models: every row's loss and gradient equal the formula written out, in every layout and cut, and what is
saved says what was trained.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from posttrain.algorithms.choice import choose
from posttrain.algorithms.row import Algorithm
from posttrain.algorithms.scorer_loss import label, read_scores
from posttrain.algorithms.state import Coefficients
from posttrain.algorithms.table import ALGORITHMS
from posttrain.data.packing import Packing, pack
from posttrain.learner.computation import Computation
from posttrain.learner.layout import Layout
from posttrain.learner.scorer import ScorerLearner
from posttrain.models.checkpoint import load_scorer, load_tokenizer, with_adapters
from posttrain.models.scoring import load_reward_model, score_tokens
from posttrain.recipe import Lora, Optimizer
from posttrain.types import Group, Rollout, Sample, Verdict
from tests.algorithms.slow_scores import SCORES, goal_loss, nothing, step_loss
from tests.reward_models.scorers import scorer_folder
from tests.tiny import prompt, samples

LAYOUTS: tuple[Layout, ...] = ("rows", "tree", "packed")
BUDGETS = (1, 24, 10**9)
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
WORTH = ((1.0, 0.0), (0.25, 1.0, 0.0), (0.5, None, 0.75, 0.25), (0.5, 0.5), (1.0,))
"""A pair, a list, one with a tie and an answer that nobody graded, a tie alone, and a single answer."""


def rolled() -> list[Group]:
    """Groups of unequal sizes and lengths, a tool span inside one response, each response with labelled steps."""
    found: dict[int, list[Rollout]] = {}
    for sample in samples(groups=3):
        found.setdefault(sample.group, []).append(sample.rollout)
    found |= {3: found[1][:2], 4: found[2][:1]}
    out = []
    for name, rollouts in found.items():
        verdicts = [Verdict(s) if s is not None else Verdict(None, "error") for s in WORTH[name]]
        for i, rollout in enumerate(rollouts):
            cuts = sorted({(3 * i + name) % rollout.length, rollout.length - 1})
            steps = tuple((at, (at + i) % 3 / 2) for at in cuts)
            verdicts[i] = replace(verdicts[i], steps=steps if verdicts[i].score is not None else ())
        asked = rollouts[0].tokens[: rollouts[0].mask.index(True)]
        out.append(Group(prompt(asked), tuple(rollouts), tuple(verdicts)))
    return out


GROUPS = rolled()
ROLLOUTS = [r for group in GROUPS for r in group.rollouts]


def outputs_of(algorithm: Algorithm) -> int:
    settings = algorithm.objective.settings
    return int(settings.get("value_bins", settings.get("heads", 1)))


def learner_over(
    folder: Path, layout: Layout = "tree", outputs: int = 1, lora: bool = False, budget: int = 60
) -> ScorerLearner:
    """The real learner on a tiny scorer with a random head, in double precision."""
    if not folder.exists():
        scorer_folder(folder, outputs)
    torch.manual_seed(1)
    model = load_scorer(folder, outputs, torch.float64, "cpu")
    if lora:
        model = with_adapters(model, Lora(rank=3, alpha=6.0), scorer=True)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                # An adapter starts from nothing.
                torch.nn.init.normal_(parameter, std=0.1)
    settings = Computation(layout, budget, logit_chunk=7, temperature=1.0)
    return ScorerLearner(model, load_tokenizer(folder), Optimizer(learning_rate=1e-2), settings, total_updates=10)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scorers")


Learners = dict[tuple[str, int], ScorerLearner]


@pytest.fixture(scope="module")
def learners(root: Path) -> Learners:
    """By layout and how many outputs."""
    counts = sorted({outputs_of(choose(name, changes)) for name, changes in CHANGED})
    return {(layout, n): learner_over(root / str(n), layout, n) for layout, n in product(LAYOUTS, counts)}


def flat(learner: ScorerLearner) -> Tensor:
    parameters = learner.stepper.masters.parameters
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])


def gradient(
    learner: ScorerLearner, algorithm: Algorithm, budget: int = 10**9, groups: Sequence[Group] = GROUPS
) -> tuple[dict[str, float], Tensor]:
    """What one optimiser step over the groups reports, and its gradient."""
    learner.discard()
    labelled, _ = label(algorithm, groups)
    packing = Packing(budget, learner.packing.share_prompts, learner.packing.dtype)
    report, _ = learner.accumulate(list(pack(labelled, packing)), algorithm, Coefficients(1))
    return report.values(), flat(learner)


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
    for learner.version in range(400):
        with torch.no_grad():
            (batch,) = pack(label(algorithm, GROUPS[:1])[0], replace(learner.packing, budget=10**9))
            scores.append(learner._score(batch, algorithm).values[batch.mask].flatten())
    learner.version = before
    found, expected = torch.stack(scores), torch.stack(learner.outputs(GROUPS[0].rollouts)).flatten()
    error = found.std(0) / 20
    # The order in a batch is by length; five standard errors of the mean of 400.
    assert bool(((found.mean(0).sort().values - expected.sort().values).abs() <= 5 * error.max()).all())
    assert gradient(learner, ALGORITHMS["reward_bradley_terry"])[0]["learn/score"] == plain


def test_a_changed_token_of_one_response_leaves_the_scores_of_all_others_as_they_are(learners: Learners) -> None:
    learner = learners["packed", 1]
    learner.packing = replace(learner.packing, budget=10**9)
    before = learner.outputs(ROLLOUTS)
    for i, rollout in enumerate(ROLLOUTS):
        other = replace(rollout, tokens=(*rollout.tokens[:-1], rollout.tokens[-1] ^ 1))
        after = learner.outputs([*ROLLOUTS[:i], other, *ROLLOUTS[i + 1 :]])
        changed = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        assert changed == [j == i for j in range(len(ROLLOUTS))]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_score_alone_is_that_in_any_batch_and_that_of_the_plain_classifier(learners: Learners, layout: str) -> None:
    learner = learners[layout, 3]
    with torch.no_grad():
        plain = [learner.model(torch.tensor([r.tokens])).logits[0] for r in ROLLOUTS]
    for budget in BUDGETS:
        learner.packing = replace(learner.packing, budget=budget)
        together = learner.outputs(ROLLOUTS)
        alone = [learner.outputs([r])[0] for r in ROLLOUTS]
        for a, b, c in zip(together, alone, plain, strict=True):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)
            torch.testing.assert_close(a, c, atol=1e-6, rtol=1e-6)


def ended(rollouts: Sequence[Rollout]) -> list[Rollout]:
    """With the token that ends a turn, as a model is trained on it: it is the tokenizer's padding, too."""
    return [replace(r, tokens=(*r.tokens, 1), mask=(*r.mask, True), logprobs=None, versions=None) for r in rollouts]


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "adapters"])
@pytest.mark.parametrize("outputs", [1, 3])
def test_a_saved_reward_model_says_the_same_in_transformers_and_as_a_grader(
    root: Path, tmp_path: Path, lora: bool, outputs: int
) -> None:
    learner = learner_over(root / str(outputs), "tree", outputs, lora)
    gradient(learner, choose("reward_bradley_terry", {"heads": outputs}))
    learner.step()
    rollouts = ended(ROLLOUTS)
    expected = torch.stack(learner.outputs(rollouts))
    learner.save(tmp_path)
    assert {n for n in load_file(tmp_path / "policy" / "model.safetensors") if "lora" in n or "modules" in n} == set()
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "policy", dtype=torch.float64)
    assert model.config.num_labels == outputs
    torch.testing.assert_close(model.score.weight, learner.head.weight)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "policy")
    assert tokenizer.eos_token_id == 1
    assert tokenizer.pad_token_id == model.config.pad_token_id != 1
    tokenizer.padding_side = "right"
    padded = tokenizer.pad({"input_ids": [list(r.tokens) for r in rollouts]}, return_tensors="pt")
    with torch.no_grad():
        found = model(**padded).logits
    # Adapters are added to weights in single precision.
    bound = 1e-5 if lora else 1e-6
    torch.testing.assert_close(found, expected, atol=bound, rtol=bound)
    grader = load_reward_model(tmp_path / "policy", torch.float64, "cpu")
    scores = score_tokens(grader, [r.tokens for r in rollouts], batch_tokens=50)
    torch.testing.assert_close(scores, expected, atol=bound, rtol=bound)


def test_a_learner_goes_on_from_what_it_saved_to_the_bit(root: Path, tmp_path: Path) -> None:
    algorithm = choose("reward_bradley_terry", {"head_dropout": 0.3})
    one, two = learner_over(root / "1"), learner_over(root / "1")
    gradient(one, algorithm)
    one.step()
    one.save(tmp_path)
    two.load(tmp_path)
    for learner in (one, two):
        gradient(learner, algorithm)
        learner.step()
    assert one.version == two.version == 2
    for a, b in zip(one.outputs(ROLLOUTS), two.outputs(ROLLOUTS), strict=True):
        assert torch.equal(a, b)


class TestLabels:
    def labelled(self, name: str, groups: Sequence[Group] = GROUPS) -> tuple[list[Sample], dict[str, float]]:
        found, report = label(ALGORITHMS[name], groups)
        return found, report.values()

    def test_a_model_is_read_after_the_last_token_that_was_said(self) -> None:
        tool = Rollout((2, 3, 4, 5, 6, 7), (False, False, True, False, True, False), "", "given")
        (sample,), _ = self.labelled("reward_regression", [Group(prompt([2, 3]), (tool,), (Verdict(0.3),))])
        assert sample.mask.tolist() == [False, False, False, False, True, False]
        assert sample.score == 0.3
        assert sample.returns is None

    def test_states_are_read_after_every_token_that_was_said(self) -> None:
        found, _ = self.labelled("reward_goal_conditioned")
        assert all(s.mask.tolist() == list(s.rollout.mask) for s in found)

    def test_a_step_is_read_at_its_end_among_the_tokens_that_were_said(self) -> None:
        tool = Rollout((2, 3, 4, 5, 6, 7), (False, False, True, False, True, True), "", "given")
        steps = Verdict(0.5, steps=((1, 0.25), (2, 1.0)))
        (sample,), _ = self.labelled("reward_process", [Group(prompt([2, 3]), (tool,), (steps,))])
        assert sample.mask.tolist() == [False, False, False, False, True, True]
        assert sample.returns.tolist() == [0, 0, 0, 0, 0.25, 1.0]

    @pytest.mark.parametrize(("name", "usable"), [("reward_bradley_terry", 4), ("reward_regression", 5)])
    def test_what_nobody_graded_is_left_out_and_counted(self, name: str, usable: int) -> None:
        found, report = self.labelled(name)
        assert report["learn/ungraded_fraction"] == pytest.approx(1 / 12)
        assert report["learn/unusable_groups"] == pytest.approx((5 - usable) / 5)
        assert {s.group for s in found} == set(range(usable))
        graded = [v.score for g in GROUPS[:usable] for v in g.verdicts if v.score is not None]
        assert [s.score for s in found] == graded


def test_what_is_reported_of_preferences_is_counted_pair_by_pair(learners: Learners) -> None:
    learner, right, margins, count = learners["tree", 1], 0.0, 0.0, 0
    report, _ = gradient(learner, ALGORITHMS["reward_bradley_terry"], 24)
    for group in GROUPS[:4]:
        graded = [(v.score, i) for i, v in enumerate(group.verdicts) if v.score is not None]
        said = [float(x) for x in torch.stack(learner.outputs(group.rollouts)).flatten()]
        best, worst = (next(i for s, i in graded if s == f(graded)[0]) for f in (max, min))
        if group.verdicts[best].score != group.verdicts[worst].score:
            margin, count = said[best] - said[worst], count + 1
            right, margins = right + (margin > 0), margins + margin
    assert report["learn/preferred"] == pytest.approx(right / count)
    assert report["learn/margin"] == pytest.approx(margins / count)


def test_bins_are_read_as_the_score_they_mean() -> None:
    algorithm = choose("reward_binned", {"value_bins": 4, "value_low": -1.0, "value_high": 3.0})
    outputs = torch.tensor([[0.0, 0.0, 0.0, 0.0], [100.0, 0.0, 0.0, 0.0]], dtype=torch.float64)
    assert read_scores(algorithm, outputs).tolist() == [[1.0], [-0.5]]
    assert read_scores(ALGORITHMS["reward_regression"], outputs) is outputs
