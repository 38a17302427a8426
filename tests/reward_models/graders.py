"""Graders that say what they were given, and how much they may hold: importable by name, as workers need them."""

from __future__ import annotations

import json
from typing import Any

import numpy

from posttrain.types import Verdict


def given(prompts: Any, completions: Any, prompt_ids: Any, prompt_texts: Any) -> list[Verdict]:
    """Worth 1, for saying what came."""
    rows = zip(prompts, prompt_ids, prompt_texts, strict=True)
    return [Verdict(1.0, reason=json.dumps(row)) for row in rows]


def named(completions: Any, **kwargs: Any) -> list[Verdict]:
    """Worth 1, for saying under which names something came."""
    return [Verdict(1.0, reason=" ".join(sorted(kwargs))) for _ in completions]


class Holder:
    """Holds what no limit would allow, and then takes as much again."""

    memory_limit = None

    def prepare(self) -> None:
        self.held = taken(5)

    def __call__(self, completion: str) -> float:
        return float(len(taken(5)) == len(self.held))


def taken(gibibytes: int) -> Any:
    """Memory that is asked for and never touched, so the machine need not have it."""
    return numpy.zeros(gibibytes << 30, dtype=numpy.uint8)


def takes(completion: str) -> float:
    """Takes as many GiB as the completion says."""
    return float(len(taken(int(completion))) > 0)


class Frugal:
    """May add no more than 1 GiB."""

    memory_limit = 1 << 30

    def __call__(self, completion: str) -> float:
        return takes(completion)
