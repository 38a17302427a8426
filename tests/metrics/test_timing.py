"""Where the seconds went: means add up to the step, medians leave the first step out, and each rule says its own."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from posttrain.metrics import Report, RunFolder
from posttrain.metrics.savings import WORTH, savings, sentence
from posttrain.metrics.timetable import as_json, render_time
from posttrain.metrics.timing import handed_over, profile

Line = dict[str, Any]
TOP = ("generate", "grade", "learn", "publish", "evaluate", "other")
INNER = ("reading", "reference", "values", "pass", "optimizer", "rest")


def online(step: int, scale: float = 1.0, **more: float) -> Line:
    """A step of 10 s: 4 drawn, 1 graded, 3 learnt, 1.5 published, .5 of nothing."""
    seconds = {
        "rollout/seconds": 4.0,
        "grade/seconds": 1.0,
        "learn/seconds": 3.0,
        "learn/reading_seconds": 0.5,
        "learn/pass_seconds": 1.5,
        "learn/optimizer_seconds": 0.25,
        "sync/seconds": 1.0,
        "sync/switch_seconds": 0.5,
        "step/seconds": 10.0,
    }
    counted = {"rollout/tokens": 800.0, "work/reading_tokens": 1000.0, "work/computed": 2000.0, "work/learnt": 800.0}
    none = dict.fromkeys(("padding", "repeated", "shared", "waiting", "first_pass", "silent_computed"), 0.0)
    scaled = {name: value * scale for name, value in seconds.items()}
    return {"step": step, **scaled, **counted, **{f"work/{n}": v for n, v in none.items()}, **more}


def steps(*more: dict[str, float]) -> list[Line]:
    """A slow first step, then one step for each mapping, with what it changes."""
    return [online(1, 3.0), *(online(2 + i, **each) for i, each in enumerate(more))]


def test_phases_add_up_to_the_step_and_the_first_step_stands_apart() -> None:
    evaluated = {"eval/seconds": 5.0, "eval/sync_seconds": 0.75, "sync/seconds": 1.75, "step/seconds": 15.0}
    found = profile([{"step": 0, "step/seconds": 7.0}, *steps({}, evaluated, {"step/seconds": 11.0})])
    phases = found.phases
    assert found.steps == 4
    assert found.before == 7.0
    assert phases["step"].mean == pytest.approx((10 + 15 + 11) / 3)
    assert sum(phases[name].mean or 0.0 for name in TOP) == pytest.approx(phases["step"].mean)
    assert sum(phases[name].share or 0.0 for name in TOP) == pytest.approx(1.0)
    assert sum(phases[name].mean or 0.0 for name in INNER) == pytest.approx(phases["learn"].mean)
    # Evaluation 5 - .75 of publishing inside it, in one of three steps.
    assert (phases["evaluate"].median, phases["evaluate"].steps) == (4.25, 1)
    assert phases["evaluate"].mean == pytest.approx(4.25 / 3)
    assert phases["publish"].median == pytest.approx(1.5)
    assert phases["publish"].mean == pytest.approx((1.5 + 2.25 + 1.5) / 3)
    # .5, .5 and 1.5 s are nobody's; the first step's are three times .5.
    assert phases["other"].median == pytest.approx(0.5)
    assert phases["other"].first == pytest.approx(1.5)
    assert phases["generate"].first == pytest.approx(12.0)
    assert phases["generate"].tokens_per_second == pytest.approx(800 / 4)
    assert phases["pass"].tokens_per_second == pytest.approx(2000 / 1.5)
    assert phases["values"].median is None


def test_median_and_spread_are_over_the_steps_that_have_the_phase() -> None:
    found = profile(steps(*({"grade/seconds": float(n)} for n in range(11))))
    grade = found.phases["grade"]
    assert (grade.median, grade.low, grade.high) == pytest.approx((5.0, 1.0, 9.0))


def test_writing_and_saving_are_those_after_a_step_and_noted_with_the_next() -> None:
    found = profile(steps({"write/seconds": 0.1}, {"write/seconds": 0.2, "save/seconds": 6.0}, {"write/seconds": 0.3}))
    assert found.phases["write"].first == 0.1
    assert found.phases["write"].median == pytest.approx(0.25)
    assert (found.phases["save"].median, found.phases["save"].steps, found.phases["save"].first) == (6.0, 1, None)
    assert found.phases["save"].mean == pytest.approx(2.0)
    assert found.phases["step"].mean == pytest.approx(10.0)


def test_what_came_after_the_last_step_is_its_own(tmp_path: Path) -> None:
    lines = steps({"write/seconds": 0.1}, {"write/seconds": 0.2, "save/seconds": 6.0})
    run = folder(tmp_path, lines)
    run.write_after(3, {"write/seconds": 0.4, "save/seconds": 8.0})
    found = as_json(run)["phases"]
    assert (found["save"]["high"], found["save"]["steps"], found["save"]["mean"]) == (pytest.approx(7.8), 2, 7.0)
    assert (found["write"]["steps"], found["write"]["mean"]) == (2, pytest.approx((0.2 + 0.4) / 2))
    # Another step has followed: its line says what came before it.
    run.append_metrics(4, {k: v for k, v in online(4).items() if k != "step"})
    assert as_json(run)["phases"]["save"]["steps"] == 1
    assert run.read_after(4) == {}
    assert RunFolder(tmp_path / "none").read_after(3) == {}


def test_publishing_that_lay_in_a_phase_is_not_counted_twice() -> None:
    against = {"rollout/seconds": 5.0, "rollout/sync_seconds": 1.0}
    found = profile(steps(against, against))
    assert found.phases["generate"].mean == pytest.approx(4.0)
    assert found.phases["other"].mean == pytest.approx(0.5)
    assert handed_over(Report.sum("sync/seconds", 1.5) + Report.sum("sync/switch_seconds", 0.25)) == 1.75
    assert handed_over(Report()) == 0.0


def test_an_older_run_has_dashes_and_adds_up() -> None:
    old = {
        "rollout/seconds": 4.0,
        "grade/seconds": 1.0,
        "learn/seconds": 3.0,
        "sync/seconds": 1.0,
        "step/seconds": 10.0,
    }
    evaluated = {**old, "eval/seconds": 2.0, "step/seconds": 12.0}
    found = profile([{"step": n, **line} for n, line in enumerate((old, old, old, evaluated), start=1)])
    phases = found.phases
    assert phases["rest"].mean is None
    assert phases["pass"].mean is None
    assert found.work["learnt_share"] is None
    assert sum(phases[name].mean or 0.0 for name in TOP) == pytest.approx(phases["step"].mean)
    # How much of the publishing was the evaluation's own is not known of the last step.
    assert phases["publish"].steps == 2
    assert savings(found, {})[0].what == "what is idle or not timed"


@pytest.mark.parametrize("lines", [[], [{"step": 0, "eval/accuracy": 0.5}], [online(1)]])
def test_a_run_without_a_second_step_tells_nothing_yet(lines: list[Line], tmp_path: Path) -> None:
    found = profile(lines)
    assert found.phases["step"].median is None
    assert savings(found, {}) == []
    assert "no step after the first" in sentence(found, {})
    assert "phase" in shown(folder(tmp_path, lines))


RECIPE: dict[str, Any] = {
    "hardware": {"learner": {"layout": "auto", "processes": 2}, "sampler": {"sync": "auto"}},
    "run": {"rollouts": True},
    "optimizer": {"prompts_per_step": 6},
    "reference": {"cache": False},
}


def with_hardware(**learner: Any) -> dict[str, Any]:
    return {**RECIPE, "hardware": {"learner": learner, "sampler": {"sync": "gathered"}}}


@pytest.mark.parametrize(
    ("more", "recipe", "what", "seconds", "key"),
    [
        # 1.5 s of passes over 2000 positions.
        ({"work/padding": 1000.0}, RECIPE, "padding", 0.75, "micro_batch_tokens (smaller)"),
        ({"work/padding": 1000.0}, with_hardware(layout="rows"), "padding", 0.75, "layout: packed"),
        ({"work/repeated": 500.0}, with_hardware(layout="rows"), "prompts computed once", 0.375, "layout: tree"),
        ({"work/repeated": 500.0, "work/shared": 9.0}, RECIPE, "prompts computed again", 0.375, "(larger)"),
        # A quarter of four forward passes' worth.
        ({"work/first_pass": 2000.0}, RECIPE, "a first pass", 0.375, "(larger)"),
        ({"work/waiting": 1000.0}, RECIPE, "ranks with fewer", 0.5, "(smaller)"),
        # Half of the positions have no backward pass, so that all passes are worth six instead of eight.
        ({"work/first_pass": 2000.0, "work/silent_computed": 1000.0}, RECIPE, "a first pass", 0.5, "(larger)"),
        ({"work/padding": 1000.0, "work/silent_computed": 1000.0}, RECIPE, "padding", 0.75, "(smaller)"),
        # Of 5 s drawn and 1.5 s of other learning a quarter; of 1.5 s of passes 400 forward ones and 100 whole ones.
        (
            {"work/samples": 8.0, "work/silent_samples": 2.0, "work/silent_computed": 400.0},
            RECIPE,
            "responses whose advantage",
            6.5 / 4 + 1.5 * (400 + 3 * 100) / (3 * 1600 + 400),
            "data.train",
        ),
        # 4 s drawn, 1 graded and 3 learnt.
        ({"work/samples": 8.0, "work/silent_samples": 2.0}, RECIPE, "responses whose advantage", 2.0, "data.train"),
        ({"rollout/dropped_groups": 2.0}, RECIPE, "groups drawn and dropped", 1.25, "data.train"),
        ({"save/seconds": 2.0}, RECIPE, "saving", 4 / 3, "run.save_every"),
        ({"write/seconds": 1.5}, RECIPE, "writing", 1.0, "run.rollouts: false"),
        ({}, with_hardware(processes=2), "all weights", 1.5, "sync: planned"),
        ({}, RECIPE, "what is idle", 0.5, None),
    ],
)
def test_each_rule_names_its_seconds_and_its_key(
    more: dict[str, float], recipe: dict[str, Any], what: str, seconds: float, key: str | None
) -> None:
    found = savings(profile(steps(more, more, more)), recipe)
    (rule,) = [s for s in found if s.what.startswith(what)]
    assert rule.seconds == pytest.approx(seconds)
    assert rule.key is None if key is None else key in (rule.key or "")
    others = {s.what for s in savings(profile(steps({}, {}, {})), RECIPE)}
    assert others == {"what is idle or not timed"}


def test_a_model_that_refuses_trees_is_not_told_to_use_them() -> None:
    more = {"work/repeated": 500.0}
    assert not [s for s in savings(profile(steps(more, more)), RECIPE) if "prompt" in s.what]


def test_evaluations_before_the_last_step_could_be_fewer() -> None:
    more = {"eval/seconds": 6.0, "eval/sync_seconds": 0.0, "step/seconds": 16.0}
    found = {s.what: s for s in savings(profile(steps({}, more, more)), RECIPE)}
    assert found["evaluations before the last step"].seconds == pytest.approx(2.0)
    assert "evaluations before the last step" not in {s.what for s in savings(profile(steps({}, {}, more)), RECIPE)}


def test_a_reference_is_kept_only_where_it_is_read_again() -> None:
    given = {"learn/seconds": 6.0, "learn/pass_seconds": 3.0, "learn/reference_seconds": 2.0, "step/seconds": 6.0}
    lines = [{"step": n, **given, "data/epoch": float(n // 2)} for n in range(1, 6)]
    found = {s.what: s for s in savings(profile(lines), RECIPE)}
    assert found["the reference read again in each epoch"].seconds == pytest.approx(2.0 * 2 / 3)
    assert found["the reference read again in each epoch"].key == "reference.cache: true"
    once = [{**line, "data/epoch": 0.0} for line in lines]
    assert not savings(profile(once), RECIPE)
    assert not savings(profile(lines), {**RECIPE, "reference": {"cache": True}})


def test_the_sentence_names_the_largest_thing_or_the_largest_work() -> None:
    wasted = {"work/samples": 8.0, "work/silent_samples": 2.0, "work/padding": 1000.0}
    said = sentence(profile(steps(wasted, wasted)), RECIPE)
    assert said.startswith(
        "Largest thing to fix: responses whose advantage is 0, at most 20% of a step (2 of 10 s); data."
    )
    # .4 s of nothing is less than what is named.
    busy = {"rollout/seconds": 4.1}
    assert WORTH > 0.4 / 10
    said = sentence(profile(steps(busy, busy)), RECIPE)
    assert "the most work is generate, 41% of a step, and rollout.max_tokens" in said


def folder(path: Path, lines: list[Line]) -> RunFolder:
    made = RunFolder(path / "run")
    made.open("run: {steps: 2}\nreference: {cache: false}\n")
    for line in lines:
        made.append_metrics(line["step"], {k: v for k, v in line.items() if k != "step"})
    return made


def shown(run: RunFolder) -> str:
    out = io.StringIO()
    Console(file=out, width=160, color_system=None).print(render_time(run))
    return out.getvalue()


def test_the_table_shows_every_phase_and_what_was_computed(tmp_path: Path) -> None:
    more = {"work/padding": 400.0, "work/samples": 8.0, "work/silent_samples": 4.0, "ranks/waited_seconds": 1.25}
    more["work/silent_computed"] = 600.0
    run = folder(tmp_path, steps(more, more))
    text = shown(run)
    rows = {cells[0].strip(): cells[1:] for line in text.splitlines() if len(cells := line.strip("│").split("│")) > 5}
    assert [cell.strip() for cell in rows["step"]] == [
        "10.000", "10.000 – 10.000", "2", "10.000", "100.0%", "–", "30.000"
    ]  # fmt: skip
    assert rows["forward, backward"][5].strip() == "1,333"
    assert "critic read" not in rows
    for part in (
        "learnt tokens 1,600 (40.0%)",
        "padding 20.0%",
        "(advantage 0): 50.0%",
        "1.25 s a step",
        "backward pass: 1,200",
    ):
        assert part in text
    told = as_json(run)
    assert json.loads(json.dumps(told, allow_nan=False)) == told
    assert told["phases"]["step"]["mean"] == 10.0
    assert told["largest"].startswith("Largest thing to fix: responses whose advantage is 0")
