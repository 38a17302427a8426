"""What a run writes down is enough to recompute it; what goes wrong inside it is counted and never learnt."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from posttrain.algorithms.choice import choose
from posttrain.algorithms.row import Algorithm
from posttrain.metrics import RunFolder
from tests.forked import run
from tests.runs import metrics, prepare

CASES: dict[str, dict[str, Any]] = {
    "reinforce": {},
    "rloo": {"algorithm": {"name": "rloo", "kl": "in_reward", "kl_coefficient": 0.2}},
    "grpo": {
        "algorithm": {"name": "grpo", "kl": "in_loss", "kl_coefficient": 0.1},
        "optimizer": {"minibatches": 2, "epochs": 2, "prompts_per_step": 5},
    },
    "dr_grpo": {"optimizer": {"epochs": 2}},
    "dapo": {"rollout": {"group_size": 5}, "optimizer": {"minibatches": 3}},
    "gspo": {"optimizer": {"minibatches": 2}},
    "ppo": {
        "optimizer": {"minibatches": 2, "epochs": 2},
        "critic": {"backbone": "shared", "learning_rate": 1e-2, "warmup_steps": 1},
    },
    "reinforce_pp": {"algorithm": {"name": "reinforce_pp", "kl_coefficient": 0.3}},
    "remax": {},
    "raft": {"optimizer": {"epochs": 2}},
    "cispo": {"optimizer": {"epochs": 2}},
    "rebel": {"optimizer": {"minibatches": 2, "epochs": 2}},
}


def recipe_of(name: str) -> dict[str, Any]:
    return {"algorithm": name, "run": {"steps": 3, "save_every": 0}, **CASES[name]}


@pytest.fixture(scope="module", params=CASES)
def finished(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Algorithm, Path]:
    folder = tmp_path_factory.mktemp(request.param)
    changes = recipe_of(request.param)
    run("train", prepare(folder, **changes), "--quiet")
    choice = changes["algorithm"]
    choice = {"name": choice} if isinstance(choice, str) else dict(choice)
    return choose(choice.pop("name"), choice), folder / "run"


def said(row: dict[str, Any]) -> list[int]:
    return [t for t, m in enumerate(row["mask"]) if m]


def expected_advantages(algorithm: Algorithm, rows: list[dict[str, Any]]) -> dict[int, list[float]]:
    """Per learnt row of a step (by index), the advantage of each token it said, in plain arithmetic."""
    out: dict[int, list[float]] = {}
    for group in {row["group"] for row in rows if row["updates"] is not None}:
        members = [row for row in rows if row["group"] == group]
        scores = [shaped(algorithm, row) for row in members]
        mean = sum(scores) / len(scores)
        std = math.sqrt(sum((s - mean) ** 2 for s in scores) / len(scores))
        for row, score in zip(members, scores, strict=True):
            count = len(said(row))
            alone = {
                "group_mean": score - mean,
                "group_norm": (score - mean) / std if std > 1e-9 else 0.0,
                "leave_one_out": (score - mean) * len(scores) / max(len(scores) - 1, 1),
                "from_greedy": score - (row["greedy_score"] or 0.0),
                "ones": 1.0,
                "score": score,
            }
            if algorithm.credit.kind in alone:
                out[row["index"]] = [alone[algorithm.credit.kind]] * count
            else:
                out[row["index"]] = along(algorithm, row)
    learnt = [row["index"] for row in rows if row["updates"] is not None]
    if algorithm.whitening.kind == "batch_norm":
        flat = [a for index in learnt for a in out[index]]
        mean = sum(flat) / len(flat)
        std = math.sqrt(sum((a - mean) ** 2 for a in flat) / len(flat))
        out = {index: [(a - mean) / std for a in out[index]] for index in learnt}
    return {index: out[index] for index in learnt}


def along(algorithm: Algorithm, row: dict[str, Any]) -> list[float]:
    """Rewards token by token to advantages: reward to go, or generalised advantages against the values in the dump."""
    at = said(row)
    rewards = [0.0] * len(at)
    rewards[-1] = row["score"]
    if algorithm.kl.kind == "in_reward":
        policy = row["previous_logprobs"] or row["engine_logprobs"]
        rewards = [
            r - algorithm.kl["kl_coefficient"] * (policy[t] - row["reference_logprobs"][t])
            for r, t in zip(rewards, at, strict=True)
        ]
    if algorithm.credit.kind == "reward_to_go":
        return [sum(rewards[i:]) for i in range(len(rewards))]
    values = [row["values"][t] for t in at] + [0.0]
    errors = [r + values[i + 1] - values[i] for i, r in enumerate(rewards)]
    lam = algorithm.credit["lam"]
    return [sum(lam ** (j - i) * errors[j] for j in range(i, len(errors))) for i in range(len(errors))]


def shaped(algorithm: Algorithm, row: dict[str, Any]) -> float:
    score, said = row["score"], sum(row["mask"])
    if algorithm.shaping.kind == "overlong":
        limit = row["sampling"]["max_tokens"]
        buffer = algorithm.shaping["overlong_buffer"] * limit
        score -= algorithm.shaping["overlong_penalty"] * min(max(said - (limit - buffer), 0) / buffer, 1)
    if algorithm.kl.kind == "in_reward" and algorithm.credit.kind != "reward_to_go":
        policy = row["previous_logprobs"] or row["engine_logprobs"]
        pairs = zip(policy, row["reference_logprobs"], row["mask"], strict=True)
        score -= algorithm.kl["kl_coefficient"] * sum(p - r for p, r, m in pairs if m)
    return score


def token_term(algorithm: Algorithm, row: dict[str, Any], t: int, ratio: float, now: float) -> float:
    """The objective of one token."""
    advantage, cell = row["advantages"][t], algorithm.objective
    if cell.kind == "clip":
        return -min(ratio * advantage, min(max(ratio, 1 - cell["clip_low"]), 1 + cell["clip_high"]) * advantage)
    if cell.kind == "clipped_weight":
        return -min(max(ratio, 1 - cell["clip_low"]), 1 + cell["clip_high"]) * advantage * now
    return -advantage * now if cell.kind == "likelihood" else -advantage


def loss_of_update(algorithm: Algorithm, rows: list[dict[str, Any]], update: int, limit: int) -> float:
    """One optimiser step's policy loss in plain arithmetic, from the records alone."""
    part = [(r, u["logprobs"]) for r in rows for u in r["updates"] or [] if u["update"] == update]
    if algorithm.objective.kind == "rebel":
        return pairs(algorithm, part)
    tokens = sum(sum(r["mask"]) for r, _ in part)
    total = 0.0
    for row, now in part:
        at = said(row)
        old = row["previous_logprobs"] or now
        ratios = {t: now[t] - old[t] for t in at}
        if algorithm.ratio.kind == "sequence":
            ratios = dict.fromkeys(at, sum(ratios.values()) / len(at))
        terms = []
        for t in at:
            term = token_term(algorithm, row, t, math.exp(ratios[t]), now[t])
            if algorithm.correction.kind == "truncated_importance":
                term *= min(math.exp(old[t] - row["engine_logprobs"][t]), algorithm.correction["importance_cap"])
            if algorithm.kl.kind == "in_loss":
                d = row["reference_logprobs"][t] - now[t]
                term += algorithm.kl["kl_coefficient"] * (math.exp(d) - d - 1)
            terms.append(term)
        total += {
            "token_mean": sum(terms) / tokens,
            "sequence_mean": sum(terms) / len(at) / len(part),
            "sequence_sum": sum(terms) / len(part),
            "constant": sum(terms) / limit / len(part),
        }[algorithm.reduction.kind]
    return total


def pairs(algorithm: Algorithm, part: list[tuple[dict[str, Any], list[float]]]) -> float:
    """REBEL: squared differences over all pairs of each group, a mean over pairs and then over groups."""
    per_group = []
    for group in {row["group"] for row, _ in part}:
        members = [(r, sum(now[t] - r["previous_logprobs"][t] for t in said(r))) for r, now in part]
        members = [(r["score"], ratio) for r, ratio in members if r["group"] == group]
        found = [
            ((a - b) / algorithm.objective["rebel_eta"] - (p - q)) ** 2
            for i, (p, a) in enumerate(members)
            for q, b in members[:i]
        ]
        per_group.append(sum(found) / len(found))
    return sum(per_group) / len(per_group)


def test_the_loss_of_every_step_is_recomputed_from_the_dump_alone(finished: tuple[Algorithm, Path]) -> None:
    algorithm, path = finished
    folder = RunFolder(path)
    by_step = {line["step"]: line for line in folder.read_metrics()}
    warm = CASES[algorithm.name].get("critic", {}).get("warmup_steps", 0)
    for step in folder.rollout_steps():
        rows = folder.read_rollouts("step", step)
        updates = sorted({u["update"] for r in rows for u in r["updates"] or []})
        assert updates
        found = sum(loss_of_update(algorithm, rows, update, limit=8) for update in updates) if step > warm else 0.0
        logged = by_step[step]["learn/loss"]
        if algorithm.needs.critic:
            # Logged as a mean over tokens of all updates; each update's loss has its own part's mean.
            parts = [sum(sum(r["mask"]) for r in rows for u in r["updates"] or [] if u["update"] == n) for n in updates]
            assert logged - found > 0
            assert by_step[step]["learn/value_loss"] <= (logged - found) * max(parts) / sum(parts) * 1.001
        else:
            # The run sums in fp32: a loss of 100 has no seventh digit.
            assert found == pytest.approx(logged, abs=1e-6, rel=1e-6)


def test_every_advantage_is_recomputed_from_the_scores_in_the_dump(finished: tuple[Algorithm, Path]) -> None:
    algorithm, path = finished
    folder = RunFolder(path)
    for step in folder.rollout_steps():
        rows = folder.read_rollouts("step", step)
        expected = expected_advantages(algorithm, rows)
        assert expected
        for row in rows:
            if row["index"] in expected:
                found = [row["advantages"][t] for t in said(row)]
                assert found == pytest.approx(expected[row["index"]], abs=1e-5)
                assert all(a == 0 for a, m in zip(row["advantages"], row["mask"], strict=True) if not m)


def test_every_logged_mean_is_recomputed_from_the_dump(finished: tuple[Algorithm, Path]) -> None:
    _, path = finished
    folder = RunFolder(path)
    for line in folder.read_metrics()[1:]:
        rows = folder.read_rollouts("step", line["step"])
        lengths = [sum(r["mask"]) for r in rows]
        assert line["rollout/length_mean"] == pytest.approx(sum(lengths) / len(rows))
        assert line["reward/mean"] == pytest.approx(sum(r["score"] for r in rows) / len(rows))
        cut = sum(r["finish_reason"] == "length" for r in rows)
        assert line["rollout/truncated_fraction"] == pytest.approx(cut / len(rows))
        gaps = [
            abs(e - n)
            for r in rows
            if r["updates"]
            for e, n, m in zip(
                r["engine_logprobs"], r["previous_logprobs"] or r["learner_logprobs"], r["mask"], strict=True
            )
            if m
        ]
        assert line["parity/max_abs_gap"] == pytest.approx(max(gaps), abs=1e-9)


def test_trained_ids_are_the_sampled_ids_with_the_final_stop_token_though_pad_is_eos(tmp_path: Path) -> None:
    many = {"rollout": {"group_size": 16}, "optimizer": {"prompts_per_step": 8}, "run": {"steps": 1}}
    run("train", prepare(tmp_path, **many))
    stopped = 0
    for row in RunFolder(tmp_path / "run").read_rollouts("step", 1):
        said = [t for t, m in enumerate(row["mask"]) if m]
        assert said == list(range(said[0], len(row["tokens"])))
        assert len(row["updates"][0]["logprobs"]) == len(row["tokens"])
        assert all((lp != 0) == bool(m) for lp, m in zip(row["updates"][0]["logprobs"], row["mask"], strict=True))
        if row["finish_reason"] == "stop":
            stopped += 1
            assert row["tokens"][-1] == 1
            assert row["mask"][-1] == 1
    assert stopped


def test_a_grader_that_fails_is_counted_and_its_roll_out_leaves_the_group(tmp_path: Path) -> None:
    path = prepare(tmp_path, rewards=[{"verifier": "tests.graders:breaks_on_j"}], run={"steps": 2, "save_every": 0})
    run("train", path)
    folder = RunFolder(tmp_path / "run")
    failed = 0
    for line in folder.read_metrics()[1:]:
        rows = folder.read_rollouts("step", line["step"])
        broken = [r for r in rows if r["status"] == "error"]
        failed += len(broken)
        assert line.get("verdict/error", 0) == len(broken)
        assert all(r["score"] is None and "no j" in r["reason"] for r in broken)
        for r in rows:
            others = [o for o in rows if o["group"] == r["group"] and o["score"] is not None]
            if r["score"] is None or len(others) < 2:
                assert r["updates"] is None
    assert failed


def test_above_the_set_rate_the_run_stops_and_says_why(tmp_path: Path) -> None:
    path = prepare(tmp_path, rewards=[{"verifier": "tests.graders:always_raises"}])
    done = run("train", path, check=False)
    assert done.returncode == 1
    assert "the grader is down" in done.stderr
    assert "max_failure_rate" in done.stderr
    assert "Traceback" not in done.stderr


def test_when_no_group_has_contrast_dynamic_sampling_stops_with_a_histogram(tmp_path: Path) -> None:
    choice = {"name": "dapo", "max_rounds": 2}
    path = prepare(tmp_path, algorithm=choice, rewards=[{"verifier": "tests.graders:always_one"}])
    done = run("train", path, check=False)
    assert done.returncode == 1
    assert "none of 8 groups in 2 rounds" in done.stderr
    assert "1.0: 8" in done.stderr


def test_a_rate_that_makes_weights_explode_stops_before_anything_is_overwritten(tmp_path: Path) -> None:
    path = prepare(
        tmp_path, optimizer={"learning_rate": 1e30, "prompts_per_step": 4}, run={"steps": 4, "save_every": 1}
    )
    done = run("train", path, check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert re.search("gradient norm of update 2 of the policy is nan|not finite|disagree", done.stderr), done.stderr
    steps = [line["step"] for line in metrics(tmp_path / "run")]
    assert max(RunFolder(tmp_path / "run").checkpoints(), default=0) <= max(steps)
    json.dumps(metrics(tmp_path / "run"), allow_nan=False)


def test_held_out_problems_are_not_among_the_training_ones(tmp_path: Path) -> None:
    path = prepare(tmp_path)
    shared = (tmp_path / "eval.jsonl").read_text().splitlines()[:4]
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write("".join(line + "\n" for line in shared))
    done = run("train", path, "run.steps=2")
    assert "4 also held out" in done.stdout
    folder = RunFolder(tmp_path / "run")
    held = {tuple(r["tokens"][: r["mask"].index(1)]) for r in folder.read_rollouts("eval", 0)}
    for step in folder.rollout_steps():
        asked = {tuple(r["tokens"][: r["mask"].index(1)]) for r in folder.read_rollouts("step", step)}
        assert not asked & held


def test_evaluating_a_recipe_gives_the_figures_before_training(tmp_path: Path) -> None:
    path = prepare(tmp_path, run={"steps": 1, "save_every": 0})
    run("train", path)
    figures = json.loads(run("evaluate", path, "--json").stdout)
    assert figures["eval/accuracy"] == metrics(tmp_path / "run")[0]["eval/accuracy"]


def test_evaluating_a_run_gives_the_figures_the_run_itself_measured(tmp_path: Path) -> None:
    path = prepare(tmp_path, run={"steps": 2, "save_every": 0})
    run("train", path)
    figures = json.loads(run("evaluate", tmp_path / "run", "--json").stdout)
    last = metrics(tmp_path / "run")[-1]
    for name in ("eval/accuracy", "eval/accuracy_low", "eval/greedy", "eval/length_mean"):
        assert figures[name] == last[name]


def test_the_run_folder_keeps_its_contract(finished: tuple[Algorithm, Path]) -> None:
    _, path = finished
    files = {f.name for f in path.iterdir()}
    assert {"recipe.yaml", "environment.json", "metrics.jsonl", "rollouts", "checkpoints", "summary.json"} <= files
    assert (path / "curves.png").read_bytes()[1:4] == b"PNG"
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    for line in lines[1:]:
        for name in ("reward/mean", "rollout/tokens_per_second", "learn/tokens_per_second", "sync/seconds"):
            assert line[name] >= 0
        assert 0 <= line["parity/max_abs_gap"] < 1e-3
    assert "eval/accuracy" in lines[0]
    assert "eval/accuracy" in lines[-1]
    summary = json.loads((path / "summary.json").read_text())
    for name in ("accuracy_before", "accuracy_after", "greedy_before", "greedy_after", "steps", "seconds"):
        assert summary[name] is not None
    assert summary["accuracy_before"] == lines[0]["eval/accuracy"]
    assert summary["accuracy_after"] == lines[-1]["eval/accuracy"]
    environment = json.loads((path / "environment.json").read_text())
    assert environment["versions"]["torch"]
    assert environment["seed"] == 0
    assert (path / "checkpoints" / "step-000003" / "policy" / "config.json").is_file()
