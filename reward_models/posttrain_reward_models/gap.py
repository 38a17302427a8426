"""A reward model that reads a response with another one before it, as a grader that compares two."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from posttrain.models.scoring import score_tokens
from posttrain_reward_models.classifier import check_dtype
from posttrain_reward_models.measured import Demand, Measured, Served, measured, serve
from posttrain_reward_models.reading import Messages

IMPROVE = "Write a better response."
"""What the user says between the two, in training as here."""
REMEMBERED = 1024
"""Gaps that are kept: each pair is asked for in both orders."""


@dataclass(eq=False)
class Gap:
    """P(completion is better) = sigma((r(completion | other) - r(other | completion)) / 2), where r(y | z) is how much
    better y is than z by a model trained with z in the conversation before y (PIT, 2310.00898).

    The two orders add up to 1 whatever the model says. The question is the row's `prompt`, `question`, `problem` or
    `messages`. Raises ValueError or ModelError for a model that is not there, was not measured, or was too often wrong.
    """

    path: str
    """A run's folder (its newest checkpoint), a model folder, or a hub id."""
    system: str | None = None
    """The system message that the training data's source put first."""
    minimum_accuracy: float = 0.5
    allow_unmeasured: bool = False
    device: str = "auto"
    dtype: Literal["bfloat16", "float16", "float32", "float64"] = "bfloat16"

    memory_limit: ClassVar[int | None] = None
    alone = True
    _found: Measured = field(init=False, repr=False)
    _served: Served | None = field(init=False, repr=False, default=None)
    _gaps: dict[tuple[int, ...], float] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        check_dtype(self.dtype)
        self._found = measured(self.path, Demand(self.minimum_accuracy, self.allow_unmeasured))

    def prepare(self) -> None:
        """Load the model. Raises ValueError where it does not say what its card says it said."""
        self._served = serve(self._found, self.dtype, self.device)

    def __call__(self, completion: str, other: str, **columns: Any) -> float:
        """A probability. Raises ValueError where the row has no question, ModelError where the model cannot read it."""
        asked = question(columns, self.system)
        better, worse = self._say([(asked, other, completion), (asked, completion, other)])
        return 0.5 + 0.5 * math.tanh((better - worse) / 4)

    def _say(self, cases: Sequence[tuple[Messages, str, str]]) -> list[float]:
        """What the model says of (question, what was said before, response): the mean over its heads."""
        if self._served is None:
            self.prepare()
        assert self._served is not None
        ids = [self._served.reader.render(in_context(*case[:2]), case[2]).ids for case in cases]
        missing = [i for i in dict.fromkeys(ids) if i not in self._gaps]
        if len(self._gaps) + len(missing) > REMEMBERED:
            self._gaps.clear()
            missing = list(dict.fromkeys(ids))
        if missing:
            said = score_tokens(self._served.model, missing).mean(-1).tolist()
            self._gaps.update(zip(missing, said, strict=True))
        return [self._gaps[i] for i in ids]


def in_context(asked: Messages, before: str) -> list[Mapping[str, str]]:
    """The conversation after which a better response is due."""
    return [*asked, {"role": "assistant", "content": before}, {"role": "user", "content": IMPROVE}]


def question(columns: Mapping[str, Any], system: str | None = None) -> list[Mapping[str, str]]:
    """The messages that a row asks with. Raises ValueError where no column has any."""
    first = [{"role": "system", "content": system}] if system is not None else []
    for name in ("prompt", "question", "problem", "messages"):
        value = columns.get(name)
        if isinstance(value, str) and value:
            return [*first, {"role": "user", "content": value}]
        if isinstance(value, Sequence) and value and not isinstance(value, str) and "role" in value[0]:
            ends = name == "messages" and value[-1]["role"] == "assistant"
            return [*first, *(value[:-1] if ends else value)]
    raise ValueError(
        f"no question among the columns ({', '.join(columns) or 'none'}): needs prompt, question, problem or messages; "
        "rename with the source's `columns`, as in columns: {question: text}"
    )
