"""Random scorers small enough for a test, cards beside them, and responses as the Grader hands them over."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForSequenceClassification

from posttrain.types import Prompt, Rollout
from tests.data import ASK, CHATML, USER, tiny_tokenizer
from tests.tiny import VOCABULARY

GOLDEN = [[0, 7, 12, 30, 31, 1], [0, 7, 12, 25, 1, 12, 0, 8, 12, 40, 1]]

LETTER = {c: 20 + i for i, c in enumerate("abcdefghijklmnopqrstuvwxyz")} | {" ": 14, "\n": 12}
"""Ids of the tiny tokenizer."""


def scorer_folder(folder: Path, outputs: int = 1, seed: int = 0, template: str | None = CHATML, **config: Any) -> Path:
    """A two-layer Llama with a random linear head, and its tokenizer, as a checkpoint folder."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 256,
        "pad_token_id": 1,
        "num_labels": outputs,
        # Large enough that scores differ clearly from sequence to sequence.
        "initializer_range": 0.15,
    }
    LlamaForSequenceClassification(LlamaConfig(**{**settings, **config})).save_pretrained(folder)
    tiny_tokenizer(template).save_pretrained(folder)
    return folder


def plainly(folder: Path, ids: Sequence[int]) -> list[float]:
    """What a scorer says of one sequence by itself: the whole stack by hand, and the head on the very last state."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        last = model.model(torch.tensor([list(ids)])).last_hidden_state[0, -1]
    return [sum(float(w) * float(h) for w, h in zip(row, last, strict=True)) for row in model.score.weight.detach()]


def card(folder: Path, model: Path, low: float | None = 0.6, **fields: Any) -> Path:
    """Write a card into `folder` with what `model` says of two sequences."""
    golden = [{"tokens": ids, "scores": plainly(model, ids), "dtype": "float32"} for ids in GOLDEN]
    measured = {} if low is None else {"accuracy": low + 0.1, "accuracy_low": low, "accuracy_high": low + 0.2}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "card.json").write_text(json.dumps({"pairs": 200, "golden": golden, **measured, **fields}))
    return folder / "card.json"


def measured_folder(folder: Path, outputs: int = 1, seed: int = 0, **config: Any) -> Path:
    """A scorer with its card in its folder."""
    scorer_folder(folder, outputs, seed, **config)
    card(folder, folder)
    return folder


def letters(text: str) -> tuple[int, ...]:
    """The tiny tokenizer's ids of a text of small letters, spaces and line ends."""
    return tuple(LETTER[c] for c in text)


def asked(text: str = "hi", **columns: Any) -> Prompt:
    """A question in the tiny tokenizer's ids."""
    rendered = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    return Prompt("p", (*USER, *letters(text), *ASK), rendered, columns)


def said(prompt: Prompt, text: str, stop: bool = True) -> Rollout:
    """A response in the tiny tokenizer's ids, with the stop token where it was not cut."""
    ids = (*letters(text), 1) if stop else letters(text)
    mask = (False,) * len(prompt.tokens) + (True,) * len(ids)
    return Rollout((*prompt.tokens, *ids), mask, text, "stop" if stop else "length")


def arguments(prompt: Prompt, *rollouts: Rollout) -> dict[str, Any]:
    """What a grader of a group is called with."""
    count = len(rollouts)
    return {
        "prompts": [prompt.text] * count,
        "completions": [r.text for r in rollouts],
        "completion_ids": [[t for t, own in zip(r.tokens, r.mask, strict=True) if own] for r in rollouts],
        "prompt_ids": [prompt.tokens] * count,
        "prompt_texts": [prompt.text] * count,
    }
