"""Rows of every format become prompts, and what does not is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from posttrain.data.chat import Chat
from posttrain.data.formats import fill
from posttrain.data.sources import distinct, hold_out, prompts, read_rows
from posttrain.data.stream import PromptStream
from posttrain.errors import DataError
from posttrain.types import Prompt
from tests.data import ASK, LLAMA, SYSTEM, USER, assistant, file, gym, real, tiny_tokenizer, user


def test_questions_become_the_ids_of_one_user_turn(tmp_path: Path, chat: Chat) -> None:
    for column in ("question", "problem", "prompt"):
        source = file(tmp_path, [{column: "a", "answer": "7"}, {column: "b", "answer": "8"}])
        kept, report = prompts(source, chat, "data.train")
        assert [p.tokens for p in kept] == [(*SYSTEM, *USER, 20, *ASK), (*SYSTEM, *USER, 21, *ASK)]
        assert [p.id for p in kept] == ["rows/0", "rows/1"]
        assert [p.columns for p in kept] == [{column: "a", "answer": "7"}, {column: "b", "answer": "8"}]
        assert str(report) == "kept 2 of 2"


def test_a_template_and_a_system_message_are_what_the_recipe_says(tmp_path: Path, chat: Chat) -> None:
    source = file(tmp_path, [{"text": "a", "n": 3}], prompt="{text} {n}", system="c")
    (prompt,), _ = prompts(source, chat, "data.train")
    assert prompt.tokens == (0, 6, 12, 22, 1, 12, *USER, 20, 14, 49, *ASK)


@pytest.mark.parametrize(
    ("row", "tokens"),
    [
        ({"prompt": [user("a")]}, [*SYSTEM, *USER, 20, *ASK]),
        ({"prompt": "<|im_start|>user\na<|im_end|>\n"}, [*USER, 20, 1, 12]),
        ({"messages": [user("a"), assistant("b")]}, [*SYSTEM, *USER, 20, *ASK]),
        ({"messages": [user("a"), assistant("b"), user("c")]}, [*SYSTEM, *USER, 20, *ASK, 21, 1, 12, *USER, 22, *ASK]),
        ({"conversations": [{"from": "human", "value": "a"}]}, [*SYSTEM, *USER, 20, *ASK]),
        ({"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]}, [*SYSTEM, *USER, 20, *ASK]),
        ({"prompt": "\n\nHuman: a\n\nAssistant:"}, [*SYSTEM, *USER, 20, *ASK]),
    ],
)
def test_every_format_gives_its_prompt(tmp_path: Path, chat: Chat, row: dict[str, Any], tokens: list[int]) -> None:
    (prompt,), _ = prompts(file(tmp_path, [row]), chat, "data.train")
    assert list(prompt.tokens) == tokens


@pytest.mark.parametrize(
    ("row", "fields", "message"),
    [
        ({"text": "a"}, {}, r"row rows/0: no prompt.*\(text\); set `prompt`, as in prompt: '\{text\}'"),
        ({"question": "a"}, {"prompt": "{questoin}"}, r"names \{questoin\}.*\(question\); did you mean question\?"),
        ({"question": None}, {}, "row rows/0: column 'question' is None"),
        ({"question": None}, {"prompt": "{question}"}, "column 'question', which the prompt template names, is empty"),
        ({"messages": [{"role": "user"}]}, {}, "column 'messages' has a message of 'user' without content"),
        ({"prompt": [{"role": "system", "content": "a"}, user("b")]}, {"system": "c"}, "system message of its own"),
        ({"chosen": "ab", "rejected": "ac"}, {}, "plain text without a prompt"),
        ({"chosen": [user("a"), assistant("b")], "rejected": [user("c"), assistant("b")]}, {}, "no common prompt"),
    ],
)
def test_a_row_that_cannot_be_rendered_is_named(
    tmp_path: Path, chat: Chat, row: dict[str, Any], fields: dict[str, str], message: str
) -> None:
    with pytest.raises(DataError, match=rf"data\.train: row rows/0: .*{message.removeprefix('row rows/0: ')}"):
        prompts(file(tmp_path, [row], **fields), chat, "data.train")


def test_braces_that_are_no_column_stay_and_latex_cannot_show_the_answer() -> None:
    row = {"question": "2+2", "answer": "4"}
    assert fill(r"{question} in \boxed{} and \frac{1}{2} and {{answer}}", row) == (
        r"2+2 in \boxed{} and \frac{1}{2} and {answer}"
    )
    assert fill(r"\boxed{{answer}}", row) == r"\boxed{answer}"
    with pytest.raises(DataError, match=r"write \\boxed\{\{answer\}\}"):
        fill(r"{question} in \boxed{answer}", row)


def test_a_prompt_of_one_token_too_many_is_reported_and_skipped(tmp_path: Path, chat: Chat) -> None:
    source = file(tmp_path, [{"question": "a"}, {"question": "ab"}, {"question": "abc"}])
    exact = len(SYSTEM) + len(USER) + 2 + len(ASK)
    kept, report = prompts(source, chat, "data.train", max_prompt_tokens=exact)
    assert [p.id for p in kept] == ["rows/0", "rows/1"]
    assert str(report) == f"kept 2 of 3: 1 too long (rows/2: {exact + 1} > {exact} tokens)"
    with pytest.raises(DataError, match=r"kept 0 of 3.*raise data\.max_prompt_tokens"):
        prompts(source, chat, "data.train", max_prompt_tokens=3)


def test_a_base_model_gets_the_question_as_it_is(tmp_path: Path, base: Chat) -> None:
    (prompt,), _ = prompts(file(tmp_path, [{"question": "ab"}]), base, "data.train")
    assert prompt.tokens == (2, 20, 21)


def test_columns_reach_their_own_prompt_after_the_shuffle(chat: Chat) -> None:
    source = gym(task="basic_arithmetic", size=30)
    rows = read_rows(source, "data.train")
    kept, _ = prompts(source, chat, "data.train")
    for prompt in PromptStream(kept, seed=5).take(75):
        row = rows[int(prompt.id.removeprefix("basic_arithmetic@0/"))]
        assert prompt.columns == row
        assert row["question"] in prompt.text
        assert prompt.tokens == chat.prompt([user(row["question"])])


def test_held_out_prompts_are_taken_out_of_training_and_not_repeated() -> None:
    def made(source: str, *words: int) -> list[Prompt]:
        return [Prompt(f"{source}/{i}", (word,), "") for i, word in enumerate(words)]

    evaluation, repeated = distinct(made("eval", 1, 2, 1, 3, 1))
    assert ([p.id for p in evaluation], repeated) == (["eval/0", "eval/1", "eval/3"], 2)
    train, removed = hold_out(made("train", 3, 4, 4, 2, 5), evaluation)
    assert ([p.id for p in train], removed) == (["train/1", "train/2", "train/4"], 2)
    assert not {p.tokens for p in train} & {p.tokens for p in evaluation}
    with pytest.raises(DataError, match=r"every training prompt also stands in data\.eval"):
        hold_out(made("train", 1, 2), evaluation)


def test_gsm8k_gives_a_distinct_prompt_per_problem_with_its_answer() -> None:
    kept, report = prompts(
        real("gsm8k_test.jsonl", prompt="{question} Think."), Chat(tiny_tokenizer(LLAMA)), "data.eval"
    )
    assert str(report) == "kept 1319 of 1319"
    assert distinct(kept)[1] == 0
    assert kept[0].columns["answer"].endswith("#### 18")
    assert all(p.columns["question"] + " Think." in p.text for p in kept)
