"""Sets that ship with a verifier: found by its name, described rightly, and read at the start of a run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from posttrain.errors import DataError
from posttrain.recipe import Grading, Reward
from posttrain.rewards.audit import audit_lines, auditing
from posttrain.rewards.shipped import read_set, set_names, sets_called, sets_of, shipped_audit
from tests.rewards.sets import calls, shipping_package, written


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Path:
    """A package of its own name for each test: modules stay imported."""
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.syspath_prepend(str(tmp_path))
    name = "ships_" + str(abs(hash(request.node.name)))
    return shipping_package(tmp_path, name)


def short(package: Path, most: int = 2) -> Reward:
    return Reward(verifier=f"{package.name}.lengths:Short", settings={"most": most})


def test_a_set_is_found_by_its_verifier_and_by_its_name_without_an_import(package: Path) -> None:
    (found,) = sets_of(f"{package.name}.lengths:Short")
    assert (found.name, found.threshold, found.settings) == (f"short_{package.name}", 1.0, {"most": 2})
    assert found.rows == package / "audits" / f"short_{package.name}.jsonl"
    assert sets_called(found.name) == [found]
    assert found.name in set_names()
    assert sets_of(f"{package.name}.lengths:plain") == sets_of("no_such_package.x:Y") == sets_of("json:loads") == []
    assert sets_called("no such set") == []
    assert package.name not in sys.modules


def test_the_set_of_a_rewards_own_settings_comes_before_others(package: Path) -> None:
    described = package / "audits" / "longer.json"
    described.write_text(json.dumps({"verifier": f"{package.name}.lengths:Short", "settings": {"most": 9}}))
    written(described.with_suffix(".jsonl"), [])
    found = [shipped_audit(short(package, most)) for most in (9, 2, 5)]
    assert [one and one.name for one in found] == ["longer", f"short_{package.name}", "longer"]
    assert shipped_audit(Reward(verifier="tests.graders:equal")) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", ["not a description of an audit set"]),
        ("[]", ["verifier: missing"]),
        ('{"settings": {}}', ["verifier: missing"]),
        ('{"verifier": "a.b:C", "setings": {}}', ["setings: unknown key"]),
        ('{"verifier": "a.b:C", "settings": [1]}', ["settings: [1] is no mapping"]),
        ('{"verifier": "a.b:C", "threshold": true}', ["threshold: True is no number"]),
        ('{"verifier": "a.b:C"}', ["no file 'x.jsonl' beside it"]),
    ],
)
def test_a_set_that_is_described_wrongly_is_explained(tmp_path: Path, text: str, words: list[str]) -> None:
    file = tmp_path / "x.json"
    file.write_text(text)
    with pytest.raises(DataError) as caught:
        read_set(file)
    for word in (str(file), *words):
        assert word in str(caught.value)


def test_a_run_says_at_its_start_how_often_its_verifiers_err(package: Path) -> None:
    rewards = [short(package), short(package, 1), Reward(verifier="tests.graders:equal", name="mine")]
    name = f"rewards[0] {package.name}.lengths:Short: audited on 4 rows (short_{package.name}): "
    rates = "false positives 1 of 2 (50.0 % [9.5 %, 90.5 %]), false negatives 0 of 2 (0.0 % [0.0 %, 65.8 %])"
    said = list(audit_lines(rewards, Grading(workers=1), seconds=120))
    assert said == [
        name + rates,
        name.replace("rewards[0]", "rewards[1]") + rates + "; with settings {'most': 2}, not the recipe's",
        "rewards[2] mine: no audit set",
    ]
    assert calls(package) == 4
    # Kept verdicts need no process, so no time is a limit.
    assert list(audit_lines(rewards, Grading(), seconds=0)) == said
    assert calls(package) == 4
    list(audit_lines(rewards[:1], Grading(workers=1, cache=False), seconds=120))
    assert calls(package) == 8


def test_an_audit_beside_something_else_says_the_same(package: Path) -> None:
    rewards = [short(package), Reward(verifier="tests.graders:equal", name="mine")]
    with auditing(rewards, Grading(workers=1)) as lines:
        said = lines()
    assert said == list(audit_lines(rewards, Grading(workers=1), seconds=120))
    assert "audited on 4 rows" in said[0]
    assert calls(package) == 4


def test_an_audit_that_nobody_waits_for_asks_no_more(package: Path) -> None:
    rows = package / "audits" / f"short_{package.name}.jsonl"
    rows.write_text(rows.read_text() * 5000)
    with pytest.raises(ZeroDivisionError), auditing([short(package)], Grading(workers=1, cache=False)):
        raise ZeroDivisionError
    assert calls(package) < 20000


def test_what_cannot_be_audited_stops_no_run(package: Path) -> None:
    (package / "audits" / f"short_{package.name}.jsonl").write_text("{}\n")
    (line,) = audit_lines([short(package)], Grading())
    assert "not audited: " in line
    assert ".jsonl:1: completion: missing" in line
    (line,) = audit_lines([Reward(verifier=f"{package.name}.none:Short")], Grading())
    assert line.endswith("no audit set")


def test_an_audit_that_has_no_time_is_said_and_ends_at_once(package: Path) -> None:
    (line,) = audit_lines([short(package)], Grading(workers=1), seconds=0)
    assert "audited on 0 rows" in line or "did not start within" in line
    assert calls(package) == 0
