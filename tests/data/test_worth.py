"""What answers are worth: the data's own numbers, whatever their columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from posttrain.data.chat import Chat
from posttrain.types import Group
from tests.data import ASK, SYSTEM, USER, assistant, learnt, read, user

PAIR = {"prompt": "a", "chosen": "b", "rejected": "c"}


def scores(group: Group) -> list[float | None]:
    return [verdict.score for verdict in group.verdicts]


@pytest.mark.parametrize(
    ("numbers", "worth"),
    [
        ({}, [1, 0]),
        ({"margin": 2.5}, [1, 0]),
        ({"chosen_score": 9, "rejected_score": 3.5}, [9, 3.5]),
        ({"score_chosen": -1, "score_rejected": -4}, [-1, -4]),
        ({"label": "better"}, [1, 0]),
        ({"margin": "large"}, [1, 0]),
    ],
)
def test_a_pair_is_worth_its_scores_whatever_its_margin(
    tmp_path: Path, chat: Chat, numbers: dict[str, Any], worth: list[float]
) -> None:
    (group,) = read(tmp_path, [PAIR | numbers], chat)
    assert scores(group) == worth
    assert [learnt(r) for r in group.rollouts] == [[21, 1], [22, 1]]


@pytest.mark.parametrize("margin", [2.5, 0, -3])
def test_a_margin_of_any_sign_stands_beside_the_preference(tmp_path: Path, chat: Chat, margin: float) -> None:
    # What else is wanted of the responses may prefer the other one (2310.03708).
    rows = [PAIR | {"margin": margin}, PAIR | {"margin": 1.5, "label": "tie"}]
    pair, tie = read(tmp_path, rows, chat, margins=True, ties=True)
    assert [(v.score, v.offset) for v in pair.verdicts] == [(1, margin), (0, 0)]
    assert [(v.score, v.offset) for v in tie.verdicts] == [(0.5, None), (0.5, None)]
    (graded,) = read(tmp_path, [PAIR | {"chosen_score": 3, "rejected_score": 1}], chat, margins=True)
    assert [(v.score, v.offset) for v in graded.verdicts] == [(3, None), (1, None)]


@pytest.mark.parametrize(
    ("numbers", "worth"),
    [
        ({"label": "tie"}, 0.5),
        ({"label": "Tie", "margin": None}, 0.5),
        ({"chosen_score": 4, "rejected_score": 4}, 4),
        ({"chosen_score": 5, "rejected_score": 4, "label": "tie"}, 4.5),
    ],
)
def test_the_answers_of_a_tie_are_worth_the_same(
    tmp_path: Path, chat: Chat, numbers: dict[str, Any], worth: float
) -> None:
    # The first row is no tie, so that the columns hold a number somewhere.
    rows = [PAIR | {name: 2 - i for i, name in enumerate(numbers) if name != "label"}, PAIR | numbers]
    assert [scores(group) for group in read(tmp_path, rows, chat, ties=True)][1] == [worth, worth]


def test_a_list_is_a_group_of_all_its_completions_in_their_order(tmp_path: Path, chat: Chat) -> None:
    rows = [
        {"prompt": "a", "completions": ["b", "c", "d"], "scores": [0.5, 2, 0.5]},
        {"prompt": [user("a")], "completions": [[assistant("b")], [assistant("c")]], "scores": [1, 3]},
    ]
    graded, talked = read(tmp_path, rows, chat, pairs=True, margins=True, scores=True)
    assert [learnt(r) for r in graded.rollouts] == [[21, 1], [22, 1], [23, 1]]
    assert scores(graded) == [0.5, 2, 0.5]
    assert [learnt(r) for r in talked.rollouts] == [[21, 1], [22, 1]]
    assert scores(talked) == [1, 3]
    for group in (graded, talked):
        assert group.prompt.tokens == (*SYSTEM, *USER, 20, *ASK)
        assert all(r.tokens[: len(group.prompt.tokens)] == group.prompt.tokens for r in group.rollouts)


@pytest.mark.parametrize(
    ("ranks", "worth"),
    [([2, 3, 1], [1, 0, 2]), ([1, 2], [1, 0]), ([1, 1, 3], [2, 2, 0]), ([2, 1, 1], [1, 2, 2]), ([1.0, 2.0], [1, 0])],
)
def test_the_best_rank_is_worth_most_and_equal_ranks_the_same(
    tmp_path: Path, chat: Chat, ranks: list[float], worth: list[float]
) -> None:
    row = {"prompt": "a", "completions": ["b", "c", "d"][: len(ranks)], "ranks": ranks}
    assert scores(read(tmp_path, [row], chat, pairs=True)[0]) == worth


def test_answers_of_equal_worth_in_a_list_are_learnt_where_something_else_differs(tmp_path: Path, chat: Chat) -> None:
    rows = [{"prompt": "a", "completions": ["b", "c"], "scores": [1, 1]}]
    assert scores(read(tmp_path, rows, chat, scores=True)[0]) == [1, 1]
    assert scores(read(tmp_path, rows, chat, pairs=True, ties=True)[0]) == [1, 1]
    repeated = [{"prompt": "a", "completions": ["b", "b", "c"], "scores": [1, 1, 0]}]
    assert scores(read(tmp_path, repeated, chat, pairs=True)[0]) == [1, 1, 0]


@pytest.mark.parametrize(
    ("numbers", "worth"),
    [
        ({"score": 0.25}, 0.25),
        ({"reward": -3}, -3),
        ({"label": 4}, 4),
        ({"label": 0}, 0),
        ({"label": True}, 1),
        ({"label": False}, 0),
        ({"score": 2, "label": False}, 2),
        ({"label": "spam"}, 1),
    ],
)
def test_a_single_answer_is_worth_its_number_or_its_thumb(
    tmp_path: Path, chat: Chat, numbers: dict[str, Any], worth: float
) -> None:
    rows = [{"prompt": "a", "completion": "b", **numbers}, {"prompt": "a", "completion": "b", **numbers}]
    talks = [{"messages": [user("a"), assistant("b")], **numbers}]
    for group in read(tmp_path, rows, chat) + read(tmp_path, talks, chat):
        assert scores(group) == [worth]
        assert learnt(group.rollouts[0]) == [21, 1]
