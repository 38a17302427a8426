"""Grading in killable processes: right verdicts for the right rows, whatever else a grader does."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import DataError, GradingError, RecipeError
from posttrain.recipe import Grading, Reward
from posttrain.rewards import Grader, load_verifier, signature_of
from posttrain.types import Prompt, Rollout, Verdict

pytestmark = pytest.mark.clock
ROOT = Path(__file__).resolve().parents[1]
NONE = {"unparsable": 0, "timeout": 0, "error": 0, "unavailable": 0}


def roll(text: str, said: Sequence[int] = (7, 2)) -> Rollout:
    return Rollout((1, *said), (False, *[True] * len(said)), text, "stop")


def prompt(name: str = "p", **columns: Any) -> Prompt:
    return Prompt(name, (1,), f"text of {name}", columns)


def reward(name: str, /, **fields: Any) -> Reward:
    return Reward(verifier=f"tests.graders:{name}", **fields)


def grading(**fields: Any) -> Grading:
    return Grading(**{"timeout": 1.0, "max_failure_rate": 1.0, "workers": 2, "retries": 1} | fields)


def grade_one(rewards: Sequence[Reward], texts: Sequence[str], **columns: Any) -> tuple[Verdict, ...]:
    with Grader(rewards, grading(workers=1)) as grader:
        return grader.grade([(prompt(**columns), [roll(text) for text in texts])])[0]


@pytest.fixture(scope="module")
def naughty() -> Iterator[Grader]:
    with Grader([reward("naughty")], grading()) as grader:
        yield grader


@pytest.mark.parametrize(
    ("deed", "status", "reason"),
    [
        ("raise", "error", "ValueError: bad grader"),
        ("leave", "error", "SystemExit: 1"),
        ("exit", "error", "exit code 3"),
        ("segfault", "error", "the worker died"),
        ("exit quietly", "timeout", "within 1 s"),
        ("hang", "timeout", "within 1 s"),
        ("spin", "timeout", "within 1 s"),
        ("lock", "timeout", "within 1 s"),
        ("memory", "error", "MemoryError"),
        ("nan", "error", "returned nan"),
        ("inf", "error", "returned -inf"),
        ("text", "error", "returned '1.0' where a number"),
        ("nothing", "error", "returned None where a number"),
        ("unreadable", "unparsable", "no gold"),
    ],
)
def test_a_grader_that_misbehaves_is_stopped_and_counted_and_the_others_are_right(
    naughty: Grader, deed: str, status: str, reason: str
) -> None:
    start = time.monotonic()
    (verdicts,) = naughty.grade([(prompt("p7", answer="a"), [roll(t) for t in ("a", deed, "b", "a")])])
    assert time.monotonic() - start < 1.0 + 2.0
    assert [v.score for v in verdicts] == [1.0, None, 0.0, 1.0]
    assert [v.status for v in verdicts] == ["ok", status, "ok", "ok"]
    assert reason in verdicts[1].reason
    if status != "unparsable":
        assert "naughty on prompt 'p7'" in verdicts[1].reason
    assert naughty.failures == NONE | {status: 1}
    assert len(set(naughty.pids())) == 2


def test_many_failures_at_once_leave_every_other_verdict_right_and_the_pool_full(naughty: Grader) -> None:
    deeds = ["a", "exit", "b", "segfault", "raise", "hang", "a"] * 4
    (verdicts,) = naughty.grade([(prompt(answer="a"), [roll(t) for t in deeds])])
    assert [v.score for v in verdicts] == [{"a": 1.0, "b": 0.0}.get(deed) for deed in deeds]
    assert naughty.failures == NONE | {"timeout": 4, "error": 12}
    assert len(set(naughty.pids())) == 2


def test_a_worker_that_is_killed_from_outside_between_calls_is_replaced(naughty: Grader) -> None:
    before = naughty.pids()
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    (verdicts,) = naughty.grade([(prompt(answer="a"), [roll("a")] * 6)])
    assert [v.score for v in verdicts] == [1.0] * 6
    assert set(naughty.pids()).isdisjoint(before)


def test_a_flaky_grader_is_asked_again_as_often_as_the_recipe_says(tmp_path: Path) -> None:
    for retries, scores, failures in ((1, [1.0, 1.0], 0), (0, [None, None], 2)):
        folder = tmp_path / str(retries)
        folder.mkdir()
        with Grader([reward("flaky")], grading(retries=retries)) as grader:
            (verdicts,) = grader.grade([(prompt(folder=str(folder)), [roll("raise"), roll("die")])])
        assert [v.score for v in verdicts] == scores
        assert grader.failures["error"] == failures


def test_a_slow_start_does_not_count_against_the_timeout() -> None:
    with Grader([reward("Threshold", settings={"least": 2})], grading(timeout=0.5)) as grader:
        assert [v.score for v in grader.grade([(prompt(), [roll("a"), roll("ab")])])[0]] == [0.0, 1.0]


@pytest.mark.parametrize("workers", [1, 3])
def test_order_and_columns_stay_with_their_completion_over_200_mixed_items(workers: int) -> None:
    groups = []
    for row in range(50):
        count = 1 + row % 7
        groups.append((prompt(f"p{row}", row=row, other=-row), [roll(f"{row}:{k}") for k in range(count)]))
    with Grader([reward("echo"), reward("everything", weight=0.0)], grading(workers=workers)) as grader:
        verdicts = grader.grade(groups)
    assert sum(map(len, verdicts)) == 197
    assert [[v.score for v in vs] for vs in verdicts] == [
        [row + k / 100 for k in range(len(rollouts))] for row, (_, rollouts) in enumerate(groups)
    ]
    assert all(v.parts["everything"] == 2.0 for vs in verdicts for v in vs)


def test_a_score_is_the_weighted_sum_and_the_parts_are_kept() -> None:
    rewards = [reward("equal", weight=2.0), reward("half", weight=-0.5, name="h"), reward("parts", weight=0.0)]
    one, two = grade_one(rewards, ["a", "b"], answer="a", scale=3.0)
    assert (one.score, two.score) == (2.0 - 0.75, -0.75)
    assert one.parts == {"equal": 1.0, "h": 1.5, "parts": 0.25, "parts.style": 0.5, "parts.tone": None}


def test_a_failed_part_takes_the_score_away_unless_its_weight_is_zero() -> None:
    for weight, score, status in ((1.0, None, "error"), (0.0, 1.0, "ok")):
        (verdict,) = grade_one([reward("equal"), reward("naughty", weight=weight)], ["raise"], answer="raise")
        assert (verdict.score, verdict.status) == (score, status)
        assert verdict.parts == {"equal": 1.0, "naughty": None}


def test_a_trl_function_sees_a_group_and_its_none_is_left_out_of_the_sum() -> None:
    verdicts = grade_one([reward("trl_length"), reward("equal", weight=10.0)], ["abc", "skip"], answer="skip")
    assert [v.score for v in verdicts] == [3.0, 10.0]
    assert [v.parts["trl_length"] for v in verdicts] == [3.0, None]
    only = grade_one([reward("trl_length")], ["abc", "skip"], note="n")
    assert [(v.score, v.status) for v in only] == [(3.0, "ok"), (None, "unparsable")]


def test_a_trl_function_gets_messages_where_the_prompt_is_a_conversation() -> None:
    chat = [{"role": "user", "content": "hello"}]
    for columns in ({}, {"prompt": "hello"}, {"prompt": chat}, {"messages": chat}):
        verdicts = grade_one([reward("trl_answers")], ["a", "b"], answer="b", **columns)
        assert [v.score for v in verdicts] == [0.0, 1.0]


def test_an_async_trl_function_gets_the_ids_that_the_policy_said() -> None:
    with Grader([reward("trl_async")], grading()) as grader:
        (verdicts,) = grader.grade([(prompt(), [roll("x", (3, 4)), roll("y", (5,))])])
    assert [v.score for v in verdicts] == [7.0, 5.0]


def test_a_trl_function_that_returns_too_few_rewards_fails_its_whole_group() -> None:
    verdicts = grade_one([reward("trl_short")], ["a", "b"])
    assert [(v.score, v.status) for v in verdicts] == [(None, "error")] * 2
    assert "returned 1 rewards for 2 completions" in verdicts[0].reason


def test_functions_of_trl_itself_are_accepted_as_they_stand() -> None:
    chat = [{"role": "user", "content": "A third?"}]
    texts = [r"<think>so</think>It is $\boxed{\frac{1}{3}}$", r"It is $\boxed{\frac{1}{2}}$"]
    overlong = Reward(
        verifier="trl.rewards:get_soft_overlong_punishment",
        settings={"max_completion_len": 3, "soft_punish_cache": 2},
        name="overlong",
    )
    rewards = [
        Reward(verifier="trl.rewards:accuracy_reward"),
        Reward(verifier="trl.rewards:think_format_reward", weight=0.5),
        overlong,
    ]
    assert signature_of(rewards[0]).required == ("solution",)
    with Grader(rewards, grading(timeout=30)) as grader:
        (verdicts,) = grader.grade([(prompt(prompt=chat, solution=r"$\frac{1}{3}$"), [roll(t) for t in texts])])
    assert [v.parts for v in verdicts] == [
        {"accuracy_reward": 1.0, "think_format_reward": 1.0, "overlong": -0.5},
        {"accuracy_reward": 0.0, "think_format_reward": 0.0, "overlong": -0.5},
    ]
    assert [v.score for v in verdicts] == [1.0, -0.5]


def test_a_call_stops_when_too_many_verdicts_fail_and_names_three_reasons() -> None:
    with Grader([reward("naughty")], grading(max_failure_rate=0.5)) as grader:
        bad = ["raise", "nan", "inf", "text"]
        groups = [(prompt(f"p{i}", answer="a"), [roll("a"), roll(deed)]) for i, deed in enumerate(bad)]
        assert [v[0].score for v in grader.grade(groups)] == [1.0] * 4
        with pytest.raises(GradingError, match="5 of 9 verdicts failed") as caught:
            grader.grade([*groups, (prompt("p9", answer="a"), [roll("nothing")])])
        assert grader.failures["error"] == 5
        assert str(caught.value).count("\n  - ") == 3
        assert "naughty on prompt 'p0': ValueError: bad grader" in str(caught.value)


def test_an_error_is_said_with_its_place() -> None:
    with Grader([reward("naughty")], grading()) as grader:
        ((failed,),) = grader.grade([(prompt("p0", answer="a"), [roll("raise")])])
    assert re.search(r"ValueError: bad grader \(graders\.py:\d+\)", failed.reason)


def test_a_missing_column_is_named_before_anything_is_graded(tmp_path: Path) -> None:
    groups = [(prompt("p0", folder=str(tmp_path)), [roll("x")]), (prompt("p1", other=1), [roll("x")])]
    with Grader([reward("flaky")], grading()) as grader, pytest.raises(DataError) as caught:
        grader.grade(groups)
    for word in ("rewards[0]", "flaky", "'folder'", "'p1'", "its columns: other"):
        assert word in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_column_that_cannot_be_sent_to_a_process_is_named() -> None:
    with Grader([reward("equal")], grading()) as grader, pytest.raises(DataError, match="equal on prompt 'p'"):
        grader.grade([(prompt(answer=lambda: 1), [roll("x")])])


def test_no_groups_and_no_rollouts_are_graded_to_nothing(naughty: Grader) -> None:
    assert naughty.grade([]) == []
    assert naughty.grade([(prompt(answer="a"), [])]) == [()]


def test_signatures_tell_what_a_verifier_needs() -> None:
    half, trl = signature_of(reward("half", name="h")), signature_of(reward("trl_answers"))
    assert (half.name, half.kind, half.required, half.optional) == ("h", "item", (), ("scale",))
    assert (trl.kind, trl.required, trl.takes_all) == ("group", ("answer",), False)
    assert signature_of(reward("everything")).takes_all


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"verifier": "tests.graders"}, ["rewards[2].verifier", "not written package.module:Name"]),
        ({"verifier": "tests.graders:eqal"}, ["'eqal' in 'tests.graders' has no such name", "'equal'"]),
        ({"verifier": "tests.graders:NUMBER"}, ["is a int, which cannot be called"]),
        ({"verifier": "tests.grader:equal"}, ["no module 'tests.grader'", "'graders'"]),
        ({"verifier": "no_such_package.x:Y"}, ["no module 'no_such_package'", "is it installed?"]),
        ({"verifier": "tests.graders:Threshold", "settings": {"leest": 1}}, ["settings.leest", "value 1", "'least'"]),
        ({"verifier": "tests.graders:Threshold"}, ["rewards[2].settings", "'least'"]),
        ({"verifier": "tests.graders:Threshold", "settings": {"least": 200}}, ["least is 200, above most"]),
        ({"verifier": "tests.graders:parts", "settings": {"weight": 1}}, ["settings.weight", "there is: completion"]),
    ],
)
def test_a_verifier_that_cannot_be_loaded_is_explained(fields: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(RecipeError) as caught:
        load_verifier(Reward(**fields), "rewards[2]")
    for word in words:
        assert word in str(caught.value)


def test_two_graders_of_one_name_are_refused() -> None:
    with pytest.raises(RecipeError, match="2 graders are called 'equal'"):
        Grader([reward("equal"), reward("equal")], grading())


def test_leaving_the_grader_ends_its_workers() -> None:
    with Grader([reward("equal")], grading()) as grader:
        pids = grader.pids()
    assert [alive(pid) for pid in pids] == [False, False]
    with pytest.raises(GradingError, match="inside `with"):
        grader.grade([])


@pytest.mark.parametrize("deed", ["a", "spin"])
def test_workers_do_not_outlive_a_parent_that_is_killed(deed: str) -> None:
    program = f"""
from tests.test_rewards import Grader, grading, prompt, reward, roll
if __name__ == "__main__":
    with Grader([reward("naughty")], grading(timeout=60)) as grader:
        print(*grader.pids(), flush=True)
        grader.grade([(prompt(answer="a"), [roll({deed!r})])])
        input()
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    assert parent.stdin is not None
    pids = [int(word) for word in parent.stdout.readline().split()]
    assert len(pids) == 2
    time.sleep(0.3)
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 5
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [alive(pid) for pid in pids] == [False, False]


def alive(pid: int) -> bool:
    """Running, and not only waiting for its exit code to be read."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_grader_that_compares_gives_win_rates_and_says_what_is_no_probability() -> None:
    rollouts = [Rollout((1, 2), (False, True), text, "stop") for text in ("a", "bbb", "cc")]
    prompt = Prompt("p", (1,), "")
    with Grader([Reward(verifier="tests.graders:longer")], Grading(workers=1)) as grader:
        (verdicts,) = grader.grade([(prompt, rollouts)])
        assert [v.score for v in verdicts] == [0.0, 1.0, 0.5]
        (alone,) = grader.grade([(prompt, rollouts[:1])])
        assert [(v.score, v.status) for v in alone] == [(None, "unparsable")]
    with Grader([Reward(verifier="tests.graders:unsure")], Grading(workers=1, max_failure_rate=1.0)) as grader:
        (verdicts,) = grader.grade([(prompt, rollouts)])
        assert all(v.status == "error" and "between 0 and 1" in v.reason for v in verdicts)


def test_step_rewards_reach_the_verdict_by_weight_and_must_lie_on_tokens_of_the_response() -> None:
    rollouts = [Rollout((1, 2, 3), (False, True, True), "x", "stop"), Rollout((1, 2), (False, True), "y", "stop")]
    rewards = [Reward(verifier="tests.graders:second_token", weight=0.5)]
    with Grader(rewards, Grading(workers=1, max_failure_rate=1.0)) as grader:
        (verdicts,) = grader.grade([(Prompt("p", (1,), ""), rollouts)])
    assert (verdicts[0].score, verdicts[0].steps) == (0.5, ((1, 0.125),))
    assert (verdicts[1].score, verdicts[1].status) == (None, "error")
    assert "token 1 of a response of 1 tokens" in verdicts[1].reason
