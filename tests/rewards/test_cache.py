"""Kept verdicts: the same ones with and without, never a failure, and never another content's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.recipe import Grading, Reward
from posttrain.rewards import Grader, cache, signature_of
from posttrain.rewards.cache import content_key, from_text, identity_of, to_text, written
from posttrain.rewards.worker import Part
from posttrain.types import Prompt, Rollout, Verdict

TEXTS = ("abc", "", "raise", "abcde", "no gold", "unavailable", "abc")
UNGRADED = ("raise", "no gold", "unavailable")


def reward(name: str, /, **fields: Any) -> Reward:
    return Reward(verifier=f"tests.rewards.graders:{name}", **fields)


def roll(text: str) -> Rollout:
    return Rollout((1, 7), (False, True), text, "stop")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where everything is kept in a test, and where a verifier counts."""
    monkeypatch.setenv("POSTTRAIN_CACHE", str(tmp_path / "cache"))
    return tmp_path


def graded(
    rewards: Sequence[Reward], texts: Sequence[str], *, keep: bool = True, timeout: float = 20.0, **columns: Any
) -> tuple[tuple[Verdict, ...], float]:
    """Verdicts on one group by a grader of its own, and the share that was kept from before."""
    with Grader(rewards, settings(timeout=timeout, cache=keep)) as grader:
        return verdicts_of(grader, texts, columns)


def settings(**fields: Any) -> Grading:
    return Grading(**{"workers": 1, "retries": 0, "max_failure_rate": 1.0, "timeout": 20.0} | fields)


def verdicts_of(grader: Grader, texts: Sequence[str], columns: Mapping[str, Any]) -> tuple[tuple[Verdict, ...], float]:
    (verdicts,) = grader.grade([(Prompt("p", (1,), "", columns), [roll(text) for text in texts])])
    return verdicts, grader.cached / grader.asked


def asked(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def test_verdicts_are_the_same_with_and_without_and_failures_are_asked_again(folder: Path) -> None:
    log = folder / "log"
    rewards = [reward("Counted", settings={"log": str(log)})]
    plain, share = graded(rewards, TEXTS, keep=False, answer="x")
    assert (share, (folder / "cache").exists()) == (0.0, False)
    assert [v.status for v in plain] == ["ok", "unparsable", "error", "ok", "unparsable", "unavailable", "ok"]
    first, share = graded(rewards, TEXTS, answer="x")
    assert (first, share) == (plain, 0.0)
    log.unlink()
    second, share = graded(rewards, TEXTS, answer="x")
    assert second == plain
    assert share == 4 / 7
    assert sorted(asked(log)) == sorted(UNGRADED)
    # Another run, whose reward weighs and is called otherwise, asks for the same verdicts.
    others, share = graded([reward("Counted", settings={"log": str(log)}, weight=2.0, name="n")], ["abc"], answer="x")
    assert (others[0].score, others[0].parts["n"], share) == (0.6, 0.3, 1.0)


def test_a_verdict_that_timed_out_is_asked_for_again(folder: Path) -> None:
    log = folder / "log"
    rewards = [reward("Counted", settings={"log": str(log)})]
    for _ in range(2):
        (verdict,), share = graded(rewards, ["hang"], timeout=1.0)
        assert (verdict.status, share) == ("timeout", 0.0)
    assert asked(log) == ["hang", "hang"]


def test_every_part_of_a_verdict_is_kept(folder: Path) -> None:
    rewards = [reward("Counted", settings={"log": str(folder / "log")})]
    for share in (0.0, 1.0):
        (verdict,), found = graded(rewards, ["abcdé\ud800"], answer="x")
        assert found == share
        assert verdict.answer == "abcdé\ud800"
        assert verdict.steps == ((0, 0.25),)
        assert verdict.parts == {"Counted": 0.6, "Counted.length": 0.6, "Counted.none": None}
        assert verdict.reason == "Counted: said 'abcdé\\ud800'"


def test_what_a_verifier_sees_tells_verdicts_apart_and_what_it_does_not_see_does_not(folder: Path) -> None:
    log = folder / "log"
    with Grader([reward("Counted", settings={"log": str(log)})], settings()) as grader:
        for columns, share in (
            ({"answer": "x", "unseen": 1}, 0.0),
            ({"answer": "x", "unseen": 2}, 1.0),
            ({"answer": "y"}, 0.0),
            ({"answer": "x", "bonus": 0.5}, 0.0),
            ({"answer": "x", "bonus": 1}, 0.0),
            ({"answer": "x", "bonus": 1.0}, 0.0),
            ({"bonus": 0.5, "answer": "x"}, 1.0),
            ({}, 0.0),
        ):
            (verdict,), found = verdicts_of(grader, ["abc"], columns)
            assert (verdict.score, found) == (pytest.approx(0.3 + columns.get("bonus", 0.0)), share), columns
    with Grader([reward("Whole", settings={"log": str(log)})], settings()) as grader:
        unlike: tuple[Any, ...] = (1, 2, 1, frozenset({1}), frozenset({1}))
        found = [verdicts_of(grader, ["abc"], {"unseen": value})[1] for value in unlike]
    assert found == [0.0, 0.0, 1.0, 0.0, 0.0]


def test_verifiers_of_groups_or_pairs_or_without_a_version_keep_nothing(folder: Path) -> None:
    log = folder / "log"
    for name in ("Together", "Against"):
        for _ in range(2):
            assert graded([reward(name, settings={"log": str(log)})], ["a", "bb"])[1] == 0.0
    assert asked(log) == ["group"] * 2 + ["pair"] * 4
    assert graded([Reward(verifier="tests.graders:equal")], ["a"], answer="a")[1] == 0.0
    assert not (folder / "cache").exists()


def test_an_identity_follows_everything_a_verdict_may_depend_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = reward("Counted", settings={"log": "l", "least": 1})
    signature = signature_of(one)
    same = identity_of(reward("Counted", settings={"least": 1, "log": "l"}, weight=3.0, name="n"), signature)
    assert same == identity_of(one, signature)
    others = {
        identity_of(one, signature),
        identity_of(one, replace(signature, version="2")),
        identity_of(reward("Counted", settings={"log": "l", "least": 2}), signature),
        identity_of(reward("Named", settings={"log": "l", "least": 1}), signature),
    }
    assert len(others) == 4
    assert identity_of(one, replace(signature, version=None)) is None
    assert identity_of(reward("Counted", settings={"log": object()}), signature) is None
    package = tmp_path / "edited_verifiers"
    package.mkdir()
    (package / "__init__.py").touch()
    monkeypatch.syspath_prepend(str(tmp_path))
    own = Reward(verifier="edited_verifiers.x:Y")
    found = []
    for text in ("a = 1", "a = 2", "a = 1"):
        (package / "x.py").write_text(text)
        cache._sources.cache_clear()
        found.append(identity_of(own, signature))
    assert found[0] == found[2] != found[1]
    (tmp_path / "sympy-99.0.dist-info").mkdir()
    cache._installed.cache_clear()
    assert identity_of(own, signature) not in found
    assert identity_of(Reward(verifier="no_such_package.x:Y"), signature) not in (None, *found)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=2) | st.integers(0, 2), inner, max_size=3)
    ),
    max_leaves=6,
)
ALIKE = (
    1,
    1.0,
    True,
    "1",
    None,
    "null",
    0.0,
    -0.0,
    [],
    (),
    {},
    "",
    [1, 2],
    (1, 2),
    {1: 0},
    {"1": 0},
    ["a,b"],
    ["a", "b"],
)


@given(PLAIN, PLAIN)
def test_two_things_are_written_alike_exactly_where_python_would_print_them_alike(one: Any, two: Any) -> None:
    assert (written(one) == written(two)) == (repr(one) == repr(two))


def test_things_that_look_or_compare_alike_have_keys_of_their_own() -> None:
    keys = [content_key(b"v", {"column": value})("text") for value in ALIKE]
    assert len(set(keys)) == len(ALIKE)
    assert None not in keys
    apart = [
        content_key(b"v", {"a": "b"})("c"),
        content_key(b"v", {"a": "bc"})(""),
        content_key(b"v", {})("abc"),
        content_key(b"w", {})("abc"),
        content_key(b"v", {"a": "b", "c": "d"})(""),
        content_key(b"v", {"a": 'b","c":"d'})(""),
    ]
    assert len(set(apart)) == len(apart)
    looped: list[Any] = []
    looped.append(looped)
    for value in (object(), {1, 2}, b"bytes", 1j, looped, Path("x")):
        assert content_key(b"v", {"column": value})("text") is None
    assert content_key(None, {})("text") is None


def test_what_json_would_change_is_not_kept() -> None:
    part = Part(0.5, "unparsable", "why \ud800\u2028", {"a": None, "b": 1.0}, ((1, 0.5),), "3", 0.25, seconds=3.0)
    text = to_text(part)
    assert text is not None
    assert from_text(text) == part
    assert from_text(text).seconds is None
    for other in (
        Part(None, "error", "why"),
        Part(None, "timeout"),
        Part(None, "skipped"),
        Part(0.0, reason="late", lasting=False),
        Part(0.5, parts={"a": math.nan}),
        Part(0.5, parts={1: 0.5}),  # type: ignore[dict-item]
        Part(0.5, answer=b"3"),  # type: ignore[arg-type]
    ):
        assert to_text(other) is None
