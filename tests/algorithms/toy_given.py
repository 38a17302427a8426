"""Answers to the toy task that come with the data: texts, pairs, lists, single answers, steps; and runs on them."""

from __future__ import annotations

import random
from dataclasses import replace

from posttrain.types import Group, Prompt, Rollout, Verdict
from tests.toy import LENGTH, PROMPTS, VOCABULARY, hits

EVENLY = 1 / VOCABULARY


def answer(prompt: Prompt, draw: random.Random, chance: float, ragged: bool = False) -> Rollout:
    """Each token hits with `chance`, the others are drawn evenly. Of ragged ones half lack their last token."""
    target = prompt.columns["target"]
    wrong = [token for token in range(VOCABULARY) if token != target]
    said = [target if draw.random() < chance else draw.choice(wrong) for _ in range(LENGTH)]
    mask = [True] * LENGTH
    if ragged and draw.random() < 0.5:
        mask[-1] = False
    return Rollout((*prompt.tokens, *said), (False, *mask), " ".join(map(str, said)), "given", author="data")


def worth(prompt: Prompt, rollout: Rollout) -> float:
    """The share of three tokens that are there and hit."""
    return sum(h and m for h, m in zip(hits(prompt, rollout), rollout.mask[1:], strict=True)) / LENGTH


def drawn(seed: int, count: int, size: int, chance: float = EVENLY, ragged: bool = False) -> list[Group]:
    """`count` groups of `size` answers to each prompt, worth what they hit."""
    draw, out = random.Random(seed), []
    for prompt in PROMPTS:
        for n in range(count):
            rollouts = tuple(answer(prompt, draw, chance, ragged) for _ in range(size))
            verdicts = tuple(Verdict(worth(prompt, r)) for r in rollouts)
            out.append(Group(replace(prompt, id=f"{prompt.id}/{n}"), rollouts, verdicts))
    return out
