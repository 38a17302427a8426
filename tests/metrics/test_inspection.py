"""What `posttrain inspect` shows, read from a real folder."""

import io

import pytest
from rich.console import Console

from posttrain.errors import PosttrainError
from posttrain.metrics import RunFolder
from posttrain.metrics.inspection import View, overview, render, visible
from posttrain.metrics.records import record
from posttrain.types import Group, Prompt, Rollout, Verdict


def shown(renderable, width=160):
    out = io.StringIO()
    Console(file=out, width=width, color_system=None).print(renderable)
    return out.getvalue()


def rollout(text):
    return Rollout((5, 6, 7), (False, True, True), text, "stop", (0.0, -0.5, -1.25), (-1, 3, 4))


@pytest.fixture
def folder(tmp_path):
    made = RunFolder(tmp_path / "run")
    made.open("run: {steps: 2}\n")
    rows = []
    for g, (name, question) in enumerate([("sum-1", "one plus one?"), ("sum-2", "two plus two?"), ("sum-3", "six?")]):
        verdicts = (Verdict(1.0, parts={"math": 1.0, "format": 0.5}), Verdict(None, "timeout", reason="after 10 s"))
        group = Group(
            Prompt(name, (5,), question, source="sums"), (rollout("good [b]answer"), rollout("loop")), verdicts
        )
        learnt = {"advantages": [0.0, 1.5, 1.5], "learner_logprobs": [0.0, -0.5, -1.375], "updates": []}
        rows += [record(1, 0, g, group, 0, learnt=learnt), record(1, 0, g, group, 1, learnt=None)]
    made.write_rollouts("step", 1, rows)
    made.append_metrics(0, {"eval/accuracy": 0.25})
    told = {"reward/mean": 0.625, "rollout/length_mean": 17.25, "rollout/truncated_fraction": 0.125}
    made.append_metrics(1, {**told, "verdict/ok": 3, "verdict/timeout": 3, "parity/max_abs_gap": 0.125})
    return made


def test_the_overview_has_a_row_per_step_and_dashes_for_what_was_not_measured(folder):
    table = overview(folder.read_metrics())
    rows = [list(cells) for cells in zip(*(column.cells for column in table.columns), strict=True)]
    assert rows == [
        ["0", "–", "0.250", "–", "–", "–", "–"],
        ["1", "0.625", "–", "17.2", "12.5%", "ok 3, timeout 3", "1.25e-01"],
    ]
    assert "ok 3, timeout 3" in shown(render(folder))


def test_a_step_shows_its_groups_with_text_score_parts_and_reasons(folder):
    text = shown(render(folder, 1, View(count=2)))
    for part in (
        "group 0  sums sum-1",
        "one plus one?",
        "0.0  score 1 (math 1, format 0.5)  ok, stop, 2 tokens, weights 3–4, 0 updates",
        "good [b]answer",
        "0.1  score –  timeout, stop, 2 tokens, weights 3–4, not learnt",
        "reason: after 10 s",
        "mean score 1.000, ok 1, timeout 1",
        "1 more groups of step 1",
    ):
        assert part in text
    assert "six?" not in text
    assert "six?" in shown(render(folder, 1, View(count=0)))


@pytest.mark.parametrize("problem", ["sum-2", "two plus"])
def test_a_problem_is_found_by_its_id_or_its_text(folder, problem):
    text = shown(render(folder, 1, View(problem=problem)))
    assert "two plus two?" in text
    assert "one plus one?" not in text


def test_a_roll_out_is_shown_token_by_token_with_both_sides(folder):
    lines = [line.replace("│", " ").split() for line in shown(render(folder, 1, View(rollout="2.0"))).splitlines()]
    assert ["0", "5"] in lines
    assert ["1", "6", "3", "-0.5000", "-0.5000", "+0.0e+00", "–", "+1.500"] in lines
    assert ["2", "7", "4", "-1.2500", "-1.3750", "-1.2e-01", "–", "+1.500"] in lines
    untaught = [line.replace("│", " ").split() for line in shown(render(folder, 1, View(rollout="2.1"))).splitlines()]
    assert ["2", "7", "4", "-1.2500", "–", "–", "–", "–"] in untaught


def test_a_completion_cannot_drive_the_terminal():
    told = visible("a\x1b]0;owned\x07\x9b2J\rb\n\u202egnp\ud800")
    assert told.plain == "a␛]0;owned␇\ufffd2J␍b\n\ufffdgnp\ufffd"
    assert "\x1b" not in shown(told)


@pytest.mark.parametrize(
    ("step", "view", "message"),
    [
        (9, View(), "steps with step roll-outs: 1 from 1 to 1"),
        (1, View(kind="eval"), "steps with eval roll-outs: none"),
        (1, View(rollout="7.0"), "no group 7; groups are 0 to 2"),
        (1, View(rollout="0.2"), "group 0 has 2, 0 to 1"),
        (1, View(rollout="first"), "written G.I"),
        (1, View(problem="seven"), "no prompt with 'seven'"),
        (None, View(rollout="0.0"), "name the step too"),
    ],
)
def test_what_is_not_there_is_said_with_what_is(folder, step, view, message):
    with pytest.raises(PosttrainError, match=message):
        render(folder, step, view)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(PosttrainError, match="is no run folder"):
        render(RunFolder(tmp_path))


def test_an_evaluation_is_looked_at_like_a_step(folder):
    group = Group(Prompt("e", (5,), "held out?"), (rollout("yes"),), (Verdict(0.0),))
    folder.write_rollouts("eval", 0, [record(0, 0, 0, group, 0, learnt=None)])
    assert "held out?" in shown(render(folder, 0, View(kind="eval")))


def test_a_step_without_roll_outs_says_so(folder):
    folder.write_rollouts("step", 2, [])
    assert "no roll-outs were kept" in shown(render(folder, 2))


def test_a_run_on_given_responses_shows_its_loss_and_what_it_prefers(tmp_path):
    made = RunFolder(tmp_path / "given")
    made.open("run: {steps: 1}\n")
    made.append_metrics(0, {"eval/preferred": 0.5, "eval/nll": 1.25})
    made.append_metrics(1, {"learn/loss": 0.6931, "learn/preferred": 0.625, "data/epoch": 0.0})
    text = shown(render(made, None, View()))
    assert all(word in text for word in ("0.6931", "0.625", "0.500", "1.250", "held-out preferred"))
