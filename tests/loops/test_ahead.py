"""A run that draws a step ahead: which weights drew what, that the row corrects for it, and that it can be killed."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from posttrain.algorithms.table import ALGORITHMS
from posttrain.build.check import check
from posttrain.errors import RecipeError, TrainingError
from posttrain.loops.ahead import Ahead
from posttrain.metrics import Report, RunFolder
from posttrain.recipe import parse
from posttrain.rollout.collect import Collected
from posttrain.types import Group, Prompt, Rollout, Sampling, Verdict
from tests.forked import Forked, run
from tests.loops.test_online import loss_of_update
from tests.loops.test_resume import kill_when, lines
from tests.runs import metrics, prepare, recipe
from tests.saved import equal

EVERY, STEPS = 3, 7
LATE: dict[str, Any] = {
    "rollout": {"max_lag": 1},
    "run": {"steps": STEPS, "save_every": 4, "parity_every": EVERY, "evaluate_every": 2},
}
FRESH = {1, 3, 6}
"""The first step, and those that are compared."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ahead")
    run("train", prepare(folder, **LATE))
    return folder / "run"


def test_tokens_are_those_of_weights_one_step_older_and_say_so(finished: Path) -> None:
    folder = RunFolder(finished)
    for step in folder.rollout_steps():
        rows = folder.read_rollouts("step", step)
        drawn = {v for r in rows for v, m in zip(r["versions"], r["mask"], strict=True) if m}
        assert drawn == {step - 1 if step in FRESH else step - 2}
    for line in folder.read_metrics()[1:]:
        beside = line["step"] < STEPS and line["step"] + 1 not in FRESH
        assert ("ahead/waited_seconds" in line) == beside
        if line["step"] in FRESH:
            assert line["parity/max_abs_gap"] < 1e-4
            assert "rollout/seconds" in line
            assert not any(name.startswith("lag/") for name in line)
        else:
            assert line["lag/versions"] == 1
            # At this learning rate weights a step older are plainly others.
            assert line["lag/max_abs_gap"] > 1e-3
            # Its draws took their time beside the step before.
            assert {"ahead/rollout_seconds", "ahead/grade_seconds"} <= set(line)
            assert "rollout/seconds" not in line
            assert not any(name.startswith("parity/") for name in line)


def test_the_loss_is_the_corrected_one_of_the_tokens_that_were_drawn(finished: Path) -> None:
    folder = RunFolder(finished)
    for line in folder.read_metrics()[1:]:
        rows = folder.read_rollouts("step", line["step"])
        assert loss_of_update(ALGORITHMS["grpo"], rows, 0, limit=8) == pytest.approx(line["learn/loss"], abs=1e-6)


def test_killed_with_a_step_drawn_ahead_it_goes_on_as_if_it_had_not_been(finished: Path, tmp_path: Path) -> None:
    path = prepare(tmp_path, **LATE)
    process = Forked("posttrain", "train", path)
    kill_when(process, lambda: lines(tmp_path / "run") >= 6)
    assert RunFolder(tmp_path / "run").checkpoints() == [4]
    held = json.loads((tmp_path / "run/checkpoints/step-000004/state.json").read_text())["ahead"]
    assert held["step"] == 5
    run("train", path)
    again = tmp_path / "run"
    assert metrics(again) == metrics(finished)
    for file in sorted((finished / "rollouts").iterdir()):
        assert file.read_bytes() == (again / "rollouts" / file.name).read_bytes(), file.name
    name = f"checkpoints/step-{STEPS:06d}"
    assert (again / name / "policy/model.safetensors").read_bytes() == (
        finished / name / "policy/model.safetensors"
    ).read_bytes()
    equal(finished / name, again / name)


def test_without_lag_the_run_is_another(finished: Path, tmp_path: Path) -> None:
    run("train", prepare(tmp_path, **{**LATE, "rollout": {}}))
    first, other = metrics(finished), metrics(tmp_path / "run")
    assert first[1]["learn/loss"] == other[1]["learn/loss"]
    assert first[2]["learn/loss"] != other[2]["learn/loss"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"algorithm": {"name": "grpo", "correction": "none"}}, "truncated_importance"),
        ({"algorithm": {"name": "grpo", "selection": "steady_spread"}}, "steady_spread"),
        ({"run": {**LATE["run"], "parity_every": 1}}, "run.parity_every: 1"),
        ({"hardware": {"learner": {"strategy": "ddp", "processes": 2}}}, "hardware.learner.processes: 2"),
        ({"hardware": {"device": "cuda"}}, "placement: servers"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_drawn_ahead_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    prepare(tmp_path)
    with pytest.raises(RecipeError, match=f"rollout.max_lag: 1.*{said}"):
        check(parse(recipe(tmp_path, **{**LATE, **changes}), "a test"), "a test")


def groups() -> list[Group]:
    prompt = Prompt("p/1", (3, 4), "ask", {"answer": "4", "deep": {"x": [1, 2.5]}}, "file")
    said = Rollout(
        (3, 4, 5, 1), (False, False, True, True), "five", "stop", (0.0, 0.0, -0.1, -1e-17), (-1, -1, 2, 2), 77,
        Sampling(0.7, 8),
    )  # fmt: skip
    return [
        Group(prompt, (said, said), (Verdict(1.0, parts={"a": 1 / 3}, steps=((0, 0.1),)), Verdict(None, "timeout")))
    ]


def test_what_was_drawn_ahead_comes_back_from_a_checkpoint_exactly() -> None:
    one, other = Ahead(), Ahead()
    with one.meanwhile(5, lambda step: Collected(groups(), [], Report.mean("x", 0.1, 3) + Report.maximum("y", 2.0))):
        pass
    other.restore(json.loads(json.dumps(one.state())))
    found, expected = other.take(5), one.take(5)
    assert found is not None
    assert found == expected
    # Neither equality nor a hash looks at columns.
    assert found.groups[0].prompt.columns == groups()[0].prompt.columns
    assert other.take(5) is None
    other.restore({})
    assert other.state() == {}


def test_columns_that_no_checkpoint_holds_are_refused_by_name() -> None:
    ahead = Ahead()
    strange = Group(Prompt("p", (1,), "", {"thing": object()}), (), ())
    with ahead.meanwhile(2, lambda step: Collected([strange])):
        pass
    with pytest.raises(TrainingError, match=r"rollout\.max_lag"):
        ahead.state()


def test_what_fails_beside_is_raised_and_what_fails_in_front_waits_for_it() -> None:
    def broken(step: int) -> Collected:
        raise TrainingError(f"nothing in step {step}")

    ahead = Ahead()
    with pytest.raises(TrainingError, match="nothing in step 3"), ahead.meanwhile(3, broken):
        pass
    assert ahead.take(3) is None
    over = threading.Event()

    def slow(step: int) -> Iterator[None]:
        over.wait(0.2)
        over.set()
        return Collected()  # type: ignore[return-value]

    with pytest.raises(ZeroDivisionError), ahead.meanwhile(4, slow):  # type: ignore[arg-type]
        1 / 0  # noqa: B018
    assert over.is_set()
    assert ahead.take(4) is None
