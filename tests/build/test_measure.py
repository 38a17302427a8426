"""A trained reward model has a card that says what it is worth, and grades other runs only where that is enough."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from posttrain.errors import PosttrainError
from posttrain.metrics import RunFolder
from posttrain.metrics.card import RewardCard
from posttrain.metrics.reliability import ScoredPair, calibration
from posttrain.metrics.statistics import wilson
from tests.data import ASK, SYSTEM, USER
from tests.loops.test_held_out import answers, asked, ids
from tests.offline_runs import WORDS, Rows, checked, command, evaluated, lists, pairs, prepare, scored, steps, train
from tests.reward_models.scorers import plainly
from tests.runs import metrics
from tests.tiny import tiny_folder

NEAR = 1e-4
"""Scores of a few units in fp32."""
SUBSETS = ("chat", "maths", "safety")


def with_subsets(rows: Rows) -> Rows:
    return [{**row, "subset": SUBSETS[i % 3]} for i, row in enumerate(rows)]


def with_every_third_reversed(rows: Rows) -> Rows:
    return [
        {**row, "chosen": row["rejected"], "rejected": row["chosen"]} if i % 3 == 0 else row
        for i, row in enumerate(rows)
    ]


def weights(run: Path) -> Path:
    folder = RunFolder(run)
    return folder.checkpoint_path(folder.checkpoints()[-1]) / "policy"


def gaps(run: Path, rows: Rows) -> list[float]:
    """By how much each row's better answer scores higher, by plain forward passes; the mean of an ensemble."""
    out = []
    for row in rows:
        said = [plainly(weights(run), asked(row) + answer) for _, answer in answers(row)]
        better, worse = (sum(members) / len(members) for members in said)
        out.append(better - worse)
    return out


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model that is right on two thirds of 24 held-out pairs, or so."""
    folder = tmp_path_factory.mktemp("trained")
    held = with_subsets(with_every_third_reversed(pairs(24, 40)))
    train(prepare(folder, "reward_bradley_terry", pairs(16), held, run={"steps": 6, "save_every": 0}))
    return folder


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An ensemble that is right."""
    folder = tmp_path_factory.mktemp("good")
    algorithm = {"name": "reward_bradley_terry", "heads": 3, "head_dropout": 0.2}
    train(prepare(folder, algorithm, pairs(16), pairs(16, 40), run={"steps": 6, "save_every": 0}))
    return folder


def card_of(folder: Path) -> Mapping[str, Any]:
    found = RewardCard.read(folder)
    assert found is not None
    return found.as_json()


class TestCard:
    def test_it_lies_in_the_run_and_beside_the_weights(self, trained: Path) -> None:
        run = trained / "run"
        for name in ("card.json", "reliability.png"):
            assert (run / name).read_bytes() == (weights(run) / name).read_bytes()

    def test_its_accuracy_is_the_share_of_pairs_whose_better_answer_scores_higher(self, trained: Path) -> None:
        rows = with_subsets(with_every_third_reversed(pairs(24, 40)))
        found, card = gaps(trained / "run", rows), card_of(trained / "run")
        right = sum(gap > 0 for gap in found)
        assert 0.5 < right / len(found) < 0.8
        assert (card["accuracy"], card["pairs"]) == (right / len(found), 24)
        assert (card["accuracy_low"], card["accuracy_high"]) == pytest.approx(wilson(right, len(found)))
        for subset in card["by_subset"]:
            of = [gap > 0 for gap, row in zip(found, rows, strict=True) if row["subset"] == subset["subset"]]
            assert (subset["count"], subset["accuracy"]) == (len(of), sum(of) / len(of))
        assert [subset["subset"] for subset in card["by_subset"]] == sorted(SUBSETS)
        error = 0.0
        for place in range(10):
            sure = [(1 / (1 + math.exp(-abs(g))), g > 0) for g in found]
            of_bin = [(s, r) for s, r in sure if min(int((s - 0.5) * 20), 9) == place]
            if of_bin:
                error += abs(sum(s for s, _ in of_bin) - sum(r for _, r in of_bin)) / len(found)
        assert card["ece"] == pytest.approx(error, abs=NEAR)

    def test_its_golden_scores_are_those_of_plain_forward_passes(self, trained: Path) -> None:
        golden = card_of(trained / "run")["golden"]
        assert len(golden) == 8
        for entry in golden:
            assert entry["tokens"][-1] == 1
            assert entry["scores"] == pytest.approx(plainly(weights(trained / "run"), entry["tokens"]), abs=NEAR)

    def test_no_score_depends_on_what_is_read_beside_it(self, trained: Path) -> None:
        found = card_of(trained / "run")["invariance"]
        assert set(found) == {"alone", "swapped", "padded"}
        assert all(0 <= change < NEAR for change in found.values())

    def test_its_length_figures_count_the_answers_tokens_alone(self, trained: Path) -> None:
        rows = with_every_third_reversed(pairs(24, 40))
        lengths = [[len(answer) for _, answer in answers(row)] for row in rows]
        unequal = [(a, b) for a, b in lengths if a != b]
        found = card_of(trained / "run")["length"]
        assert found["unequal"] == len(unequal)
        assert found["longer_by_data"] == pytest.approx(sum(a > b for a, b in unequal) / len(unequal))

    def test_evaluating_the_run_says_the_same(self, trained: Path) -> None:
        card = {
            name: value for name, value in card_of(trained / "run").items() if name != "golden" and value is not None
        }
        found = evaluated(trained / "run")
        assert {name: found[name] for name in card} == card
        assert (found["step"], found["model"]) == (6, str(trained / "run"))

    def test_what_the_run_measured_on_its_way_agrees(self, trained: Path) -> None:
        last = metrics(trained / "run")[-1]
        assert last["eval/preferred"] == card_of(trained / "run")["accuracy"]
        assert last["eval/margin"] == pytest.approx(
            sum(gaps(trained / "run", with_every_third_reversed(pairs(24, 40)))) / 24, abs=NEAR
        )

    def test_a_model_that_was_not_trained_here_is_evaluated_by_its_run(self, trained: Path) -> None:
        with pytest.raises(PosttrainError, match="evaluate the folder of its run"):
            command("evaluate", trained / "recipe.yaml", "--json")


def grading(folder: Path, model: Path, **settings: Any) -> Path:
    """A recipe of one step whose grader is a reward model."""
    rewards = [
        {
            "verifier": "posttrain_reward_models.classifier:Classifier",
            "settings": {"path": str(model), "device": "cpu", "dtype": "float32", **settings},
        }
    ]
    return prepare(
        folder,
        "rloo",
        [{"prompt": f"say {i}"} for i in range(8)],
        rewards=rewards,
        grading={"workers": 1, "timeout": 60},
        rollout={"engine": "transformers", "group_size": 2, "max_tokens": 5},
        run={"steps": 1, "save_every": 0},
    )


class TestGrading:
    def test_a_run_is_graded_by_the_model_that_another_run_made(self, good: Path, tmp_path: Path) -> None:
        path = grading(tmp_path, good / "run")
        train(path)
        rows = RunFolder(tmp_path / "run").read_rollouts("step", 1)
        assert len(rows) == 8
        for row in rows:
            members = plainly(weights(good / "run"), row["tokens"])
            assert len(members) == 3
            assert row["score"] == pytest.approx(sum(members) / 3, abs=NEAR)
            parts = [part for name, part in row["parts"].items() if ".head" in name]
            assert sorted(parts) == pytest.approx(sorted(members), abs=NEAR)

    def test_one_that_is_no_better_than_chance_is_refused_with_the_way_out(self, trained: Path, tmp_path: Path) -> None:
        low = card_of(trained / "run")["accuracy_low"]
        assert low < 0.5
        with pytest.raises(PosttrainError) as caught:
            checked(grading(tmp_path, trained / "run"))
        for words in ("rewards[0]", f"{low:.1%}", "minimum_accuracy: 0"):
            assert words in str(caught.value), caught.value
        train(grading(tmp_path, trained / "run", minimum_accuracy=0))
        assert all(row["score"] is not None for row in RunFolder(tmp_path / "run").read_rollouts("step", 1))

    def test_one_that_nobody_measured_is_refused(self, tmp_path: Path) -> None:
        train(prepare(tmp_path / "reward", "reward_bradley_terry", pairs(8), run={"steps": 1, "save_every": 0}))
        assert not (tmp_path / "reward" / "run" / "card.json").exists()
        with pytest.raises(PosttrainError, match="nobody knows how often it is right"):
            checked(grading(tmp_path, tmp_path / "reward" / "run"))


def test_every_head_of_an_ensemble_learns_and_is_another_one(good: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(weights(good / "run"), dtype=torch.float32)
    heads = model.score.weight.detach()
    assert heads.shape == (3, 64)
    for i, row in enumerate(pairs(16, 40)):
        said = [plainly(weights(good / "run"), asked(row) + answer) for _, answer in answers(row)]
        for better, worse in zip(*said, strict=True):
            assert better > worse, i
    assert all(float((heads[i] - heads[j]).abs().max()) > 0.01 for i, j in ((0, 1), (0, 2), (1, 2)))


class TestKinds:
    def test_a_process_reward_model_tells_right_steps_from_wrong_ones(self, tmp_path: Path) -> None:
        train(prepare(tmp_path, "reward_process", steps(12), steps(8, 40), run={"steps": 6, "save_every": 0}))
        right = []
        for row in steps(8, 40):
            words, ends, text = row["completions"], [], ""
            for k, word in enumerate(words):
                text += word + ("\n" if k + 1 < len(words) else "")
                # The stop token belongs to the last step.
                ends.append(len(ids_of_steps(text)) - (0 if k + 1 == len(words) else 1))
            whole = [*asked(row), *ids_of_steps(text)]
            said = [plainly(weights(tmp_path / "run"), whole[: len(asked(row)) + end])[0] for end in ends]
            for i, first in enumerate(row["labels"]):
                right += [said[i] > said[j] for j, second in enumerate(row["labels"]) if first and not second]
        card = card_of(tmp_path / "run")
        assert (card["pairs"], card["accuracy"]) == (len(right), sum(right) / len(right))
        assert metrics(tmp_path / "run")[-1]["learn/step_accuracy"] > 0.5

    def test_a_binned_one_is_read_as_the_mean_of_its_histogram(self, tmp_path: Path) -> None:
        algorithm = {"name": "reward_binned", "value_bins": 8}
        held = lists(6, start=40)
        train(prepare(tmp_path, algorithm, scored(12), held, run={"steps": 6, "save_every": 0}))
        right = []
        for row in held:
            said = []
            for worth, answer in answers(row):
                logits = plainly(weights(tmp_path / "run"), asked(row) + answer)
                assert len(logits) == 8
                total = sum(math.exp(x) for x in logits)
                said.append((worth, sum(math.exp(x) / total * (k + 0.5) / 8 for k, x in enumerate(logits))))
            right += [a > b for x, a in said for y, b in said if x > y]
        card = card_of(tmp_path / "run")
        assert (card["pairs"], card["accuracy"]) == (len(right), sum(right) / len(right))
        assert [row["n"] for row in card["best_of_n"]] == [1, 2, 4]

    def test_ranks_have_margins_though_the_last_two_are_worth_1_and_0(self, tmp_path: Path) -> None:
        ranked = [{"prompt": r["prompt"], "completions": r["completions"], "ranks": [2, 1, 3]} for r in lists(5, 3, 40)]
        train(prepare(tmp_path, "reward_plackett_luce", lists(10), ranked, run={"steps": 1, "save_every": 0}))
        card = card_of(tmp_path / "run")
        assert card["pairs"] == 5 * 3
        assert {row["by"] for row in card["by_margin"]} == {"margin"}

    def test_a_gap_model_reads_each_answer_after_the_other_one(self, tmp_path: Path) -> None:
        train(prepare(tmp_path, "reward_gap", pairs(12), pairs(8, 40), run={"steps": 4, "save_every": 0}))
        right, apart = [], []
        better_wish = "Write a better response."
        for row in pairs(8, 40):
            said = []
            for own, other in (("chosen", "rejected"), ("rejected", "chosen")):
                turns = [*ids(row["prompt"]), *ASK, *ids(row[other]), 1, 12, *USER, *ids(better_wish), *ASK]
                whole = [*SYSTEM, *USER, *turns, *ids(row[own]), 1]
                said.append(plainly(weights(tmp_path / "run"), whole)[0])
            right.append(said[0] > said[1])
            apart.append(ScoredPair(said[0], said[1], 1, 1))
        card = card_of(tmp_path / "run")
        assert card["ece"] == pytest.approx(calibration(apart, slope=0.5)[0], abs=1e-5)
        assert (card["pairs"], card["accuracy"]) == (8, sum(right) / 8)

    @pytest.mark.parametrize(
        "name",
        [
            *("reward_plackett_luce", "reward_regression"),
            *(pytest.param(name, marks=pytest.mark.prove) for name in ("reward_margin", "reward_ties")),
        ],
    )
    def test_graded_lists_are_measured_by_all_their_pairs(self, tmp_path: Path, name: str) -> None:
        train(prepare(tmp_path, name, lists(10), lists(5, start=40), run={"steps": 2, "save_every": 0}))
        card = card_of(tmp_path / "run")
        assert card["pairs"] == 5 * 6
        assert {row["by"] for row in card["by_margin"]} == {"margin"}
        assert ("eval/squared_error" in metrics(tmp_path / "run")[-1]) == (name == "reward_regression")

    def test_single_answers_are_measured_against_those_of_other_prompts(self, tmp_path: Path) -> None:
        train(prepare(tmp_path, "reward_outcome", scored(10), scored(6, 40), run={"steps": 2, "save_every": 0}))
        assert 1 <= card_of(tmp_path / "run")["pairs"] <= 5

    def test_its_head_goes_on_from_a_reward_model(self, good: Path, tmp_path: Path) -> None:
        algorithm = {"name": "reward_bradley_terry", "heads": 3}
        rate = {"learning_rate": 1e-9}
        path = prepare(tmp_path, algorithm, pairs(8), pairs(16, 40), run={"steps": 1, "save_every": 0}, optimizer=rate)
        train(path, f"model={weights(good / 'run')}")
        assert card_of(tmp_path / "run")["accuracy"] == card_of(good / "run")["accuracy"]
        with pytest.raises(PosttrainError, match=r"model\.path.*head of 3 outputs.*heads"):
            train(path, f"model={weights(good / 'run')}", "algorithm.heads=2", f"run.folder={tmp_path / 'two'}")


def ids_of_steps(text: str) -> list[int]:
    """Ids of words with line ends between them, and the stop token."""
    parts = text.split("\n")
    return [t for k, part in enumerate(parts) for t in [*([12] if k else []), *ids(part)]] + [1]


def test_contrast_instructions_are_scored_each_under_the_other(tmp_path: Path) -> None:
    rows = [
        {"question": f"say {i}", "response": WORDS[i], "other_question": f"tell {i}", "other_response": str(i)}
        for i in range(5)
    ]
    (tmp_path / "contrast.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"contrast": {"source": "file", "path": str(tmp_path / "contrast.jsonl")}}
    path = prepare(tmp_path, "reward_bradley_terry", pairs(12), pairs(8, 40), data=data, run={"steps": 2})
    train(path)
    apart = []
    for row in rows:
        table = [
            [
                plainly(weights(tmp_path / "run"), [*SYSTEM, *USER, *ids(row[q]), *ASK, *ids(row[r]), 1])[0]
                for r in ("response", "other_response")
            ]
            for q in ("question", "other_question")
        ]
        apart.append(((table[0][0] > table[0][1]) + (table[1][1] > table[1][0])) / 2)
    found = card_of(tmp_path / "run")["consistency"]
    assert (found["blocks"], found["response"]) == (5, sum(apart) / 5)


@pytest.mark.parametrize("lora", [None, {"rank": 4}], ids=["full", "lora"])
def test_a_reward_model_is_exported_whole_in_either_form(tmp_path: Path, lora: Any) -> None:
    tiny_folder(tmp_path / "model", initializer_range=0.1)
    changes = {"model": {"lora": lora}, "run": {"steps": 2, "save_every": 0}}
    train(prepare(tmp_path, "reward_bradley_terry", pairs(12), pairs(8, 40), **changes))
    found = gaps(tmp_path / "run", pairs(8, 40))
    last = metrics(tmp_path / "run")[-1]
    assert last["eval/margin"] == pytest.approx(sum(found) / 8, abs=NEAR)
    assert card_of(tmp_path / "run")["accuracy"] == sum(gap > 0 for gap in found) / 8
