"""What is graded while others are drawn gets the verdicts that all together get, and what must wait waits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import DataError, GradingError
from posttrain.recipe import Grading, Reward
from posttrain.rewards import Grader, signature_of
from posttrain.rewards.jobs import Groups
from posttrain.types import Prompt, Rollout, Verdict

TEXTS = (
    ("a", "raise", "b", "a"),
    ("exit", "a", "a", "unreadable"),
    ("nan", "b", "segfault", "ab"),
    ("a", "a", "b", "c"),
)
"""What is said in each of four groups: repeated, right, wrong, and what fails."""


def roll(text: str) -> Rollout:
    return Rollout((1, 7, 2), (False, True, True), text, "stop")


def grading(**fields: Any) -> Grading:
    return Grading(**{"timeout": 20.0, "max_failure_rate": 1.0, "workers": 2, "retries": 1, "cache": False} | fields)


def said(**columns: Any) -> Groups:
    names = ("p0", "p1", "p2", "p0")
    return [
        (Prompt(name, (1,), f"text of {name}", {"answer": "a", **columns}), [roll(text) for text in texts])
        for name, texts in zip(names, TEXTS, strict=True)
    ]


def early(grader: Grader, groups: Groups, order: Sequence[int]) -> list[tuple[Verdict, ...]]:
    """The verdicts where groups come in this order, and the others only in the end."""
    with grader.early([prompt for prompt, _ in groups]) as found:
        assert found is not None
        for number in order:
            found.add(number, groups[number][1])
        return found.verdicts(groups)


def counts(grader: Grader) -> tuple[dict[str, int], int, int]:
    return grader.failures, grader.asked, grader.cached


def plain(verdicts: list[tuple[Verdict, ...]]) -> list[tuple[Verdict, ...]]:
    """Without the exit code of a worker that died, which is known only where it was seen before its pipe broke."""
    return [tuple(replace(v, reason=v.reason.partition(" with exit code")[0]) for v in each) for each in verdicts]


MIXED = [
    Reward(verifier="tests.graders:naughty"),
    Reward(verifier="tests.graders:trl_length", weight=0.5),
    Reward(verifier="tests.graders:longer", weight=2.0),
    Reward(verifier="tests.graders:parts"),
]


@pytest.fixture(scope="module")
def together() -> tuple[list[tuple[Verdict, ...]], tuple[dict[str, int], int, int]]:
    """Verdicts of items, groups, pairs and parts, and what was counted, where all is graded at once."""
    with Grader(MIXED, grading(early=False)) as grader:
        return plain(grader.grade(said())), counts(grader)


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 1, 0, 2), (2,), ()])
def test_verdicts_and_what_is_counted_are_those_of_all_together(together: Any, order: tuple[int, ...]) -> None:
    with Grader(MIXED, grading()) as grader:
        assert (plain(early(grader, said(), order)), counts(grader)) == together
        # Nothing is left over for the next ones.
        assert (plain(grader.grade(said())), counts(grader)) == together
    statuses = {verdict.status for verdicts in together[0] for verdict in verdicts}
    assert statuses == {"ok", "error", "unparsable"}


def test_each_question_is_asked_once_and_what_is_kept_is_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs, found = [], []
    for number, order in enumerate((None, (3, 0, 1))):
        monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / str(number)))
        log = tmp_path / f"log-{number}"
        rewards = [Reward(verifier="tests.rewards.graders:Counted", settings={"log": str(log)})]
        with Grader(rewards, grading(cache=True)) as grader:
            for _ in range(2):
                verdicts = grader.grade(said()) if order is None else early(grader, said(), order)
                found.append((verdicts, counts(grader)))
        logs.append(sorted(log.read_text().splitlines()))
    assert logs[0] == logs[1]
    assert found[:2] == found[2:]
    assert found[1][1][2] > 0


@pytest.mark.parametrize("way", ["hangs", "gives up"])
def test_what_a_limit_of_time_decided_is_asked_again_once_all_is_drawn(tmp_path: Path, way: str) -> None:
    busy = tmp_path / "busy"
    busy.touch()
    rewards = [Reward(verifier="tests.rewards.graders:Hurried", settings={"busy": str(busy), "way": way})]
    prompts, groups = [Prompt("p", (1,), "")], [(Prompt("p", (1,), ""), [roll("x")])]
    with Grader(rewards, grading(timeout=0.5, workers=1)) as grader, grader.early(prompts) as found:
        assert found is not None
        found.add(0, [roll("x")])
        (begun,) = found._begun.values()
        assert begun.result(30)[0].score == (None if way == "hangs" else 0.0)
        busy.unlink()
        assert found.verdicts(groups) == [(Verdict(1.0, parts={"Hurried": 1.0}),)]
        assert counts(grader) == (dict.fromkeys(grader.failures, 0), 1, 0)


def test_a_verifier_that_holds_the_cores_waits_until_all_is_drawn(tmp_path: Path) -> None:
    rewards = [
        Reward(verifier="tests.rewards.graders:Noted", name=name, settings={"folder": str(tmp_path / name), **more})
        for name, more in (("beside", {}), ("after", {"alone": True}))
    ]
    assert [signature_of(reward).alone for reward in rewards] == [False, True]
    for reward in rewards:
        Path(reward.settings["folder"]).mkdir()
    prompts = [Prompt("p", (1,), ""), Prompt("q", (1,), "")]
    with Grader(rewards, grading(workers=1)) as grader, grader.early(prompts) as found:
        assert found is not None
        found.add(1, [roll("one")])
        for begun in found._begun.values():
            begun.result(30)
        assert [len(list((tmp_path / name).iterdir())) for name in ("beside", "after")] == [1, 0]
        verdicts = found.verdicts([(prompts[0], [roll("other")]), (prompts[1], [roll("one")])])
        assert [v.score for each in verdicts for v in each] == [10.0, 6.0]
        assert [len(list((tmp_path / name).iterdir())) for name in ("beside", "after")] == [2, 2]


def test_shipped_reward_models_hold_the_cores() -> None:
    import posttrain_reward_models as package

    for name in (
        "classifier:Classifier",
        "gap:Gap",
        "process:Process",
        "implicit:Implicit",
        "yes_no:YesNo",
        "prob:Prob",
    ):
        module, _, found = name.partition(":")
        loaded = __import__(f"{package.__name__}.{module}", fromlist=[found])
        assert getattr(loaded, found).alone is True, name


def test_what_is_wrong_is_raised_as_always(tmp_path: Path) -> None:
    with Grader(MIXED, grading(workers=1)) as grader:
        without = [(Prompt("p", (1,), "", {}), [roll("a")])]
        with pytest.raises(DataError, match="needs the column 'answer'"), grader.early([p for p, _ in without]):
            raise AssertionError("nothing is drawn for prompts that cannot be graded")
        unsendable = said(thing=lambda: None)
        with pytest.raises(DataError, match="cannot be sent to a process"):
            early(grader, unsendable, (0, 1))
    failing = [Reward(verifier="tests.graders:always_raises")]
    with Grader(failing, grading(max_failure_rate=0.5)) as grader, pytest.raises(GradingError, match="16 of 16"):
        early(grader, said(), (0, 2))
    with Grader(MIXED, grading(early=False, workers=1)) as grader, grader.early([]) as found:
        assert found is None
    with pytest.raises(GradingError, match="has no workers"), grader.early([]):
        raise AssertionError("nothing is drawn that nobody could grade")


def test_what_nobody_waits_for_is_asked_no_more(tmp_path: Path) -> None:
    slow = Reward(verifier="tests.graders:slow")
    noted = Reward(verifier="tests.rewards.graders:Noted", settings={"folder": str(tmp_path)})
    prompts = [Prompt("p", (1,), "")]
    with Grader([slow, noted], grading(workers=1)) as grader:
        with grader.early(prompts) as found:
            assert found is not None
            found.add(0, [roll(f"0.{number}") for number in (5, 6, 7, 8)])
        grader.grade([(prompts[0], [roll("0.1")])])
    assert [file.name for file in tmp_path.iterdir()] == ["0.1"]
