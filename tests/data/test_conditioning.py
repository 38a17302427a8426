"""Questions that say what their answer is worth, and answers that are read with another one before them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from posttrain.data.chat import Chat
from posttrain.data.responses import BETTER
from posttrain.data.sources import prompts
from posttrain.errors import DataError
from posttrain.recipe import Conditioning
from tests.data import ASK, SYSTEM, USER, assistant, file, learnt, read, tiny_tokenizer, user

MARKS = Conditioning(good="g ", bad="b ", right_score=0.5)
GOOD, BAD = (26, 14), (21, 14)


@pytest.mark.parametrize(
    ("worth", "mark"),
    [({"label": True}, GOOD), ({"label": False}, BAD), ({"score": 0.5}, GOOD), ({"reward": 0.49}, BAD)],
)
def test_an_answer_is_learnt_behind_a_question_that_says_its_worth(
    tmp_path: Path, chat: Chat, worth: dict[str, Any], mark: tuple[int, ...]
) -> None:
    (group,) = read(tmp_path, [{"prompt": "a", "completion": "c", **worth}], chat, conditioning=MARKS)
    assert group.prompt.tokens == (*SYSTEM, *USER, *mark, 20, *ASK)
    assert group.rollouts[0].tokens == (*group.prompt.tokens, 22, 1)
    assert learnt(group.rollouts[0]) == [22, 1]


def test_only_the_last_question_before_the_answers_is_marked(tmp_path: Path, chat: Chat) -> None:
    row = {"prompt": [user("a"), assistant("b"), user("c")], "completion": "d", "label": True}
    (group,) = read(tmp_path, [row], chat, conditioning=MARKS)
    assert group.prompt.tokens == (*SYSTEM, *USER, 20, *ASK, 21, 1, 12, *USER, *GOOD, 22, *ASK)
    talk = {"messages": [user("a"), assistant("b"), user("c"), assistant("d")], "score": 0}
    (group,) = read(tmp_path, [talk], chat, conditioning=MARKS)
    assert group.prompt.tokens == (*SYSTEM, *USER, *BAD, 20, *ASK)
    assert learnt(group.rollouts[0]) == [21, 1, 23, 1]


def test_a_base_models_question_is_marked_where_it_begins(tmp_path: Path, base: Chat) -> None:
    (group,) = read(tmp_path, [{"prompt": "a", "completion": "c", "label": False}], base, conditioning=MARKS)
    assert group.rollouts[0].tokens == (2, *BAD, 20, 22, 4)


def test_held_out_questions_ask_for_a_good_answer(tmp_path: Path, chat: Chat) -> None:
    source = file(tmp_path, [{"question": "a"}], system="c")
    (prompt,), _ = prompts(source, chat, "data.eval", conditioning=MARKS)
    assert prompt.tokens == (0, 6, 12, 22, 1, 12, *USER, *GOOD, 20, *ASK)


def test_a_question_that_is_rendered_already_cannot_be_marked(tmp_path: Path, chat: Chat) -> None:
    source = file(tmp_path, [{"prompt": chat.render([user("a")])}])
    with pytest.raises(DataError, match=r"row rows/0: the prompt is rendered already.*data\.conditioning"):
        prompts(source, chat, "data.eval", conditioning=MARKS)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"prompt": "a", "chosen": [assistant("b")], "rejected": "c"},
        {"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]},
        {"prompt": "a", "completions": ["b", "c"], "scores": [1, 0]},
    ],
)
def test_each_answer_of_a_pair_is_read_with_the_other_one_before_it(
    tmp_path: Path, chat: Chat, row: dict[str, Any]
) -> None:
    (group,) = read(tmp_path, [row], chat, in_context=True, pairs=True)
    assert group.prompt.tokens == (*SYSTEM, *USER, 20, *ASK)
    assert [v.score for v in group.verdicts] == [1, 0]
    for rollout, own, other in zip(group.rollouts, "bc", "cb", strict=True):
        before = chat.prompt([user("a"), assistant(other), user(BETTER)])
        assert rollout.tokens[: len(before)] == before
        assert rollout.tokens[len(before) :] == tuple(learnt(rollout)) == (*chat.tokenizer.encode(own), 1)
        assert not any(rollout.mask[: len(before)])


def test_a_base_model_and_rendered_text_have_no_place_for_another_answer(
    tmp_path: Path, chat: Chat, base: Chat
) -> None:
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    with pytest.raises(DataError, match="no chat template"):
        read(tmp_path, [row], base, in_context=True)
    with pytest.raises(DataError, match="rendered already, so no other answer"):
        read(tmp_path, [row | {"prompt": chat.render([user("a")])}], chat, in_context=True)


def test_what_is_too_long_only_with_the_other_answer_is_left_out(tmp_path: Path) -> None:
    chat = Chat(tiny_tokenizer())
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c"}, {"prompt": "a", "chosen": "b" * 9, "rejected": "c"}]
    longest = len(chat.prompt([user("a"), assistant("b"), user(BETTER)])) + 2
    assert len(read(tmp_path, rows, chat, in_context=True, max_length=longest)) == 1
