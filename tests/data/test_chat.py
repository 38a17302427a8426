"""Messages become exactly the ids and the mask that are written here by hand."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data.chat import Chat
from posttrain.errors import DataError
from tests.data import CHATML, FORGETS_THINKING, LLAMA, SYSTEM, assistant, tiny_tokenizer, user


def smollm() -> Chat:
    return Chat(tiny_tokenizer())


def llama() -> Chat:
    return Chat(tiny_tokenizer(LLAMA, eos="<|eot|>", bos="<|bos|>", adds_bos=True))


def trained(mask: tuple[bool, ...]) -> list[int]:
    return [position for position, learnt in enumerate(mask) if learnt]


def test_a_chatml_prompt_is_the_ids_the_engine_will_see() -> None:
    assert smollm().prompt([user("ab")]) == (*SYSTEM, 0, 7, 12, 20, 21, 1, 12, 0, 8, 12)


def test_prompt_ids_are_those_of_transformers_own_template_call() -> None:
    for chat in (smollm(), llama()):
        ids = chat.tokenizer.apply_chat_template([user("a b")], add_generation_prompt=True, return_dict=False)
        assert list(chat.prompt([user("a b")])) == ids


def test_the_final_stop_token_is_trained_although_pad_is_eos() -> None:
    chat = smollm()
    assert chat.tokenizer.pad_token_id == chat.tokenizer.eos_token_id == 1
    ids, mask = chat.conversation([user("a"), assistant("bc")])
    assert ids == (*SYSTEM, 0, 7, 12, 20, 1, 12, 0, 8, 12, 21, 22, 1)
    assert trained(mask) == [15, 16, 17]


def test_every_turn_of_the_assistant_is_trained_and_nothing_between() -> None:
    ids, mask = smollm().conversation([user("a"), assistant("b"), user("c"), assistant("d")])
    assert ids == (*SYSTEM, 0, 7, 12, 20, 1, 12, 0, 8, 12, 21, 1, 12, 0, 7, 12, 22, 1, 12, 0, 8, 12, 23, 1)
    assert trained(mask) == [15, 16, 27, 28]


def test_llama_turns_have_one_bos_and_train_their_own_stop_token() -> None:
    ids, mask = llama().conversation([user("a"), assistant("b"), user("c"), assistant("d")])
    assert ids == (2, 3, 7, 4, 13, 20, 5, 3, 8, 4, 13, 21, 5, 3, 7, 4, 13, 22, 5, 3, 8, 4, 13, 23, 5)
    assert trained(mask) == [11, 12, 23, 24]
    assert ids.count(2) == 1


def test_given_messages_are_context_even_where_the_assistant_spoke() -> None:
    _, mask = llama().conversation([user("a"), assistant("b"), user("c"), assistant("d")], given=3)
    assert trained(mask) == [23, 24]


def test_what_follows_the_last_stop_token_is_left_out() -> None:
    chat = smollm()
    assert chat.conversation([user("a"), assistant("b"), user("c")]) == chat.conversation([user("a"), assistant("b")])


def test_without_an_assistant_nothing_is_trained() -> None:
    ids, mask = smollm().conversation([user("a")])
    assert ids == (*SYSTEM, 0, 7, 12, 20, 1, 12)
    assert not any(mask)


def test_an_answer_that_starts_with_a_line_end_does_not_merge_into_the_prompt() -> None:
    chat = smollm()
    ids, mask = chat.conversation([user("a"), assistant("\nb")])
    assert ids == (*chat.prompt([user("a")]), 12, 21, 1)
    assert trained(mask) == [15, 16, 17]


def test_text_already_rendered_is_encoded_as_it_is() -> None:
    for chat in (smollm(), llama()):
        text = chat.render([user("a")])
        assert chat.is_rendered(text)
        assert chat.prompt(text) == chat.prompt([user("a")])


def test_a_question_is_not_taken_for_rendered_text() -> None:
    assert not smollm().is_rendered("what is <|im_end|>")


def test_a_second_bos_is_refused() -> None:
    twice = Chat(tiny_tokenizer("{{ bos_token }}" + LLAMA, eos="<|eot|>", bos="<|bos|>"))
    with pytest.raises(DataError, match=r"<\|bos\|>' twice"):
        twice.prompt([user("a")])
    with pytest.raises(DataError, match="twice"):
        llama().prompt("<|bos|><|bos|>a")


def test_a_base_model_gets_plain_text_and_a_bos_only_where_its_tokenizer_adds_one() -> None:
    with_bos = Chat(tiny_tokenizer(None, eos="<|end|>", bos="<|bos|>", adds_bos=True))
    without = Chat(tiny_tokenizer(None, eos="<|end|>", bos="<|bos|>"))
    assert with_bos.prompt([user("ab")]) == with_bos.prompt("ab") == (2, 20, 21)
    assert with_bos.prompt("<|bos|>ab") == (2, 20, 21)
    assert without.prompt([user("ab")]) == (20, 21)


def test_a_base_model_learns_the_completion_and_one_eos() -> None:
    chat = Chat(tiny_tokenizer(None, eos="<|end|>", bos="<|bos|>", adds_bos=True))
    expected = ((2, 20, 21, 22, 4), (False, False, False, True, True))
    assert chat.conversation([user("ab"), assistant("c")]) == expected
    assert chat.continuation("ab", "c") == chat.continuation("ab", "c<|end|>") == expected


def test_a_base_model_refuses_turns_it_has_no_template_for() -> None:
    chat = Chat(tiny_tokenizer(None))
    with pytest.raises(DataError, match=r"no chat template.*\(system, user\)"):
        chat.prompt([{"role": "system", "content": "a"}, user("b")])
    with pytest.raises(DataError, match="no chat template"):
        chat.conversation([user("a"), assistant("b"), user("c"), assistant("d")])


def test_a_rendered_prompt_goes_on_with_its_completion_and_one_stop_token() -> None:
    chat = smollm()
    expected = chat.conversation([user("a"), assistant("b")])
    prompt = chat.render([user("a")])
    for completion in ("b", "b<|im_end|>", "b<|im_end|>\n"):
        assert chat.continuation(prompt, completion) == expected


def test_a_template_that_forgets_thinking_is_refused_for_several_turns_only() -> None:
    chat = Chat(tiny_tokenizer(FORGETS_THINKING))
    turns = [user("a"), assistant("<think>b</think>c"), user("d"), assistant("<think>e</think>f")]
    with pytest.raises(DataError, match="not prefix-preserving"):
        chat.conversation(turns)
    ids, mask = chat.conversation(turns[:2])
    assert ids == (0, 7, 12, 20, 1, 12, 0, 8, 12, 10, 21, 11, 22, 1)
    assert trained(mask) == [9, 10, 11, 12, 13]
    ids, mask = chat.conversation(turns, given=3)
    assert [ids[i] for i in trained(mask)] == [10, 24, 11, 25, 1]


def test_a_generation_prompt_that_history_does_not_repeat_is_refused() -> None:
    opens = CHATML.replace("assistant\n' }}{% endif %}", "assistant\n<think>' }}{% endif %}")
    assert opens != CHATML
    with pytest.raises(DataError, match="not prefix-preserving"):
        Chat(tiny_tokenizer(opens)).conversation([user("a"), assistant("b")])


def test_a_template_without_a_stop_token_is_refused() -> None:
    endless = "{% for m in messages %}{{ m['role'] + ':' + m['content'] + '\n' }}{% endfor %}"
    endless += "{% if add_generation_prompt %}{{ 'assistant:' }}{% endif %}"
    with pytest.raises(DataError, match="never learn to stop"):
        Chat(tiny_tokenizer(endless)).conversation([user("a"), assistant("b")])


def test_a_template_that_raises_is_named_with_the_roles_it_got() -> None:
    strict = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system here') }}{% endif %}" + CHATML
    with pytest.raises(DataError, match=r"\(system, user\): no system here"):
        Chat(tiny_tokenizer(strict)).prompt([{"role": "system", "content": "a"}, user("b")])


def test_stop_ids_are_eos_the_given_ones_and_what_the_template_writes() -> None:
    assert smollm().stop_ids == (1,)
    assert Chat(tiny_tokenizer(LLAMA, eos="<|end|>", bos="<|bos|>")).stop_ids == (4, 5)
    assert Chat(tiny_tokenizer(LLAMA, eos="<|end|>", bos="<|bos|>"), stop_ids=[3]).stop_ids == (3, 4, 5)


def test_completion_text_has_no_special_tokens() -> None:
    assert smollm().completion_text((21, 14, 22, 1)) == "b c"


WORDS = st.text(alphabet="ab \n", max_size=6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4))
def test_the_trained_spans_decode_to_what_the_assistant_said_and_its_stop_token(said: list[tuple[str, str]]) -> None:
    for chat, stop in ((smollm(), "<|im_end|>"), (llama(), "<|eot|>")):
        messages = [message for asked, answer in said for message in (user(asked), assistant(answer))]
        ids, mask = chat.conversation(messages)
        spans = chat.tokenizer.decode([token for token, learnt in zip(ids, mask, strict=True) if learnt])
        assert spans == "".join(answer + stop for _, answer in said)
        rendered = chat.tokenizer.apply_chat_template(messages, tokenize=False)
        assert chat.tokenizer.decode(list(ids)) == rendered.removesuffix("\n")
        start = chat.prompt(messages[:1])
        assert ids[: len(start)] == start
