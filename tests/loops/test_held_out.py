"""Held-out figures are those that anybody computes from the weights a run left, on rows that it did not learn from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from posttrain.metrics import RunFolder
from posttrain.metrics.statistics import wilson
from tests.data import ASK, CHARACTERS, SYSTEM, USER
from tests.offline_runs import WORDS, Rows, evaluated, lists, pairs, prepare, texts, thumbs, train
from tests.reward_models.scorers import plainly
from tests.runs import metrics
from tests.tiny import tiny_folder

NEAR = 1e-5
"""Log-probabilities of some 50 tokens in fp32, summed in another order."""


def ids(text: str) -> list[int]:
    return [14 if c == " " else 16 + CHARACTERS.index(c) for c in text]


def asked(row: Any) -> list[int]:
    return [*SYSTEM, *USER, *ids(row["prompt"]), *ASK]


def answers(row: Any) -> list[tuple[float, list[int]]]:
    """What each answer of a row is worth, and its ids with the stop token."""
    if "chosen" in row:
        found = [(1.0, row["chosen"]), (0.0, row["rejected"])]
    elif "completions" in row:
        found = list(zip(row["scores"], row["completions"], strict=True))
    else:
        found = [(float(row.get("label", 1.0)), row["completion"])]
    return [(worth, [*ids(text), 1]) for worth, text in found]


def logprob(model: Any, question: list[int], answer: list[int]) -> float:
    with torch.no_grad():
        table = model(torch.tensor([question + answer])).logits[0].double().log_softmax(-1)
    return sum(float(table[len(question) - 1 + i, token]) for i, token in enumerate(answer))


def expected(rows: Rows, policy: Any, references: list[tuple[float, Any]]) -> dict[str, float]:
    """Every figure by its definition; `references` with their shares."""
    nats = tokens = 0.0
    preferred, likelier, margins = [], [], []
    for row in rows:
        best, worst = (choose(answers(row), key=lambda a: a[0]) for choose in (max, min))
        own = [logprob(policy, asked(row), answer) for _, answer in (best, worst)]
        nats, tokens = nats - own[0], tokens + len(best[1])
        if best[0] == worst[0]:
            continue
        likelier.append(right(own[0] / len(best[1]) - own[1] / len(worst[1])))
        if references:
            other = [
                sum(share * logprob(m, asked(row), answer) for share, m in references) for _, answer in (best, worst)
            ]
            margins.append((own[0] - other[0]) - (own[1] - other[1]))
            preferred.append(right(margins[-1]))
    found = {"eval/nll": nats / tokens}
    for name, counted in (("preferred", preferred), ("likelier", likelier)):
        if counted:
            low, high = wilson(sum(counted), len(counted))
            share = sum(counted) / len(counted)
            found |= {f"eval/{name}": share, f"eval/{name}_low": low, f"eval/{name}_high": high}
            found["eval/pairs"] = len(counted)
    return found | ({"eval/margin": sum(margins) / len(margins)} if margins else {})


def right(margin: float) -> float:
    """Equal ones are half right."""
    return 0.5 if margin == 0 else float(margin > 0)


SAMPLED = {"rollout": {"engine": "transformers", "group_size": 2, "max_tokens": 5}}


def measured(line: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in line.items() if name.startswith("eval/") and "seconds" not in name}


CASES: dict[str, tuple[Any, Rows, Rows, dict[str, Any]]] = {
    "pairs": ("dpo", pairs(12), pairs(7, 40), {}),
    "pairs, an adapter": ("dpo", pairs(12), pairs(7, 40), {"model": {"lora": {"rank": 4}}}),
    "pairs without a reference": ("simpo", pairs(12), pairs(5, 40), {}),
    "lists": ("lipo", lists(10), lists(4, size=3, start=40), {"hardware": {"learner": {"layout": "packed"}}}),
    "pairs beside samples": ("hypo", pairs(12), pairs(5, 40), SAMPLED),
    "texts": ("sft", texts(12), texts(5, 40), {}),
    "thumbs": ("kto", thumbs(12), pairs(5, 40), {"reference": {"refresh": "copy", "every": 3}}),
}


@pytest.mark.parametrize("case", CASES)
def test_every_figure_is_recomputed_from_the_weights(tmp_path: Path, case: str) -> None:
    algorithm, rows, held, changes = CASES[case]
    train(prepare(tmp_path, algorithm, rows, held, **changes))
    folder = RunFolder(tmp_path / "run")

    def weights(path: Path) -> Any:
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)

    start, end = weights(tmp_path / "model"), weights(folder.checkpoint_path(4) / "policy")
    compares = algorithm in ("dpo", "lipo", "kto", "hypo")
    lines = folder.read_metrics()
    assert measured(lines[0]) == pytest.approx(expected(held, start, [(1.0, start)] if compares else []), abs=NEAR)
    if "reference" in changes:
        # After the third step the policy of that step is the reference; its weights are in no checkpoint of their own.
        assert measured(lines[-1]).keys() == expected(held, end, [(1.0, start)]).keys()
    else:
        assert measured(lines[-1]) == pytest.approx(expected(held, end, [(1.0, start)] if compares else []), abs=NEAR)
    assert measured(lines[-1])["eval/nll"] != pytest.approx(measured(lines[0])["eval/nll"], abs=1e-3)
    # A run says of itself what it wrote down, and keeps it in its summary.
    again = evaluated(tmp_path / "run")
    assert measured(again) == pytest.approx(measured(lines[-1]), abs=NEAR)
    assert again["step"] == 4
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["nll_after"] == lines[-1]["eval/nll"]
    assert summary["nll_before"] == lines[0]["eval/nll"]


def test_several_references_are_held_out_by_their_shares(tmp_path: Path) -> None:
    other = tiny_folder(tmp_path / "other", seed=5, initializer_range=0.1)
    changes = {"reference": {"policies": [{"share": 1.0}, {"path": str(other), "share": 3.0}]}, "run": {"steps": 2}}
    train(prepare(tmp_path, "dpo", pairs(12), pairs(6, 40), **changes))
    models = [
        AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        for path in (tmp_path / "model", other, tmp_path / "run/checkpoints/step-000002/policy")
    ]
    found = measured(metrics(tmp_path / "run")[-1])
    assert found == pytest.approx(expected(pairs(6, 40), models[2], [(0.25, models[0]), (0.75, models[1])]), abs=NEAR)


def test_answers_and_what_the_policy_says_itself_are_measured_side_by_side(tmp_path: Path) -> None:
    held = [{**row, "letter": row["completion"][0]} for row in texts(4, 40)]
    rewards = {"rewards": [{"verifier": "tests.graders:letters"}], "evaluation": {"samples": 2}}
    train(prepare(tmp_path, "sft", texts(8), held, run={"steps": 2}, **rewards, **SAMPLED))
    folder = RunFolder(tmp_path / "run")
    said = folder.read_rollouts("eval", 2)
    drawn = [row["score"] for row in said if row["sampling"]["temperature"]]
    last = measured(metrics(tmp_path / "run")[-1])
    assert (len(drawn), len(said)) == (8, 12)
    assert last["eval/accuracy"] == pytest.approx(sum(drawn) / 8)
    policy = AutoModelForCausalLM.from_pretrained(folder.checkpoint_path(2) / "policy", dtype=torch.float32)
    assert last["eval/nll"] == pytest.approx(expected(held, policy, [])["eval/nll"], abs=NEAR)
    found = evaluated(tmp_path / "run")
    assert {name: found[name] for name in ("eval/accuracy", "eval/greedy")} == {
        name: last[name] for name in ("eval/accuracy", "eval/greedy")
    }
    assert found["eval/nll"] == pytest.approx(last["eval/nll"], abs=NEAR)


def test_a_recipe_is_evaluated_as_its_model_comes(tmp_path: Path) -> None:
    path = prepare(tmp_path, "dpo", pairs(12), pairs(6, 40))
    start = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    assert measured(evaluated(path)) == pytest.approx(expected(pairs(6, 40), start, [(1.0, start)]), abs=NEAR)
    assert not (tmp_path / "run").exists()


def test_a_reward_model_is_right_where_the_better_answer_scores_higher(tmp_path: Path) -> None:
    held = pairs(9, 40)
    train(prepare(tmp_path, "reward_bradley_terry", pairs(12), held, run={"steps": 2}))
    folder = tmp_path / "run/checkpoints/step-000002/policy"
    gaps = []
    for row in held:
        first, second = (plainly(folder, asked(row) + answer)[0] for _, answer in answers(row))
        gaps.append(first - second)
    better = sum(map(right, gaps))
    low, high = wilson(better, len(gaps))
    found = measured(metrics(tmp_path / "run")[-1])
    assert found["eval/margin"] == pytest.approx(sum(gaps) / len(gaps), abs=NEAR)
    assert (found["eval/preferred"], found["eval/pairs"]) == (better / len(gaps), len(gaps))
    assert (found["eval/preferred_low"], found["eval/preferred_high"]) == pytest.approx((low, high))


def test_a_question_that_is_held_out_is_not_learnt_from_whatever_its_answers(tmp_path: Path) -> None:
    rows = [{**row, "chosen": WORDS[(i + 3) % 8]} for i, row in enumerate(pairs(10))]
    said = train(prepare(tmp_path, "dpo", rows, pairs(4), optimizer={"prompts_per_step": 6}, run={"steps": 2}))
    assert "data.train: kept 6 of 10: 4 also held out" in said
    held = {tuple(asked(row)) for row in pairs(4)}
    seen = set()
    for step in (1, 2):
        for row in RunFolder(tmp_path / "run").read_rollouts("step", step):
            seen.add(tuple(row["tokens"][: row["mask"].index(1)]))
    assert len(seen) == 6
    assert not seen & held


def test_a_question_that_is_held_out_with_a_good_answer_is_not_learnt_from_with_a_bad_one(tmp_path: Path) -> None:
    texts_before = {"conditioning": {"good": "good ", "bad": "bad "}}
    rows = [{**row, "label": False} for row in thumbs(8)]
    held = [{**row, "label": True} for row in thumbs(3)]
    said = train(prepare(tmp_path, "rcrl", rows, held, data=texts_before, run={"steps": 1, "save_every": 0}))
    assert "data.train: kept 5 of 8: 3 also held out" in said


def test_held_out_rows_of_a_folder_in_the_hubs_layout_are_read_too(tmp_path: Path) -> None:
    """Their columns are not known before the run."""
    path = prepare(tmp_path, "dpo", pairs(8), pairs(4, 40), run={"steps": 1, "save_every": 0})
    hub = tmp_path / "hub"
    hub.mkdir()
    (tmp_path / "eval.jsonl").rename(hub / "train.jsonl")
    train(path, f"data.eval={{source: hub, path: {hub}}}")
    assert metrics(tmp_path / "run")[-1]["eval/pairs"] == 4
