"""Training prompts in a shuffled order that can be left and taken up again at any position."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from typing import Any

from posttrain.errors import DataError
from posttrain.types import Group, Prompt


class PromptStream:
    """An endless order of prompts: each exactly once per epoch, epochs shuffled by (seed, epoch) alone."""

    def __init__(self, prompts: Sequence[Prompt], seed: int) -> None:
        """Raises DataError where there are no prompts or two share an id."""
        if not prompts:
            raise DataError("data.train: there are no prompts to train on")
        self._prompts = tuple(prompts)
        self._seed = seed
        seen: set[str] = set()
        for prompt in self._prompts:
            if prompt.id in seen:
                raise DataError(f"data.train: two prompts have the id {prompt.id!r}")
            seen.add(prompt.id)
        self._digest = _digest(self._prompts)
        self._epoch, self._position = 0, 0
        self._order = self._shuffled(0)

    @property
    def epoch(self) -> int:
        """The epoch of the prompt that comes next, from 0."""
        return self._epoch

    def take(self, n: int) -> list[Prompt]:
        """The next n prompts, across as many borders of epochs as it takes."""
        taken: list[Prompt] = []
        while len(taken) < n:
            end = min(len(self._order), self._position + n - len(taken))
            taken += [self._prompts[i] for i in self._order[self._position : end]]
            self._position = end
            if end == len(self._order):
                self._epoch, self._position = self._epoch + 1, 0
                self._order = self._shuffled(self._epoch)
        return taken

    def state(self) -> dict[str, Any]:
        """The position, ready for JSON."""
        return {"epoch": self._epoch, "position": self._position, "seed": self._seed, "digest": self._digest}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on exactly where `state` was taken. Raises DataError for other prompts or another seed."""
        if state["digest"] != self._digest:
            raise DataError(
                "data.train: these are not the prompts of the checkpoint (ids, tokens or their order differ), so the "
                "run cannot go on exactly; bring back its data, tokenizer and template, or start a new run.folder"
            )
        if state["seed"] != self._seed:
            raise DataError(
                f"run.seed: the checkpoint's order was shuffled with {state['seed']}, not {self._seed}; set it back"
            )
        self._epoch, self._position = state["epoch"], state["position"]
        self._order = self._shuffled(self._epoch)

    def _shuffled(self, epoch: int) -> list[int]:
        # A text seeds through SHA-512, so neither Python's hash randomisation nor nearby seeds can tell.
        order = list(range(len(self._prompts)))
        random.Random(f"{self._seed}/{epoch}").shuffle(order)
        return order


class GroupStream(PromptStream):
    """The same order over groups, each known by its prompt's id."""

    def __init__(self, groups: Sequence[Group], seed: int) -> None:
        """Raises DataError where there are no groups or two share an id."""
        super().__init__([group.prompt for group in groups], seed)
        self._groups = {group.prompt.id: group for group in groups}
        self._digest = _digest_answers(self._digest, groups)

    def take(self, n: int) -> list[Group]:  # type: ignore[override]
        """The next n groups, across as many borders of epochs as it takes."""
        return [self._groups[prompt.id] for prompt in super().take(n)]


def _digest_answers(prompts: str, groups: Sequence[Group]) -> str:
    """Of the prompts, and of every answer's tokens and worth."""
    digest = hashlib.sha256(prompts.encode())
    for group in groups:
        for rollout, verdict in zip(group.rollouts, group.verdicts, strict=True):
            digest.update(f"{rollout.tokens}{rollout.mask}{verdict.score}{verdict.steps}{verdict.offset}\n".encode())
    return digest.hexdigest()


def _digest(prompts: Sequence[Prompt]) -> str:
    """Of ids, tokens, columns and order: another template or tokenizer makes another set of prompts, and another
    answer another set of verdicts.
    """
    digest = hashlib.sha256()
    for prompt in prompts:
        # What is no JSON has no text that is the same in the next process.
        columns = json.dumps(dict(prompt.columns), skipkeys=True, default=lambda value: type(value).__name__)
        digest.update(f"{prompt.id}\n{prompt.tokens}\n{columns}\n".encode())
    return digest.hexdigest()
