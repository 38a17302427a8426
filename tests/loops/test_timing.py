"""What real runs note of their seconds and positions, and what `posttrain inspect --time` makes of it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest
import torch
from torch import Tensor

from posttrain.algorithms.choice import choose
from posttrain.algorithms.row import Algorithm
from posttrain.algorithms.state import Coefficients, RowState
from posttrain.algorithms.table import ALGORITHMS
from posttrain.data.packing import pack
from posttrain.data.positions import count
from posttrain.errors import PosttrainError
from posttrain.learner import Learner
from posttrain.learner.accumulate import Passes, accumulate
from posttrain.learner.policy import PolicyLearner
from posttrain.learner.sharding import WHOLE
from posttrain.loops.learning import Learnt
from posttrain.loops.progress import Progress
from posttrain.loops.stopwatch import Stopwatch, untaught
from posttrain.metrics import Report, RunFolder
from posttrain.recipe import Run
from posttrain.types import Batch, Sample, Scored
from posttrain.world import Alone
from tests import offline_runs, runs
from tests.learner.steps import TERMS
from tests.offline_runs import command, killed, pairs, texts, train
from tests.tiny import samples, tiny_folder, tiny_learner

T = TypeVar("T")
TOP = ("generate", "grade", "learn", "publish", "evaluate", "other")
INNER = ("reading", "reference", "values", "pass", "optimizer", "rest")
SMALL = {"hardware": {"learner": {"micro_batch_tokens": 256}, "device": "cpu", "dtype": "float32"}}


def times(folder: Path) -> dict[str, Any]:
    return json.loads(command("inspect", folder, "--time", "--json"))


def work(folder: Path) -> list[dict[str, float]]:
    lines = RunFolder(folder).read_metrics()
    return [{k: v for k, v in line.items() if k == "step" or k.startswith("work/")} for line in lines]


def adds_up(folder: Path) -> dict[str, Any]:
    """The profile of a run whose phases do not overlap and make a whole."""
    found = times(folder)
    phases = found["phases"]
    step = phases["step"]["mean"]
    assert sum(phases[name]["mean"] or 0.0 for name in TOP) == pytest.approx(step)
    assert sum(phases[name]["mean"] or 0.0 for name in INNER) == pytest.approx(phases["learn"]["mean"])
    # Phases that overlap would leave less than nothing.
    assert 0 <= phases["other"]["mean"] < step
    assert phases["rest"]["mean"] >= 0
    return found


def test_a_run_that_was_killed_counts_the_same_and_its_seconds_add_up(tmp_path: Path) -> None:
    changes = {"run": {"steps": 4, "save_every": 2, "evaluate_every": 2}, **SMALL}
    for name in ("calm", "rough"):
        (tmp_path / name).mkdir()
    calm, rough = (runs.prepare(tmp_path / name, **changes) for name in ("calm", "rough"))
    train(calm)
    killed(rough, step=3)
    train(rough)
    assert work(tmp_path / "calm" / "run") == work(tmp_path / "rough" / "run")
    found = adds_up(tmp_path / "calm" / "run")
    phases = found["phases"]
    assert [phases[name]["steps"] for name in ("generate", "grade", "pass", "optimizer", "publish")] == [3] * 5
    assert phases["evaluate"]["steps"] == 2
    assert phases["evaluate"]["first"] is None
    # After the second step, and after the last, which no line follows.
    assert phases["save"]["steps"] == 2
    counted = found["work"]
    assert counted["computed"] >= counted["learnt"] + counted["padding"]
    lines = RunFolder(tmp_path / "calm" / "run").read_metrics()
    assert counted["learnt"] == sum(line["rollout/tokens"] for line in lines[2:])
    records = [r for step in (2, 3, 4) for r in RunFolder(tmp_path / "calm" / "run").read_rollouts("step", step)]
    assert counted["silent_samples"] == sum(not any(r["advantages"]) for r in records)
    assert counted["samples"] == len(records)
    assert "Largest thing to fix" in command("inspect", tmp_path / "calm" / "run", "--time")


@pytest.mark.parametrize(
    ("algorithm", "rows", "changes", "there"),
    [
        ("dpo", pairs(10), {}, ("reference", "pass")),
        ("sft", texts(10), {}, ("pass",)),
        ("reward_bradley_terry", pairs(10), {}, ("pass",)),
        (
            "spin_pool",
            texts(10),
            {
                "reference": {"refresh": "copy", "every": 1},
                "rollout": {"engine": "transformers", "group_size": 2, "max_tokens": 5},
            },
            ("generate", "publish", "reference", "pass"),
        ),
    ],
)
def test_runs_on_given_answers_have_dashes_where_nothing_is_sampled(
    tmp_path: Path, algorithm: str, rows: Any, changes: dict[str, Any], there: tuple[str, ...]
) -> None:
    train(offline_runs.prepare(tmp_path, algorithm, rows, rows[:4], **changes))
    found = adds_up(tmp_path / "run")
    phases = found["phases"]
    for name in ("generate", "publish", "reference", "pass"):
        assert (phases[name]["median"] is not None) == (name in there), name
    assert found["work"]["silent_share"] is None or algorithm == "sft"
    if algorithm in ("dpo", "reward_bradley_terry"):
        # Both answers to each of four prompts, three steps.
        assert found["work"]["shared"] > 0
    if "publish" in there:
        # The opponent's weights are loaded in the middle of generating.
        for line in RunFolder(tmp_path / "run").read_metrics()[1:]:
            assert 0 < line["rollout/sync_seconds"] <= line["sync/seconds"] + line["sync/switch_seconds"]
    assert found["largest"]


def test_a_folder_from_before_the_seconds_of_passes_has_dashes(tmp_path: Path) -> None:
    made = RunFolder(tmp_path / "run")
    made.open("run: {steps: 2}\n")
    for step in range(3):
        made.append_metrics(step, {"learn/seconds": 1.0, "step/seconds": 2.0})
    found = times(tmp_path / "run")
    assert found["phases"]["pass"]["median"] is None
    assert found["phases"]["learn"]["median"] == 1.0
    assert "–" in command("inspect", tmp_path / "run", "--time")


def test_options_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    for words in (("--time", "--step", "1"), ("--json",)):
        with pytest.raises(PosttrainError, match="--time"):
            command("inspect", tmp_path, *words)


class Slow:
    """A learner of which each pass takes a known time."""

    version = 3

    def __init__(self, learner: Any) -> None:
        self.packing = learner.packing

    def logprobs(self, rollouts: Sequence[Any], policy: str = "policy") -> list[Tensor]:
        time.sleep(0.03 if policy == "policy" else 0.05)
        return []

    def uniform(self, rollouts: Sequence[Any]) -> list[Tensor]:
        time.sleep(0.03)
        return []

    def values(self, rollouts: Sequence[Any]) -> list[Tensor]:
        time.sleep(0.02)
        return []

    def accumulate(self, batches: Any, algorithm: Any, coefficients: Any) -> tuple[Report, list[Tensor]]:
        time.sleep(0.08)
        return Report(), []

    def step(self, policy: bool = True) -> Report:
        time.sleep(0.01 if policy else 0.04)
        return Report()


@pytest.mark.clock
def test_each_pass_is_timed_under_its_own_name_and_positions_are_those_of_all_passes(tmp_path: Path) -> None:
    slow = Slow(tiny_learner(tiny_folder(tmp_path / "model"), budget=15))
    learner, watch = Stopwatch.around(slow)
    assert learner.version == 3
    batch = samples()
    rollouts = [s.rollout for s in batch]
    learner.logprobs(rollouts)
    learner.uniform(rollouts)
    learner.logprobs(rollouts, "reference")
    learner.values(rollouts)
    batches = list(pack(batch, slow.packing))
    for _ in range(2):
        learner.accumulate(batches, ALGORITHMS["grpo"], Coefficients(constant_length=1))
    learner.step()
    learner.step(policy=False)
    found = watch.report.values()
    least = {"reading": 0.06, "reference": 0.05, "values": 0.02, "pass": 0.16, "optimizer": 0.05}
    for kind, seconds in least.items():
        assert seconds <= found[f"learn/{kind}_seconds"] < seconds + 0.05, kind
    assert found["work/reading_tokens"] == 2 * sum(len(r.tokens) for r in rollouts)
    assert found["work/computed"] == 2 * count(batches, slow.packing).computed
    assert len(batches) > 1
    assert found["work/first_pass"] == 0
    learner.accumulate(batches, ALGORITHMS["dpo"], Coefficients(constant_length=1))
    # A loss of whole pairs is computed over the update first.
    assert watch.report.values()["work/first_pass"] == count(batches, slow.packing).computed


class Spied:
    """A learner that passes as the real one does; `read` are the micro-batches that had no backward pass."""

    def __init__(self, learner: PolicyLearner, skips: bool) -> None:
        self.learner, self.packing = learner, learner.packing
        self.computation = replace(learner.computation, skips=skips)
        self.read: list[Batch] = []

    def accumulate(
        self, batches: Sequence[Batch], algorithm: Algorithm, coefficients: Coefficients
    ) -> tuple[Report, list[Tensor]]:
        def score(batch: Batch) -> Scored:
            if not torch.is_grad_enabled():
                self.read.append(batch)
            return self.learner._score(batch, algorithm)

        passes = Passes(score, Tensor.backward, WHOLE, skips=self.computation.skips)
        return accumulate(passes, batches, algorithm, coefficients)


@pytest.mark.parametrize("silenced", [0, 1, 3])
@pytest.mark.parametrize(
    ("changes", "skips"), [({}, True), ({}, False), ({"kl": "in_loss"}, True), ({"credit": "group_mean"}, True)]
)
def test_positions_without_a_backward_pass_are_those_that_the_learner_only_reads(
    tmp_path: Path, silenced: int, changes: dict[str, Any], skips: bool
) -> None:
    spied = Spied(tiny_learner(tiny_folder(tmp_path / "model"), budget=15, reference=True), skips)
    learner, watch = Stopwatch.around(cast(Learner, spied))
    algorithm = choose("grpo", changes)
    batch = [
        replace(s, advantages=(s.group >= silenced) * s.advantages, reference=torch.zeros(len(s.mask), 1))
        for s in samples()
    ]
    batches = list(pack(batch, spied.packing))
    learner.accumulate(batches, algorithm, RowState.of(algorithm).coefficients(TERMS))
    found = watch.report.values()
    assert found["work/silent_computed"] == count(spied.read, spied.packing).computed
    assert (found["work/silent_computed"] > 0) == (silenced > 0 and skips and algorithm.silent_at_zero)
    # All silent: one has its backward pass all the same.
    assert found["work/silent_computed"] < found["work/computed"]


def test_samples_with_nothing_to_learn_are_counted_where_the_advantage_is_all_there_is() -> None:
    batch = samples()
    silenced = [Sample(s.rollout, s.group, s.mask, 0 * s.advantages) for s in batch[:2]] + batch[2:]
    learnt = sum(bool(s.mask.any()) for s in batch)
    assert learnt == len(batch) - 1
    told = untaught(ALGORITHMS["grpo"], silenced).values()
    assert told == {"work/samples": learnt, "work/silent_samples": 2}
    assert not untaught(choose("grpo", {"kl": "in_loss"}), silenced).values()
    assert not untaught(ALGORITHMS["dpo"], silenced).values()


class Two(Alone):
    """This process and another one, which waited half a second and has seconds of its own."""

    size = 2

    def __init__(self, waited: float) -> None:
        self.waited = waited

    def gather(self, value: T) -> list[T]:
        if not isinstance(value, tuple):
            return [value, value]
        return [value, (0.5, Report.sum("learn/seconds", 7.0).entries)]  # type: ignore[list-item]

    def shared(self, make: Callable[[], T]) -> T:
        return make()


@pytest.mark.parametrize(("waited", "learnt"), [(2.0, 7.0), (0.25, 3.0)])
def test_of_several_ranks_the_one_that_waited_least_tells_its_seconds(
    tmp_path: Path, waited: float, learnt: float
) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.open("run: {steps: 9}\n")
    run = Run(steps=9, folder=tmp_path / "run", rollouts=False)
    progress = Progress(folder, (), run, None, {}, world=Two(waited))  # type: ignore[arg-type]
    report = Report.sum("learn/seconds", 3.0) + Report.sum("learn/loss", 1.0)
    for step in (1, 2):
        progress.finish(step, report, [], Learnt(), time.perf_counter())
    first, second = folder.read_metrics()
    assert first["learn/seconds"] == learnt
    assert first["learn/loss"] == 1.0
    assert first["ranks/waited_seconds"] == (waited + 0.5) / 2
    # In the second step this rank did not wait at all.
    assert second["ranks/waited_seconds"] == 0.25
    assert second["learn/seconds"] == 3.0
    assert "write/seconds" not in first
    assert second["write/seconds"] > 0
