"""The command lines `audit`, `evaluate --rescore` and `compare`: what they print, and what they end with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from posttrain.cli import app
from posttrain.errors import PosttrainError
from tests.rewards.sets import row, shipping_package, written
from tests.runs import run

ROWS = [row("a", True, answer="a"), row("b", False, answer="a"), row("a", False, answer="a", kind="odd")]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return written(tmp_path / "rows.jsonl", ROWS)


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["audit", *map(str, arguments)])


def refused(*arguments: str | Path) -> str:
    result = invoke(*arguments)
    assert isinstance(result.exception, PosttrainError), result.output
    return str(result.exception)


def test_audit_as_a_user_starts_it_prints_json_and_ends_with_1_above_a_maximum(file: Path) -> None:
    command = ("audit", "tests.graders:equal", file, "--json", "--workers", "1")
    found = json.loads(run(*command).stdout)
    assert (found["rows"], found["timeouts"], found["false_negatives"]) == (3, 0, [])
    assert [one["line"] for one in found["false_positives"]] == [3]
    assert found["seconds"] > 0
    done = run(*command, "--max-false-positives", "0.49", check=False)
    assert done.returncode == 1
    assert "false positives: 1 of 2" in done.stderr
    assert [one["line"] for one in json.loads(done.stdout)["false_positives"]] == [3]


def test_a_rate_at_its_maximum_is_allowed_and_one_of_nothing_is_not_below_it(file: Path, tmp_path: Path) -> None:
    equal = ("tests.graders:equal", file)
    assert invoke(*equal, "--max-false-positives", "0.5", "--max-false-negatives", "0").exit_code == 0
    assert invoke(*equal, "--max-false-positives", "0.4").exit_code == 1
    right = written(tmp_path / "right.jsonl", ROWS[:1])
    assert invoke("tests.graders:equal", right).exit_code == 0
    assert invoke("tests.graders:equal", right, "--max-false-positives", "0.1").exit_code == 1


def test_the_table_shows_the_matrix_rates_kinds_and_every_wrong_case(file: Path) -> None:
    output = invoke("tests.graders:equal", file).output
    for text in ("right", "wrong", "1 of 2 (50.0 % [9.5 %, 90.5 %])", "0 of 1", "accepted, but wrong", "odd", "p99"):
        assert text in output, text
    assert "refused, but right" not in output


def test_settings_and_threshold_reach_the_verifier(tmp_path: Path) -> None:
    file = written(tmp_path / "rows.jsonl", [row("abc", True), row("abcdef", False)])
    for words in (
        ("--settings", "least=2", "--settings", "most=4"),
        ("--settings", "least=2", "most=4"),
        ("least=2", "most=4"),
    ):
        found = json.loads(invoke("tests.graders:Threshold", file, *words, "--json").output)
        assert found["settings"] == {"least": 2, "most": 4}
        assert (found["false_positives"], found["false_negatives"]) == ([], [])
    found = json.loads(invoke("tests.graders:Threshold", file, "least=9", "--threshold", "0", "--json").output)
    assert [one["completion"] for one in found["false_positives"]] == ["abcdef"]
    assert "settings.leest" in refused("tests.graders:Threshold", file, "leest=2")


def test_shipped_sets_are_named_or_found_by_their_verifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    package = shipping_package(tmp_path, "ships_by_command")
    for words in (["short_ships_by_command"], ["ships_by_command.lengths:Short"]):
        found = json.loads(invoke(*words, "--json").output)
        assert (found["rows"], found["settings"], len(found["false_positives"])) == (4, {"most": 2}, 1)
    found = json.loads(invoke("short_ships_by_command", "most=0", "--json").output)
    assert (found["settings"], len(found["false_negatives"])) == ({"most": 0}, 2)
    own = written(tmp_path / "own.jsonl", [row("abc", False)])
    assert json.loads(invoke("short_ships_by_command", own, "--json").output)["rows"] == 1
    assert "no set called 'shorts'" in refused("shorts")
    assert "short_ships_by_command" in refused("shorts")
    assert "no set ships for tests.graders:equal" in refused("tests.graders:equal")
    second = package / "audits" / "second.json"
    second.write_text(json.dumps({"verifier": "ships_by_command.lengths:Short", "settings": {"most": 9}}))
    written(second.with_suffix(".jsonl"), [row("abc", True)])
    message = refused("ships_by_command.lengths:Short")
    assert "several sets" in message
    assert "second (ships_by_command.lengths:Short)" in message
    assert json.loads(invoke("ships_by_command.lengths:Short", "most=9", "--json").output)["rows"] == 1


def test_arguments_that_make_no_sense_are_explained(file: Path) -> None:
    assert "one file of rows at a time" in refused("tests.graders:equal", file, file)
    assert "cannot be read" in refused("tests.graders:equal", file.parent / "none.jsonl")
    assert "--timeout: 0 is not above 0" in refused("tests.graders:equal", file, "--timeout", "0")
    assert invoke("tests.graders:equal", file, "--max-false-positives", "1.5").exit_code == 2
    for words, text in (
        (["evaluate"], "nothing to evaluate"),
        (["evaluate", "--rescore", str(file), "recipe.yaml"], "leave 'recipe.yaml' out"),
    ):
        result = CliRunner().invoke(app, words)
        assert isinstance(result.exception, PosttrainError)
        assert text in str(result.exception)
