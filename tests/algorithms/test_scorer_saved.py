"""What a reward model says of a response depends on nothing else, is what is saved, and is read where it should be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from posttrain.algorithms.choice import choose
from posttrain.algorithms.scorer_loss import label, read_scores
from posttrain.algorithms.table import ALGORITHMS
from posttrain.learner.layout import Layout
from posttrain.models.scoring import load_reward_model, score_tokens
from posttrain.types import Group, Rollout, Sample, Verdict
from tests.algorithms.made_scorers import BUDGETS, GROUPS, LAYOUTS, ROLLOUTS, gradient, learner_over
from tests.tiny import prompt


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("scorers")


def test_a_changed_token_of_one_response_leaves_the_scores_of_all_others_as_they_are(root: Path) -> None:
    learner = learner_over(root / "1", "packed")
    learner.packing = replace(learner.packing, budget=10**9)
    before = learner.outputs(ROLLOUTS)
    for i, rollout in enumerate(ROLLOUTS):
        other = replace(rollout, tokens=(*rollout.tokens[:-1], rollout.tokens[-1] ^ 1))
        after = learner.outputs([*ROLLOUTS[:i], other, *ROLLOUTS[i + 1 :]])
        changed = [not torch.equal(a, b) for a, b in zip(before, after, strict=True)]
        assert changed == [j == i for j in range(len(ROLLOUTS))]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_score_alone_is_that_in_any_batch_and_that_of_the_plain_classifier(root: Path, layout: Layout) -> None:
    learner = learner_over(root / "3", layout, 3)
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


def test_what_is_reported_of_preferences_is_counted_pair_by_pair(root: Path) -> None:
    learner, right, margins, count = learner_over(root / "1", "tree"), 0.0, 0.0, 0
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
