"""Tokenizers that every test of data reads and none changes."""

from __future__ import annotations

import pytest

from posttrain.data.chat import Chat
from tests.data import tiny_tokenizer


@pytest.fixture(scope="module")
def chat() -> Chat:
    return Chat(tiny_tokenizer())


@pytest.fixture(scope="module")
def base() -> Chat:
    return Chat(tiny_tokenizer(None, eos="<|end|>", bos="<|bos|>", adds_bos=True))
