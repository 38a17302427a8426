"""What stands beside the policy in a run: critics, references, auxiliary texts, and numbers carried over steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from posttrain.loops.auxiliary import Auxiliary
from posttrain.recipe import Auxiliary as Settings
from posttrain.recipe import FileSource
from posttrain.types import Group, Rollout, Verdict
from tests.forked import run
from tests.loops.test_resume import kill_when, lines, same, start
from tests.runs import metrics, prepare
from tests.saved import saved
from tests.tiny import prompt, tiny_folder, tiny_learner

CARRIED: dict[str, dict[str, Any]] = {
    "a critic of its own, an adaptive penalty, a moving reference, auxiliary texts": {
        "algorithm": {"name": "ppo_max", "critic": "hl_gauss", "kl_target": 0.01, "kl_horizon": 100},
        "critic": {"learning_rate": 1e-2, "warmup_steps": 1},
        "reference": {"refresh": "average", "decay": 0.5},
        "optimizer": {"minibatches": 2, "schedule": "linear"},
    },
    "a shared critic and an adaptive entropy": {
        "algorithm": {"name": "vapo", "entropy": "adaptive", "entropy_target": 9.0, "truncated": "bootstrap"},
        "critic": {"backbone": "shared", "learning_rate": 1e-2},
    },
    "a moving baseline, a bound that undoes updates, a copied reference": {
        "algorithm": {
            "name": "reinforce_baseline",
            "trust": "rollback",
            "max_kl": 0.02,
            "kl": "in_loss",
            "kl_estimator": "exact",
        },
        "reference": {"refresh": "copy", "every": 2},
        "optimizer": {"minibatches": 2},
    },
    "a spread over steps": {"algorithm": {"name": "rlpr", "spread_warmup": 1, "spread_factor": 0.9}},
}


def with_texts(folder: Path, changes: dict[str, Any]) -> Path:
    """A recipe of four steps; auxiliary texts where the case has a moving reference."""
    folder.mkdir()
    rows = [{"prompt": f"say {c}", "completion": c * 3} for c in "klmnopq"]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = {"source": "file", "path": str(folder / "texts.jsonl")}
    data = {"auxiliary": {"data": texts, "examples_per_update": 3, "final_coefficient": 0.0}}
    more = {"data": data} if changes.get("reference", {}).get("refresh") == "average" else {}
    return prepare(folder, run={"steps": 4, "save_every": 2}, **changes, **more)


@pytest.mark.parametrize("case", CARRIED)
def test_what_a_row_carries_from_step_to_step_survives_a_kill(tmp_path: Path, case: str) -> None:
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    run("train", with_texts(calm, CARRIED[case]), "--quiet")
    path = with_texts(rough, CARRIED[case])
    kill_when(start(path), lambda: lines(rough / "run") >= 4)
    run("train", path, "--quiet")
    same(calm / "run", rough / "run", 4)
    last = metrics(calm / "run")[-1]
    names = {"ppo_max": "learn/auxiliary_loss", "vapo": "learn/entropy_coefficient"}
    expected = names.get(CARRIED[case]["algorithm"]["name"], "learn/loss")
    assert expected in last


def test_a_critic_moves_alone_while_it_warms_up_and_is_saved_as_a_classifier(tmp_path: Path) -> None:
    changes = {"algorithm": "ppo", "critic": {"learning_rate": 1e-2, "warmup_steps": 2}}
    run("train", prepare(tmp_path, run={"steps": 3, "save_every": 1}, **changes), "--quiet")
    written = [tmp_path / "run" / "checkpoints" / f"step-{n:06d}" for n in (1, 2, 3)]
    weights = [(folder / "policy" / "model.safetensors").read_bytes() for folder in written]
    assert weights[0] == weights[1] != weights[2]
    states = [saved(folder, "critic")[1] for folder in written]
    assert any(not torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))
    found = metrics(tmp_path / "run")
    assert ["learn/grad_norm" in line for line in found] == [False, False, False, True]
    assert all("learn/critic_grad_norm" in line for line in found[1:])
    loaded = AutoModelForSequenceClassification.from_pretrained(written[2] / "critic")
    assert loaded.score.weight.shape == (1, 64)
    # The next run may start from it, and a frozen one leaves it as it is.
    again = {"algorithm": "dvpo", "critic": {"path": str(written[2] / "critic")}}
    second = prepare(tmp_path, run={"steps": 1, "folder": str(tmp_path / "frozen")}, **again)
    run("train", second, "--quiet")
    assert "learn/critic_grad_norm" not in metrics(tmp_path / "frozen")[-1]
    assert not (tmp_path / "frozen" / "checkpoints" / "step-000001" / "critic.pt").exists()


def test_a_schedule_ends_with_the_run_where_the_critic_warmed_up_too(tmp_path: Path) -> None:
    changes = {"algorithm": "ppo", "critic": {"warmup_steps": 2}}
    optimizer = {"schedule": "linear", "learning_rate": 1e-2}
    run("train", prepare(tmp_path, run={"steps": 4, "save_every": 0}, optimizer=optimizer, **changes), "--quiet")
    rates = [line["learn/learning_rate"] for line in metrics(tmp_path / "run") if "learn/learning_rate" in line]
    assert rates == pytest.approx([1e-2, 0.5e-2])


def test_coefficients_rest_while_the_policy_does(tmp_path: Path) -> None:
    changes = {"algorithm": {"name": "ppo", "trust": "penalty"}, "critic": {"warmup_steps": 3}}
    run("train", prepare(tmp_path, run={"steps": 4, "save_every": 0}, **changes), "--quiet")
    first, *_, moved = (line.get("learn/trust_coefficient") for line in metrics(tmp_path / "run")[1:])
    assert first is None
    assert moved in (0.5, 1.0, 2.0)


def test_auxiliary_texts_add_their_mean_likelihood_with_its_weight(tmp_path: Path) -> None:
    learner = tiny_learner(tiny_folder(tmp_path / "model"), torch.float64)
    groups = [text((2, 3, 4), (5, 6)), text((7, 8), (9, 10, 11)), text((12,), (13,))]
    source = FileSource(source="file", path="texts.jsonl")
    settings = Settings(data=source, coefficient=0.5, final_coefficient=0.1, examples_per_update=3)
    auxiliary = Auxiliary(groups, settings, seed=0, steps=5)
    assert [auxiliary.coefficient(step) for step in (1, 3, 5)] == pytest.approx([0.5, 0.3, 0.1])
    report = auxiliary.accumulate(learner, 3)
    found = torch.cat([p.grad.flatten() for p in learner.stepper.masters.parameters])
    learner.discard()
    total = torch.zeros((), dtype=torch.float64)
    for group in groups:
        (rollout,) = group.rollouts
        table = learner.model(torch.tensor([rollout.tokens])).logits[0].log_softmax(-1)
        total = total - sum(table[t - 1, rollout.tokens[t]] for t, m in enumerate(rollout.mask) if m)
    loss = 0.3 * total / 6
    loss.backward()
    expected = torch.cat([p.grad.flatten() for p in learner.stepper.masters.parameters])
    assert report.values()["learn/auxiliary_loss"] == pytest.approx(float(loss.detach()), abs=1e-6)
    assert float((found - expected).abs().max()) <= 1e-6 * max(float(expected.abs().max()), 1.0)


def text(asked: tuple[int, ...], said: tuple[int, ...]) -> Group:
    mask = (False,) * len(asked) + (True,) * len(said)
    return Group(prompt(asked), (Rollout(asked + said, mask, "", "given"),), (Verdict(1.0),))


def test_with_several_references_each_is_dumped_and_weighs_its_share(tmp_path: Path) -> None:
    other = tiny_folder(tmp_path / "other", seed=5, initializer_range=0.1)
    changes = {
        "algorithm": {"name": "grpo", "kl": "in_loss", "kl_estimator": "k2"},
        "reference": {"policies": [{"share": 1.0}, {"path": str(other), "share": 3.0}]},
        "run": {"steps": 1},
    }
    run("train", prepare(tmp_path, **changes), "--quiet")
    rows = [json.loads(line) for line in (tmp_path / "run/rollouts/step-000001.jsonl").read_text().splitlines()]
    gaps = []
    for row in rows:
        for now, references, said in zip(row["learner_logprobs"], row["reference_logprobs"], row["mask"], strict=True):
            if said:
                assert references[0] == pytest.approx(now, abs=1e-4)
                gaps.append(0.25 * (now - references[0]) ** 2 / 2 + 0.75 * (now - references[1]) ** 2 / 2)
    assert metrics(tmp_path / "run")[-1]["learn/kl"] == pytest.approx(sum(gaps) / len(gaps), rel=1e-4)


def test_win_rates_of_a_grader_that_compares_train_a_policy(tmp_path: Path) -> None:
    changes = {
        "algorithm": "spo",
        "rewards": [{"verifier": "tests.graders:longer"}],
        "evaluation": {"greedy": False},
        "run": {"steps": 1},
    }
    run("train", prepare(tmp_path, **changes), "--quiet")
    rows = [json.loads(line) for line in (tmp_path / "run/rollouts/step-000001.jsonl").read_text().splitlines()]
    for group in {row["group"] for row in rows}:
        members = [row for row in rows if row["group"] == group]
        for row in members:
            beaten = [_wins(row, other) for other in members if other is not row]
            assert row["score"] == pytest.approx(sum(beaten) / len(beaten))
            said = [a for a, m in zip(row["advantages"], row["mask"], strict=True) if m]
            assert said == pytest.approx([row["score"] - 0.5] * len(said))


def _wins(row: dict[str, Any], other: dict[str, Any]) -> float:
    mine, theirs = len(row["completion"]), len(other["completion"])
    return 0.5 if mine == theirs else float(mine > theirs)
