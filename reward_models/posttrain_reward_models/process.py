"""A process reward model: how likely each step of a response is right, as the step's own share of the score."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar, Literal

from posttrain.errors import PosttrainError
from posttrain.models.scoring import check_readable, read_head, states
from posttrain.types import Verdict
from posttrain_reward_models.classifier import check_dtype
from posttrain_reward_models.measured import Demand, Measured, Served, measured, serve
from posttrain_reward_models.reading import Read, Response, responses

Reduce = Literal["min", "product", "last", "mean"]
Transform = Literal["clip", "delta"]

REDUCTIONS: dict[str, Callable[[Sequence[float]], float]] = {
    "min": min,
    "product": math.prod,
    "last": lambda probabilities: probabilities[-1],
    "mean": lambda probabilities: math.fsum(probabilities) / len(probabilities),
}
TRANSFORMS = ("clip", "delta")


@dataclass(eq=False)
class Process:
    """Reads sigma of the model's output after each step's last token, p_1 to p_K (2305.20050); heads are averaged.

    A step ends with the token in which `step_separator` is complete, the last one with the response. Without a
    transform the score is the reduced p, and each step's share is by how much it changes what the steps up to it are
    reduced to. With one the shares are the transformed p, and the score is their sum (2410.15115): give the reward of
    the answer as another grader. Part `steps` is K: shares that grow with it are an invitation to repeat steps.

    Raises ValueError or ModelError for a model that is not there, was not measured, or was too often wrong.
    """

    path: str
    """A run's folder (its newest checkpoint), a model folder, or a hub id."""
    reduce: Reduce | None = None
    """min where empty; not read with a transform."""
    step_separator: str = "\n"
    transform: Transform | Sequence[Transform] | None = None
    """clip: min(p - clip_eta, 0), so that no step earns anything. delta: p_k - p_{k + 1}, the step before the last
    keeps its p and the last has 0, so that what is still to come from a step on is its p, whatever steps are repeated.
    Both: clip, then delta.
    """
    clip_eta: float = 0.5
    minimum_accuracy: float = 0.5
    allow_unmeasured: bool = False
    device: str = "auto"
    dtype: Literal["bfloat16", "float16", "float32", "float64"] = "bfloat16"

    memory_limit: ClassVar[int | None] = None
    alone = True
    _found: Measured = field(init=False, repr=False)
    _served: Served | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        check_dtype(self.dtype)
        if not self.step_separator:
            raise ValueError("step_separator: empty, so every token would end a step; give the text between steps")
        self._transforms = [self.transform] if isinstance(self.transform, str) else list(self.transform or ())
        for name in self._transforms:
            if name not in TRANSFORMS:
                raise ValueError(f"transform: {name!r} is none of {', '.join(TRANSFORMS)}")
        if self._transforms and self.reduce is not None:
            raise ValueError(f"reduce: {self.reduce}, but with a transform the score is the steps' sum; leave one out")
        if self.reduce not in (None, *REDUCTIONS):
            raise ValueError(f"reduce: {self.reduce!r} is none of {', '.join(REDUCTIONS)}")
        self._found = measured(self.path, Demand(self.minimum_accuracy, self.allow_unmeasured))

    def prepare(self) -> None:
        """Load the model. Raises ValueError where it does not say what its card says it said."""
        self._served = serve(self._found, self.dtype, self.device)

    def __call__(
        self,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids: Sequence[Sequence[int]],
        prompt_ids: Sequence[Sequence[int] | None],
        prompt_texts: Sequence[str] | None = None,
        **columns: Any,
    ) -> list[Verdict]:
        """One verdict per response; an error where the sampled ids are not this model's, unparsable without words."""
        if self._served is None:
            self.prepare()
        assert self._served is not None
        model = self._served.model
        asked = responses(prompts, completions, completion_ids, prompt_ids, prompt_texts)
        reads = [self._read(response) for response in asked]
        readable = [read for read in reads if not isinstance(read, Verdict)]
        found = iter(
            states(model, [read.ids for read, _ in readable], [[r.start + e for e in ends] for r, ends in readable])
        )
        return [
            read
            if isinstance(read, Verdict)
            else self._verdict(read[1], read_head(model, next(found)).sigmoid().mean(-1).tolist())
            for read in reads
        ]

    def _read(self, response: Response) -> tuple[Read, list[int]] | Verdict:
        assert self._served is not None
        try:
            read = self._served.reader.sampled(response)
            check_readable(self._served.model, read.ids)
        except (ValueError, PosttrainError) as error:
            return Verdict(None, "error", reason=str(error))
        texts = [self._served.reader.tokenizer.decode([t], skip_special_tokens=True) for t in read.ids[read.start :]]
        ends = step_ends(texts, self.step_separator)
        return (read, ends) if ends else Verdict(None, "unparsable", reason="the response has no step with words in it")

    def _verdict(self, ends: Sequence[int], probabilities: Sequence[float]) -> Verdict:
        if self._transforms:
            shares = transformed(probabilities, self._transforms, self.clip_eta)
            score = math.fsum(shares)
        else:
            reduce = REDUCTIONS[self.reduce or "min"]
            reached = [0.0, *(reduce(probabilities[: k + 1]) for k in range(len(probabilities)))]
            shares = [after - before for before, after in pairwise(reached)]
            score = reached[-1]
        parts = {"steps": float(len(ends)), "lowest": min(probabilities), "last": probabilities[-1]}
        return Verdict(score, parts=parts, steps=tuple(zip(ends, shares, strict=True)))


def step_ends(texts: Sequence[str], separator: str) -> list[int]:
    """Texts of a response's tokens to the index of each step's last token.

    A stretch without words is no step of its own: it begins the next one, or ends the last. Steps that end in one
    token are one.
    """
    ends: list[int] = []
    since = ""
    for i, text in enumerate(texts):
        *ended, since = (since + text).split(separator)
        if any(step.strip() for step in ended):
            ends.append(i)
    last = len(texts) - 1
    if since.strip() and last not in ends:
        ends.append(last)
    elif ends:
        ends[-1] = last
    return ends


def transformed(probabilities: Sequence[float], transforms: Sequence[str], clip_eta: float) -> list[float]:
    """Probabilities of K steps to their rewards, whose sum no number of steps can drive up (2410.15115)."""
    rewards = list(probabilities)
    if "clip" in transforms:
        rewards = [min(reward - clip_eta, 0.0) for reward in rewards]
    if "delta" in transforms:
        scored = rewards[:-1]
        rewards = [a - b for a, b in pairwise(scored)] + scored[-1:] + [0.0]
    return rewards
