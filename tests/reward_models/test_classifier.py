"""A classifier's verdict is the arithmetic of what its models say of the sampled ids, once they are known."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from posttrain.errors import ModelError, RecipeError
from posttrain.models.scoring import load_reward_model, states
from posttrain.recipe import Reward
from posttrain.rewards import signature_of
from posttrain_reward_models.classifier import Classifier, dropout_mask
from tests.data import user
from tests.reward_models.scorers import GOLDEN, arguments, asked, card, measured_folder, plainly, said, scorer_folder
from tests.tiny import tiny_folder

FP32 = {"dtype": "float32", "device": "cpu"}
PROMPT = asked("how")
ANSWERS = [said(PROMPT, "a b c"), said(PROMPT, "zzz", stop=False), said(PROMPT, "q")]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """An ensemble of two models with two heads each."""
    root = tmp_path_factory.mktemp("ensemble")
    return [str(measured_folder(root / f"seed{seed}", outputs=2, seed=seed)) for seed in (3, 4)]


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(measured_folder(tmp_path_factory.mktemp("single") / "model"))


def by_hand(models: list[str]) -> list[list[float]]:
    """What every member says, per response."""
    return [[score for model in models for score in plainly(Path(model), r.tokens)] for r in ANSWERS]


def test_a_single_models_verdict_is_its_output_after_the_last_sampled_token(single: str) -> None:
    verdicts = Classifier(single, **FP32)(**arguments(PROMPT, *ANSWERS))
    for verdict, (expected,) in zip(verdicts, by_hand([single]), strict=True):
        # fp32.
        assert verdict.score == pytest.approx(expected, abs=1e-5)
        assert verdict.parts == {"model0": verdict.score, "std": 0.0}
        assert (verdict.status, verdict.steps) == ("ok", ())


@pytest.mark.parametrize("aggregate", ["mean", "worst", "uwo"])
def test_an_ensemble_is_aggregated_over_models_and_heads(models: list[str], aggregate: Any) -> None:
    verdicts = Classifier(models, aggregate, penalty=0.7, **FP32)(**arguments(PROMPT, *ANSWERS))
    for verdict, members in zip(verdicts, by_hand(models), strict=True):
        mean = (members[0] + members[1] + members[2] + members[3]) / 4
        variance = sum((m - mean) * (m - mean) for m in members) / 4
        expected = {"mean": mean, "worst": sorted(members)[0], "uwo": mean - 0.7 * variance}[aggregate]
        # fp32.
        assert verdict.score == pytest.approx(expected, abs=1e-5)
        assert list(verdict.parts) == ["model0.head0", "model0.head1", "model1.head0", "model1.head1", "std"]
        assert list(verdict.parts.values()) == pytest.approx([*members, math.sqrt(variance)], abs=1e-5)
        assert verdict.parts["std"] > 0.01


def test_dropout_masks_are_members_that_stay_the_same(single: str) -> None:
    grader = Classifier(single, "worst", dropout=0.25, samples=3, **FP32)
    first = grader(**arguments(PROMPT, *ANSWERS))
    model = load_reward_model(Path(single), torch.float32, "cpu")
    for verdict, rollout in zip(first, ANSWERS, strict=True):
        (hidden,) = states(model, [rollout.tokens], [[len(rollout.tokens) - 1]])
        masks = [dropout_mask(64, 0.25, 0, k) for k in range(3)]
        expected = [
            sum(float(h) * float(m) * float(w) for h, m, w in zip(hidden[0], mask, model.score.weight[0], strict=True))
            for mask in masks
        ]
        # fp32.
        assert [verdict.parts[f"model0.mask{k}"] for k in range(3)] == pytest.approx(expected, abs=1e-5)
        assert verdict.score == min(verdict.parts[f"model0.mask{k}"] for k in range(3))
    assert Classifier(single, "worst", dropout=0.25, samples=3, **FP32)(**arguments(PROMPT, *ANSWERS)) == first


def test_a_dropout_mask_hides_its_share_and_scales_the_rest() -> None:
    mask = dropout_mask(20000, 0.25, 1, 2)
    assert sorted(set(mask.tolist())) == pytest.approx([0.0, 4 / 3])
    # Four standard deviations of a share of 20,000.
    assert float((mask == 0).float().mean()) == pytest.approx(0.25, abs=4 * math.sqrt(0.25 * 0.75 / 20000))
    assert not torch.equal(mask, dropout_mask(20000, 0.25, 1, 3))
    assert not torch.equal(mask, dropout_mask(20000, 0.25, 2, 2))


def test_bins_are_read_as_the_value_that_they_expect(tmp_path: Path) -> None:
    folder = scorer_folder(tmp_path, outputs=5, value_low=-1.0, value_high=4.0)
    verdicts = Classifier(str(folder), allow_unmeasured=True, **FP32)(**arguments(PROMPT, *ANSWERS))
    for verdict, rollout in zip(verdicts, ANSWERS, strict=True):
        weights = [math.exp(x) for x in plainly(folder, rollout.tokens)]
        expected = sum(w * (k - 0.5) for k, w in enumerate(weights)) / sum(weights)
        # fp32.
        assert verdict.parts == {"model0": pytest.approx(expected, abs=1e-5), "std": 0.0}


def refusal(path: Any, **settings: Any) -> str:
    reward = Reward(verifier="posttrain_reward_models.classifier:Classifier", settings={"path": path, **settings})
    with pytest.raises(RecipeError) as caught:
        signature_of(reward, "rewards[0]")
    return str(caught.value)


def test_a_model_without_a_card_is_refused_unless_that_is_allowed(tmp_path: Path) -> None:
    folder = str(scorer_folder(tmp_path / "model"))
    message = refusal(folder)
    for words in ("rewards[0].settings", "has no card.json", "allow_unmeasured: true", "measure it"):
        assert words in message
    Classifier(folder, allow_unmeasured=True)
    card(tmp_path / "model", Path(folder), low=None)
    assert "a card without an accuracy on pairs" in refusal(folder)
    Classifier(folder, allow_unmeasured=True)


@pytest.mark.parametrize(
    ("low", "settings", "refused"),
    [
        (0.51, {}, False),
        (0.5, {}, True),
        (0.43, {}, True),
        (0.43, {"minimum_accuracy": 0}, False),
        (0.7, {"minimum_accuracy": 0.75}, True),
        (float("nan"), {}, True),
        (0.43, {"allow_unmeasured": True}, True),
    ],
)
def test_the_lower_end_of_the_interval_must_lie_above_what_is_asked(
    tmp_path: Path, low: float, settings: dict[str, Any], refused: bool
) -> None:
    folder = scorer_folder(tmp_path / "model")
    card(folder, folder, low)
    if not refused:
        Classifier(str(folder), **settings)
        return
    message = refusal(str(folder), **settings)
    for words in (f"{low + 0.1:.1%} of 200 held-out pairs", f"interval {low:.1%} to", "minimum_accuracy: 0"):
        assert words in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "is damaged"),
        ('{"accuracy_low": "high"}', "is damaged"),
        ('{"accuracy_low": 0.6, "golden": [{"scores": [1]}]}', "is damaged"),
    ],
)
def test_a_damaged_card_is_no_card(tmp_path: Path, content: str, words: str) -> None:
    folder = scorer_folder(tmp_path / "model")
    (folder / "card.json").write_text(content)
    assert words in refusal(str(folder), allow_unmeasured=True)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"aggregate": "median"}, ["aggregate", "'median'", "uwo"]),
        ({"samples": 2}, ["samples", "dropout above 0"]),
        ({"dropout": 1.0}, ["dropout: 1"]),
        ({"penalty": -1}, ["penalty: -1"]),
        ({"dtype": "int8"}, ["dtype", "'int8'"]),
        ({"agregate": "mean"}, ["settings.agregate", "'aggregate'"]),
        ({"path": []}, ["path", "empty list"]),
        ({"path": "runs/none"}, ["path", "no folder here", "the hub has no card"]),
        ({"path": "./none"}, ["path", "no folder"]),
    ],
)
def test_a_setting_that_means_nothing_is_named(single: str, settings: dict[str, Any], words: list[str]) -> None:
    message = refusal(**{"path": single, **settings})
    assert all(word in message for word in words), message


def test_a_model_without_a_head_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    assert "without a head that scores" in refusal(str(tiny_folder(tmp_path)), allow_unmeasured=True)


def test_what_a_stage_will_make_is_not_looked_for_until_it_is_loaded() -> None:
    grader = Classifier("stage:reward")
    with pytest.raises(ValueError, match=r"stage:reward.*made by a stage"):
        grader.prepare()


def test_the_card_is_found_in_the_model_its_checkpoint_or_its_run(tmp_path: Path) -> None:
    policy = scorer_folder(tmp_path / "run" / "checkpoints" / "step-000003" / "policy")
    (policy.parent / "manifest.json").write_text("{}")
    for place in (policy, policy.parent, tmp_path / "run"):
        written = card(place, policy)
        for path in (policy, tmp_path / "run"):
            Classifier(str(path), **FP32).prepare()
        written.unlink()
    # A card beside other folders is not theirs.
    card(tmp_path / "elsewhere", policy)
    alone = scorer_folder(tmp_path / "elsewhere" / "models" / "policy")
    assert "has no card.json" in refusal(str(alone))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_the_golden_scores_are_said_again_in_every_dtype(single: str, dtype: Any) -> None:
    Classifier(single, dtype=dtype).prepare()


def damaged(folder: Path, name: str, factor: float) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors[name] = tensors[name] * factor
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["score.weight", "model.layers.1.mlp.down_proj.weight"])
def test_a_model_that_says_other_golden_scores_is_not_served(tmp_path: Path, name: str, dtype: Any) -> None:
    folder = measured_folder(tmp_path / "model")
    damaged(folder, name, -1.0)
    with pytest.raises(ValueError, match=r"path\[0\]: .* is not what was measured: of golden sequence 0") as caught:
        Classifier([str(folder)], dtype=dtype, device="cpu").prepare()
    assert "measure it again" in str(caught.value)


def test_golden_scores_of_a_coarser_or_unknown_dtype_are_held_to_its_tolerance(tmp_path: Path) -> None:
    folder = measured_folder(tmp_path / "model")
    damaged(folder, "score.weight", 1.02)
    with pytest.raises(ValueError, match="allowed in float32"):
        Classifier(str(folder), **FP32).prepare()
    written = json.loads((folder / "card.json").read_text())
    for dtype in ("bfloat16", None):
        golden = [{**entry, "dtype": dtype} for entry in written["golden"]]
        if dtype is None:
            golden = [{name: entry[name] for name in ("tokens", "scores")} for entry in golden]
        (folder / "card.json").write_text(json.dumps({**written, "golden": golden}))
        Classifier(str(folder), **FP32).prepare()


@pytest.mark.parametrize("change", ["none", "fewer heads", "not a number"])
def test_a_card_that_proves_nothing_is_refused(tmp_path: Path, change: str) -> None:
    folder = scorer_folder(tmp_path / "model", outputs=2)
    golden = [{"tokens": ids, "scores": plainly(folder, ids)} for ids in GOLDEN]
    changed: dict[str, list[Any]] = {
        "none": [],
        "fewer heads": [{**entry, "scores": entry["scores"][:1]} for entry in golden],
        "not a number": [{**golden[0], "scores": [float("nan")] * 2}],
    }
    card(folder, folder, golden=changed[change])
    with pytest.raises(ValueError, match="no golden scores" if change == "none" else "is not what was measured"):
        Classifier(str(folder), **FP32).prepare()


def test_a_response_that_cannot_be_read_is_an_error_and_the_others_are_scored(single: str) -> None:
    long = said(PROMPT, "a" * 300)
    verdicts = Classifier(single, **FP32)(**arguments(PROMPT, ANSWERS[0], long, ANSWERS[2]))
    expected = by_hand([single])
    assert [v.status for v in verdicts] == ["ok", "error", "ok"]
    assert "longer than the 256 the reward model reads" in verdicts[1].reason
    # fp32.
    assert verdicts[0].score == pytest.approx(expected[0][0], abs=1e-5)
    assert verdicts[2].score == pytest.approx(expected[2][0], abs=1e-5)


def test_another_tokenizer_reads_the_rows_messages_or_says_that_it_cannot(single: str) -> None:
    grader = Classifier(single, **FP32)
    theirs = arguments(PROMPT, ANSWERS[0])
    theirs["prompt_ids"] = [tuple(t + 1 for t in PROMPT.tokens)]
    (verdict,) = grader(**theirs)
    assert (verdict.score, verdict.status) == (None, "error")
    assert "tokenizer reads the sampled ids as other words" in verdict.reason
    chat = [{"role": "system", "content": "be good"}, user("how")]
    (verdict,) = grader(**{**theirs, "prompts": [chat]})
    ids = [0, 6, 12, 21, 24, 14, 26, 34, 34, 23, 1, 12, *ANSWERS[0].tokens]
    # fp32.
    assert verdict.score == pytest.approx(plainly(Path(single), ids)[0], abs=1e-5)


def test_a_served_head_is_the_saved_one(single: str) -> None:
    grader = Classifier(single)
    grader.prepare()
    saved = AutoModelForSequenceClassification.from_pretrained(single, dtype=torch.float32).score.weight
    assert torch.equal(grader._served[0].model.score.weight, saved)


def test_a_missing_folder_of_an_ensemble_is_named_by_its_place(single: str) -> None:
    with pytest.raises(ModelError, match=r"path\[1\]"):
        Classifier([single, "./none"])
