"""A tokenizer small enough to write its ids by hand, chat templates of the kinds that models have, and sources."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.data.chat import Chat
from posttrain.data.sources import Wanted, groups
from posttrain.recipe import FileSource, ReasoningGymSource
from posttrain.types import Group, Rollout

SMOLLM_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|bos|>", "<|start|>", "<|end|>", "<|eot|>"]
"""Ids 0 to 5."""
WORDS = ["system", "user", "assistant", SMOLLM_SYSTEM, "<think>", "</think>", "\n", "\n\n", " ", "<unk>"]
"""Ids 6 to 15; the letters a to z follow from 20, the digits from 46."""
CHARACTERS = "....abcdefghijklmnopqrstuvwxyz0123456789?:+-*/=,()'$ABCDEFGHIJKLMNOPQRSTUVWXYZ"

CHATML = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\n" + SMOLLM_SYSTEM + "<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start|>' + message['role'] + '<|end|>\n\n' + message['content'] + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\n\n' }}{% endif %}"
)
FORGETS_THINKING = (
    "{% for message in messages %}{% set said = message['content'] %}"
    "{% if not loop.last %}{% set said = said.split('</think>')[-1] %}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + said + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

REAL = Path(__file__).parents[3] / "shared" / "data"

USER = [0, 7, 12]
"""<|im_start|>user \\n"""
ASK = [1, 12, 0, 8, 12]
"""<|im_end|> \\n <|im_start|>assistant \\n"""
SYSTEM = [0, 6, 12, 9, 1, 12]
"""<|im_start|>system \\n ... <|im_end|> \\n: what SmolLM2's template puts first"""


def tiny_tokenizer(
    template: str | None = CHATML, eos: str = "<|im_end|>", bos: str | None = "<|im_start|>", adds_bos: bool = False
) -> Any:
    """One id per character, one merge of two line ends, pad = eos as SmolLM2 has it."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *WORDS])}
    vocabulary |= {character: 16 + i for i, character in enumerate(CHARACTERS) if character != "."} | {".": 16}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("\n", "\n")], unk_token="<unk>"))
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIAL])
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in WORDS[:6]])
    tokenizer.decoder = decoders.Fuse()
    if adds_bos and bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, vocabulary[bos])]
        )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=eos, pad_token=eos, bos_token=bos)
    fast.chat_template = template
    return fast


def file(tmp_path: Path, rows: list[Any], name: str = "rows.jsonl", **fields: Any) -> FileSource:
    (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return FileSource(source="file", path=str(tmp_path / name), **fields)


def gym(**fields: Any) -> ReasoningGymSource:
    return ReasoningGymSource(source="reasoning_gym", **fields)


def real(name: str, **fields: Any) -> FileSource:
    if not (REAL / name).is_file():
        pytest.skip(f"{name} is not here")
    return FileSource(source="file", path=str(REAL / name), **fields)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def read(tmp_path: Path, rows: list[Any], chat: Chat, **wanted: Any) -> list[Group]:
    """The groups of some rows, by an algorithm that wants this of them."""
    return groups(file(tmp_path, rows), chat, "data.train", Wanted(**wanted))[0]


def learnt(rollout: Rollout) -> list[int]:
    """The tokens that a roll-out is masked True on."""
    return [token for token, said in zip(rollout.tokens, rollout.mask, strict=True) if said]
