"""Games against what the policy was: who says what, under which weights, and where the reference goes."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from posttrain.algorithms.choice import choose
from posttrain.hybrid import Hybrid
from posttrain.loops.opponents import Opponents
from posttrain.metrics import RunFolder
from posttrain.models.checkpoint import load_policy
from posttrain.recipe import Model, Reference
from posttrain.rollout import Request
from posttrain.rollout.local import LocalSampler
from posttrain.types import Rollout, Sampling
from tests.loops.test_resume import same
from tests.offline_runs import WORDS, Rows, pairs, prepare, texts, train
from tests.runs import metrics
from tests.tiny import prompt, randomise, tiny_folder, tiny_learner

SAMPLED = {"engine": "transformers", "group_size": 4, "max_tokens": 6}
LETTERS = {"rewards": [{"verifier": "tests.graders:letters"}], "rollout": SAMPLED}
WINS = {"rewards": [{"verifier": "tests.graders:longer"}], "rollout": SAMPLED}


def letters(count: int) -> Rows:
    return [{"prompt": f"say {i}", "letter": WORDS[i % 8][0]} for i in range(count)]


def followed(every: int, **more: Any) -> dict[str, Any]:
    return {"reference": {"refresh": "copy", "every": every, **more}}


CASES: dict[str, tuple[Any, Rows, dict[str, Any], list[str]]] = {
    "iterative_dpo": ("iterative_dpo", letters(12), {**LETTERS, **followed(2)}, ["policy"] * 4),
    "sppo": ({"name": "sppo", "contrast_beta": 0.1}, letters(12), {**WINS, **followed(1)}, ["policy"] * 4),
    "inpo": (
        "inpo",
        letters(12),
        {**LETTERS, **followed(2, policies=[{"share": 3.0}, {"share": 1.0}])},
        ["policy"] * 4,
    ),
    "dno": ("dno", letters(12), {**LETTERS, **followed(2)}, ["policy"] * 4),
    "xpo": ({"name": "xpo", "xpo_alpha": 0.1}, letters(12), LETTERS, ["policy"] * 3 + ["opponent"]),
    "spin": (
        {"name": "spin", "opponent_responses": 3},
        texts(12),
        {"rollout": SAMPLED, **followed(2)},
        ["data", "policy", *["opponent"] * 3],
    ),
    "spin_pool": (
        {"name": "spin_pool", "opponent_responses": 4, "pool_size": 2},
        texts(12),
        {"rollout": SAMPLED, **followed(1)},
        ["data", *["opponent"] * 4],
    ),
    "spac": (
        "spac",
        pairs(12),
        {"rollout": {**SAMPLED, "group_size": 2}, **followed(2)},
        ["data"] * 2 + ["policy"] * 2,
    ),
    "accelerated_dpo": ("accelerated_dpo", pairs(12), followed(2, momentum=0.3), ["data"] * 2),
}


@pytest.fixture(scope="module", params=CASES)
def played(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    algorithm, rows, changes, _ = CASES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    train(prepare(folder, algorithm, rows, **changes, run={"steps": 3, "save_every": 1}))
    return request.param, folder / "run"


def log_ratio(row: dict[str, Any], shares: Sequence[float] = (1.0,)) -> float:
    """Summed over what was said, from a record alone."""
    total = 0.0
    for own, other, said in zip(row["learner_logprobs"], row["reference_logprobs"], row["mask"], strict=True):
        if said:
            others = other if isinstance(other, list) else [other]
            total += own - sum(share * o for share, o in zip(shares, others, strict=True))
    return total


def test_who_said_what_is_written_down_and_the_data_comes_first(played: tuple[str, Path]) -> None:
    name, run = played
    for step in (1, 2, 3):
        rows = RunFolder(run).read_rollouts("step", step)
        for group in range(4):
            members = [row for row in rows if row["group"] == group]
            assert [row["author"] for row in members] == CASES[name][3]
            for row in members:
                assert (row["finish_reason"] == "given") == (row["author"] == "data")
                assert (row["engine_logprobs"] is None) == (row["author"] == "data")
                drawn_by = {v for v, m in zip(row["versions"] or [], row["mask"], strict=False) if m}
                assert drawn_by <= {"policy": {step - 1}, "opponent": {-1 - step}, "data": set()}[row["author"]]


def test_an_opponent_speaks_under_the_weights_of_the_reference(played: tuple[str, Path]) -> None:
    """And the gate holds the policy's own words alone against the policy."""
    name, run = played
    rows = [r for step in (1, 2, 3) for r in RunFolder(run).read_rollouts("step", step) if r["author"] != "data"]
    gaps: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        for whose in ("learner", "reference"):
            both = zip(row["engine_logprobs"], row[f"{whose}_logprobs"], row["mask"], strict=True)
            gaps.setdefault((row["author"], whose), []).extend(
                abs(e - (o[0] if isinstance(o, list) else o)) for e, o, m in both if m
            )
    if ("policy", "learner") in gaps:
        assert max(gaps["policy", "learner"]) < 1e-3
        assert [line["parity/max_abs_gap"] for line in metrics(run)[1:]] == pytest.approx(
            [max(gaps["policy", "learner"])] * 3, abs=1e-3
        )
    if name in ("spin", "xpo"):
        assert max(gaps["opponent", "reference"]) < 1e-3
        assert max(gaps["opponent", "learner"]) > 1e-2
    if name == "spin_pool":
        # The pool's choice may be an earlier one than the reference is now.
        assert max(gaps["opponent", "reference"]) > 1e-2


def test_the_reference_becomes_the_policy_after_every_so_many_steps(played: tuple[str, Path]) -> None:
    name, run = played
    every = CASES[name][2].get("reference", {}).get("every")
    shares = (0.75, 0.25) if name == "inpo" else (1.0,)
    for step in (1, 2, 3):
        found = [log_ratio(row, shares) for row in RunFolder(run).read_rollouts("step", step)]
        # Before the first step they are the same; then right after each step that the reference follows, except that a
        # second reference stays.
        equal = step == 1 or (every is not None and (step - 1) % every == 0 and name != "inpo")
        assert (max(map(abs, found)) < 1e-4) == equal, (step, found)
        assert metrics(run)[step]["learn/log_ratio"] == pytest.approx(sum(found) / len(found), abs=1e-4)


def test_momentum_carries_the_policy_on_by_its_share_of_the_way(tmp_path: Path) -> None:
    plain, carried = tmp_path / "plain", tmp_path / "carried"
    for folder, momentum in ((plain, 0.0), (carried, 0.25)):
        changes = followed(2, momentum=momentum)
        train(prepare(folder, "accelerated_dpo", pairs(12), **changes, run={"steps": 2, "save_every": 1}))

    def weights(folder: Path, step: int) -> dict[str, Tensor]:
        path = folder / "run" / f"checkpoints/step-{step:06d}/policy" if step else folder / "model"
        return load_file(path / "model.safetensors")

    start, new, found = weights(plain, 0), weights(plain, 2), weights(carried, 2)
    for name, tensor in weights(plain, 1).items():
        assert torch.equal(tensor, weights(carried, 1)[name])
    for name in new:
        expected = new[name].double() + 0.25 * (new[name].double() - start[name].double())
        torch.testing.assert_close(found[name].double(), expected, rtol=0, atol=1e-6)
    assert any(not torch.equal(new[name], found[name]) for name in new)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_momentum_counts_from_the_copy_before_in_full_precision(tmp_path: Path, dtype: torch.dtype) -> None:
    learner = tiny_learner(tiny_folder(tmp_path / "model"), dtype, reference=True)
    masters = learner.stepper.masters
    copies = [[p.detach().clone() for p in masters.parameters]]
    for seed in (1, 2, 3):
        noise = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in masters.parameters:
                parameter.add_(torch.randn(parameter.shape, generator=noise), alpha=0.01)
        masters.publish()
        new, version = [p.detach().clone() for p in masters.parameters], learner.version
        learner.refresh_reference(0.0, 0.5)
        for parameter, now, before in zip(masters.parameters, new, copies[-1], strict=True):
            torch.testing.assert_close(parameter.detach(), now + 0.5 * (now - before), rtol=0, atol=1e-6)
        for parameter, master in zip(masters.model_parameters, masters.parameters, strict=True):
            assert torch.equal(parameter, master.to(dtype))
        assert learner.version == version + 1
        copies.append(new)


class Moved:
    """A learner's reference at some steps, and an engine that plays it."""

    def __init__(self, folder: Path) -> None:
        self.learner = tiny_learner(tiny_folder(folder / "model"), reference=True)
        model = load_policy(folder / "model", Model(path=str(folder / "model")), torch.float32, "cpu")
        self.engine = Hybrid(self.learner, LocalSampler(model, self.learner.tokenizer, (1,), 8))
        algorithm = choose("spin_pool", {"pool_size": 3})
        self.opponents = Opponents(algorithm, self.engine, folder / "opponents", seed=0)
        self.reference = Reference(refresh="copy", every=2)

    def step(self, step: int) -> dict[str, Tensor]:
        """The opponent's weights at a step; then the policy moves, and the reference after every other step."""
        with self.opponents.against(step):
            chosen = {name: tensor.clone() for name, tensor in self.opponents.weights(step)}
        randomise(self.learner.model, step, scale=0.01)
        self.learner.version += 1
        if step % 2 == 0:
            self.learner.refresh_reference(0.0)
        self.opponents.note(self.reference, step)
        return chosen


def test_each_steps_opponent_is_one_of_the_last_that_the_reference_has_been(tmp_path: Path) -> None:
    run = Moved(tmp_path)
    chosen = [run.step(step) for step in range(1, 13)]
    files = sorted((tmp_path / "opponents").iterdir())
    assert [f.name for f in files] == [f"step-{step:06d}.safetensors" for step in range(0, 13, 2)]
    kept = {int(f.stem.split("-")[1]): load_file(f) for f in files}
    drawn = []
    for step, weights in enumerate(chosen, start=1):
        of = [s for s, known in kept.items() if all(torch.equal(known[n], weights[n]) for n in known)]
        drawn += of
        pool = [s for s in kept if s < step][-3:]
        assert len(of) == 1
        assert of[0] in pool
        assert of[0] == random.Random(f"0/{step}").choice(pool)
    assert len(set(drawn)) > 3


def test_files_of_steps_that_a_resumed_run_has_not_made_yet_are_not_played(tmp_path: Path) -> None:
    run = Moved(tmp_path)
    before = [run.step(step) for step in range(1, 6)]
    later = tmp_path / "opponents" / "step-000008.safetensors"
    save_file({"nothing": torch.zeros(1)}, later)
    for step in range(1, 6):
        found = dict(run.opponents.weights(step))
        assert all(torch.equal(found[name], tensor) for name, tensor in before[step - 1].items())


def test_policy_and_opponent_answer_in_the_order_in_which_they_are_asked(tmp_path: Path) -> None:
    run = Moved(tmp_path)
    randomise(run.learner.model, 9, scale=0.1)
    run.learner.version += 1
    authors = ["opponent", "policy", "policy", "opponent"]
    requests = [Request(prompt((2, 3, 4 + i)), i, author=a) for i, a in enumerate(authors)]
    with run.opponents.against(1) as sampler:
        found = sampler.generate(requests, Sampling(max_tokens=5))
        again = sampler.generate(requests, Sampling(max_tokens=5))
    assert [r.author for r in found] == authors
    assert [r.tokens for r in found] == [r.tokens for r in again]
    for request, rollout in zip(requests, found, strict=True):
        assert rollout.tokens[:3] == request.prompt.tokens
        who = "policy" if request.author == "policy" else "reference"
        assert gap(rollout, run.learner.logprobs([rollout], who)[0].reshape(-1)) < 1e-4
        assert gap(rollout, run.learner.logprobs([rollout], "reference" if who == "policy" else "policy")[0]) > 1e-2
    # The next who asks for the policy gets the policy.
    with run.engine.generating() as plain:
        assert plain.version == run.learner.version


def gap(rollout: Rollout, logprobs: Tensor) -> float:
    said = torch.tensor(rollout.mask)
    return float((torch.tensor(rollout.logprobs) - logprobs.reshape(-1))[said].abs().max())


def test_a_pool_through_the_command_line_twice_is_the_same_run(tmp_path: Path) -> None:
    for name in ("one", "two"):
        changes = {"rollout": SAMPLED, **followed(1), "run": {"steps": 3, "save_every": 0}}
        train(prepare(tmp_path / name, "spin_pool", texts(12), **changes))
    same(tmp_path / "one" / "run", tmp_path / "two" / "run", 3)
    assert len(list((tmp_path / "one" / "run" / "opponents").iterdir())) == 4
    assert json.loads((tmp_path / "one" / "run" / "summary.json").read_text())["steps"] == 3
