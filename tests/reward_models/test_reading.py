"""What a reward model reads is what it was trained on, token by token."""

from __future__ import annotations

from typing import Any

import pytest

from posttrain.data.chat import Chat
from posttrain_reward_models.reading import Reader, Response, responses
from tests.data import CHATML, FORGETS_THINKING, LLAMA, assistant, tiny_tokenizer, user
from tests.reward_models.scorers import asked, letters, said

CONVERSATIONS = [
    ([user("hi")], "ok"),
    # "\n" and "\n" would be one token across the border.
    ([user("hi")], "\nok"),
    ([user("a b"), assistant("c"), user("d\n\ne")], "x\n\ny z"),
    ([{"role": "system", "content": "be good"}, user("hi")], "<think>n</think>yes"),
]


def tokenizers() -> list[Any]:
    return [
        tiny_tokenizer(CHATML),
        tiny_tokenizer(LLAMA, eos="<|eot|>", bos="<|bos|>"),
        tiny_tokenizer(FORGETS_THINKING),
    ]


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize(("messages", "answer"), CONVERSATIONS)
def test_messages_become_the_ids_of_a_conversation_in_training(
    which: int, messages: list[dict[str, str]], answer: str
) -> None:
    tokenizer = tokenizers()[which]
    ids, mask = Chat(tokenizer).conversation([*messages, assistant(answer)], given=len(messages))
    read = Reader(tokenizer, "rm").render(messages, answer)
    assert read.ids == ids
    assert read.start == mask.index(True)
    assert not read.sampled


def test_sampled_ids_are_taken_as_they_are_even_where_encoding_would_differ() -> None:
    tokenizer, prompt = tiny_tokenizer(), asked("hi")
    # "\n", "\n": the tokenizer itself would write one token for both.
    ids = (*letters("a"), 12, 12, *letters("b"), 1)
    response = Response(prompt.text, prompt.text, prompt.tokens, ids, "a\n\nb")
    read = Reader(tokenizer, "rm").read(response)
    assert tokenizer.encode("a\n\nb") != list(ids[:-1])
    assert read.ids == prompt.tokens + ids
    assert (read.start, read.sampled) == (len(prompt.tokens), True)


def test_sampled_ids_are_known_by_the_rendered_prompt_whatever_the_row_calls_it() -> None:
    prompt = asked("hi")
    reader, ids = Reader(tiny_tokenizer(), "rm"), said(prompt, "ok").tokens[len(prompt.tokens) :]
    for row in ("hi", [user("hi")], None):
        assert reader.read(Response(row, prompt.text, prompt.tokens, ids, "ok")).sampled


def test_a_base_models_beginning_of_a_text_is_no_part_of_it() -> None:
    tokenizer = tiny_tokenizer(None, eos="<|eot|>", bos="<|bos|>", adds_bos=True)
    ids = tuple(tokenizer("ab").input_ids)
    assert ids[0] == tokenizer.bos_token_id
    assert Reader(tokenizer, "rm").read(Response("ab", "ab", ids, (22, 5), "c")).ids == (*ids, 22, 5)


@pytest.mark.parametrize("change", ["prompt", "completion"])
def test_ids_of_another_vocabulary_are_rendered_anew_or_refused(change: str) -> None:
    prompt = asked("hi")
    ids = (*letters("ok"), 1)
    theirs = prompt.tokens if change == "completion" else (*prompt.tokens[:4], 45, *prompt.tokens[5:])
    spoken = ids if change == "prompt" else (*letters("oj"), 1)
    reader = Reader(tiny_tokenizer(), "rm")
    chat = Response([user("hi")], prompt.text, theirs, spoken, "ok")
    assert reader.read(chat) == reader.render([user("hi")], "ok")
    text = Response("hi", prompt.text, theirs, spoken, "ok")
    with pytest.raises(ValueError, match=r"rm: its tokenizer reads the sampled ids as other words.*`messages`"):
        reader.read(text)
    with pytest.raises(ValueError, match="the policy's tokenizer"):
        reader.sampled(chat)


def test_a_response_that_does_not_follow_its_prompt_is_not_taken_for_one_that_does() -> None:
    prompt = asked("hi")
    with pytest.raises(ValueError, match="not the prompt's tokens followed by what was said"):
        Reader(tiny_tokenizer(), "rm").read(Response("hi", prompt.text, None, (34, 1), "o"))


def test_messages_without_a_template_are_refused() -> None:
    with pytest.raises(ValueError, match="rm: its tokenizer has no chat template"):
        Reader(tiny_tokenizer(None), "rm").render([user("hi")], "ok")


def test_trl_lists_become_responses_with_or_without_rendered_prompts() -> None:
    chat = [user("hi")]
    made = responses([chat, "text"], [[assistant("a")], "b"], [[1], [2]], [(3,), None], None)
    assert made == [Response(chat, "", (3,), [1], "a"), Response("text", "text", None, [2], "b")]
    assert responses([chat], [[assistant("a")]], [[1]], [(3,)], ["t"])[0].text == "t"
