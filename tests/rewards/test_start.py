"""Grading workers start with what grades and no more, and while the process that wants them does something else."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from posttrain.errors import GradingError
from posttrain.recipe import Grading, Reward
from posttrain.rewards import Grader
from posttrain.types import Prompt, Rollout

HEAVY = {"torch", "transformers", "vllm", "numpy", "pydantic", "yaml", "typer", "rich", "sqlite3", "datasets"}
"""What the command line, recipes, data and learning stand on, and no verifier that is a plain function."""
OURS = {"posttrain.cli", "posttrain.build", "posttrain.recipe", "posttrain.rewards.grader", "posttrain.algorithms"}
LOADED = "tests.rewards.graders:loaded"
RESPONSE = (Prompt("p", (1,), ""), [Rollout((1, 2), (False, True), "said", "stop")])
SCRIPT = "import sys\nfrom posttrain.cli import main\nif __name__ == '__main__':\n    sys.exit(main())\n"
"""What pip writes for the command `posttrain`."""


@pytest.mark.parametrize("started", ["script", "module"])
def test_a_worker_of_the_command_line_imports_its_verifier_and_neither_recipes_nor_the_command_line(
    tmp_path: Path, started: str
) -> None:
    rows, script = tmp_path / "rows.jsonl", tmp_path / "posttrain"
    rows.write_text(json.dumps({"completion": "said", "expect": True}) + "\n")
    script.write_text(SCRIPT)
    way = [str(script)] if started == "script" else ["-m", "posttrain"]
    command = [sys.executable, *way, "audit", LOADED, str(rows), "--json", "--workers", "1"]
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    (wrong,) = json.loads(done.stdout)["false_negatives"]
    modules = set(wrong["reason"].split())
    assert {"posttrain.rewards.worker", "pebble", "tests.rewards.graders"} <= modules
    assert not modules & (HEAVY | OURS)


def test_workers_load_their_verifiers_meanwhile_and_the_first_question_waits_for_them(tmp_path: Path) -> None:
    door, here = tmp_path / "door", tmp_path / "here"
    settings = {"door": str(door), "here": str(here)}
    grader = Grader([Reward(verifier="tests.rewards.graders:Waits", settings=settings)], Grading(workers=1))
    grader.begin()
    try:
        # Its verifier is not loaded before this is written, so that `begin` cannot have waited for it.
        door.write_text("")
        (verdicts,) = grader.grade([RESPONSE])
        assert here.exists()
        assert [v.score for v in verdicts] == [1.0]
        assert len(grader.pids()) == 1
    finally:
        grader.close()


def test_a_worker_without_its_verifier_is_said_when_it_is_waited_for_and_at_the_first_question() -> None:
    grader = Grader([Reward(verifier="tests.rewards.graders:Unprepared")], Grading(workers=2))
    grader.begin()
    try:
        for ask in (grader.wait, lambda: grader.grade([RESPONSE]), grader.pids):
            with pytest.raises(GradingError, match=r"could not load its verifiers: .*no prepared place"):
                ask()
    finally:
        grader.close()
    with pytest.raises(GradingError, match="has no workers"):
        grader.grade([RESPONSE])


def test_a_grader_that_is_closed_while_it_starts_leaves_no_process(tmp_path: Path) -> None:
    settings = {"door": str(tmp_path / "door"), "here": str(tmp_path / "here")}
    grader = Grader([Reward(verifier="tests.rewards.graders:Waits", settings=settings)], Grading(workers=1))
    grader.begin()
    started = list(grader._pool._starting)
    grader.close()
    for each in started:
        with pytest.raises(BaseException):  # noqa: B017, PT011
            each.result(30)
    assert not (tmp_path / "here").exists()
