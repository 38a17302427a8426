"""Rows that bring their answers become groups, masked on exactly what was said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from posttrain.data.chat import Chat
from posttrain.data.sources import Wanted, groups
from posttrain.errors import DataError
from posttrain.types import Verdict
from tests.data import (
    ASK,
    CHARACTERS,
    FORGETS_THINKING,
    SYSTEM,
    USER,
    assistant,
    file,
    learnt,
    real,
    tiny_tokenizer,
    user,
)

PLAIN = Wanted()


def test_a_completion_is_a_group_of_one_that_learns_its_stop_token(tmp_path: Path, chat: Chat) -> None:
    rows = [
        {"prompt": "a", "completion": "b", "extra": 5},
        {"prompt": [user("a")], "completion": [assistant("b")], "extra": 5},
    ]
    (plain, talked), _ = groups(file(tmp_path, rows), chat, "data.train", PLAIN)
    for group in (plain, talked):
        (rollout,) = group.rollouts
        assert group.prompt.tokens == (*SYSTEM, *USER, 20, *ASK)
        assert rollout.tokens == (*group.prompt.tokens, 21, 1)
        assert learnt(rollout) == [21, 1]
        assert (rollout.text, rollout.finish_reason, rollout.logprobs) == ("b", "given", None)
        assert group.verdicts == (Verdict(1.0),)
        assert group.prompt.columns["extra"] == 5


def test_a_thumb_is_the_worth_of_a_completion(tmp_path: Path, chat: Chat) -> None:
    rows = [{"prompt": "a", "completion": "b", "label": True}, {"prompt": "a", "completion": "c", "label": False}]
    made, _ = groups(file(tmp_path, rows), chat, "data.train", PLAIN)
    assert [group.verdicts[0].score for group in made] == [1.0, 0.0]


def test_messages_learn_every_turn_of_the_assistant(tmp_path: Path, chat: Chat) -> None:
    row = {"messages": [user("a"), assistant("b"), user("c"), assistant("d")]}
    ((group,), _) = groups(file(tmp_path, [row]), chat, "data.train", PLAIN)
    assert group.prompt.tokens == (*SYSTEM, *USER, 20, *ASK)
    assert group.rollouts[0].tokens == (*group.prompt.tokens, 21, 1, 12, *USER, 22, *ASK, 23, 1)
    assert learnt(group.rollouts[0]) == [21, 1, 23, 1]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        {"prompt": [user("a")], "chosen": [assistant("b")], "rejected": [assistant("c")]},
        {"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]},
        {"prompt": "x", "chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]},
        {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
        {
            "conversations": [{"from": "human", "value": "a"}],
            "chosen": {"from": "gpt", "value": "b"},
            "rejected": {"from": "gpt", "value": "c"},
        },
    ],
)
def test_every_format_of_a_preference_is_a_group_of_two(tmp_path: Path, chat: Chat, row: dict[str, Any]) -> None:
    ((group,), _) = groups(file(tmp_path, [row]), chat, "data.train", PLAIN)
    assert group.prompt.tokens == (*SYSTEM, *USER, 20, *ASK)
    assert [r.tokens for r in group.rollouts] == [(*group.prompt.tokens, 21, 1), (*group.prompt.tokens, 22, 1)]
    assert [learnt(r) for r in group.rollouts] == [[21, 1], [22, 1]]
    assert [v.score for v in group.verdicts] == [1.0, 0.0]
    assert [r.author for r in group.rollouts] == ["data", "data"]


def test_earlier_turns_of_a_preference_are_context(tmp_path: Path) -> None:
    start = [user("a"), assistant("<think>b</think>c"), user("d")]
    row = {"chosen": [*start, assistant("e")], "rejected": [*start, assistant("f")]}
    ((group,), _) = groups(file(tmp_path, [row]), Chat(tiny_tokenizer(FORGETS_THINKING)), "data.train", PLAIN)
    assert group.prompt.tokens == (*USER, 20, *ASK, 22, 1, 12, *USER, 23, *ASK)
    assert [learnt(r) for r in group.rollouts] == [[24, 1], [25, 1]]


def test_a_base_model_finds_the_prompt_inside_plain_text(tmp_path: Path, base: Chat) -> None:
    ((group,), _) = groups(file(tmp_path, [{"chosen": "ab cd", "rejected": "ab ce"}]), base, "data.train", PLAIN)
    assert group.prompt.tokens == (2, 20, 21, 14, 22)
    assert [learnt(r) for r in group.rollouts] == [[23, 4], [24, 4]]


def test_a_template_that_forgets_turns_is_refused_with_its_row(tmp_path: Path) -> None:
    row = {"messages": [user("a"), assistant("<think>b</think>c"), user("d"), assistant("e")]}
    with pytest.raises(DataError, match=r"data\.train: row rows/0: the chat template is not prefix-preserving"):
        groups(file(tmp_path, [row]), Chat(tiny_tokenizer(FORGETS_THINKING)), "data.train", PLAIN)


def test_rows_without_answers_say_how_to_name_them(tmp_path: Path, chat: Chat) -> None:
    with pytest.raises(DataError, match=r"columns: \{completion: answer\}"):
        groups(file(tmp_path, [{"question": "a", "answer": "b"}]), chat, "data.train", PLAIN)
    source = file(tmp_path, [{"question": "a", "answer": "b"}], columns={"completion": "answer"})
    assert learnt(groups(source, chat, "data.train", PLAIN)[0][0].rollouts[0]) == [21, 1]


def test_hh_dialogues_become_pairs_and_those_without_an_answer_are_reported(chat: Chat) -> None:
    kept, report = groups(real("hh_harmless_test.jsonl"), chat, "data.train", PLAIN)
    assert (report.kept, report.faults, report.too_long) == (2308, {"empty response": 4}, 0)
    assert "hh_harmless_test/516: the assistant says nothing" in report.examples
    for group in kept:
        chosen, rejected = group.rollouts
        assert group.prompt.text.endswith("<|im_start|>assistant\n")
        assert chosen.text != rejected.text
        assert group.prompt.columns["chosen"].strip().endswith(chosen.text.split("<unk>")[-1].strip()[-10:])
        for rollout in (chosen, rejected):
            assert rollout.tokens[: len(group.prompt.tokens)] == group.prompt.tokens
            assert not any(rollout.mask[: len(group.prompt.tokens)])
            assert rollout.mask[-1]
            assert rollout.tokens[-1] == 1


def test_the_preference_demo_becomes_pairs_with_its_own_words(chat: Chat) -> None:
    kept, report = groups(real("preference_demo.json"), chat, "data.train", PLAIN)
    assert (report.kept, report.faults) == (300, {})
    known = {*CHARACTERS, " ", "\n"}
    compared = 0
    for group in kept:
        for rollout, column in zip(group.rollouts, ("chosen", "rejected"), strict=True):
            words = group.prompt.columns[column]["value"]
            if set(words) <= known:
                assert rollout.text == words
                compared += 1
    assert compared > 100
