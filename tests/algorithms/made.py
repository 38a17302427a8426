"""Groups made by hand, and what a learner would note about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from posttrain.algorithms.choice import choose
from posttrain.algorithms.credit import assign_credit
from posttrain.algorithms.row import Algorithm
from posttrain.algorithms.state import RowState, Terms
from posttrain.algorithms.table import ALGORITHMS
from posttrain.types import Annotation, Group, Rollout, Sample, Verdict
from tests.tiny import prompt

POLICIES = [name for name, row in ALGORITHMS.items() if not row.needs.scorer]
"""Rows that assign credit; a reward model has labels instead."""
TERMS = Terms(max_tokens=10, weights={"right": 1.0, "short": 0.5, "silent": 0.0}, references=(0.25, 0.75))


def rollout(
    mask: Sequence[bool], first: int = 2, cut: bool = False, text: str = "", seed: int | None = None
) -> Rollout:
    """A response to a prompt of two tokens; `mask` says which of its own tokens the policy said."""
    said = (False, False, *mask)
    return Rollout(
        tokens=(first, 3, *range(4, 4 + len(mask))),
        mask=said,
        text=text,
        finish_reason="length" if cut else "stop",
        logprobs=tuple(-1.0 if m else 0.0 for m in said),
        versions=tuple(0 if m else -1 for m in said),
        seed=seed,
    )


def verdict(score: float | None, steps: tuple[tuple[int, float], ...] = (), short: float | None = None) -> Verdict:
    """A score with its two graders' parts: what was right, and whether it was short."""
    if score is None:
        return Verdict(None, "error", reason="died")
    return Verdict(
        score, parts={"right": score, "short": short}, steps=steps, offset=None if short else 0.4 - 0.9 * score
    )


def group(
    *scores: float | None,
    lengths: Sequence[int] = (),
    name: int = 2,
    cut: Sequence[int] = (),
    steps: Mapping[int, tuple[tuple[int, float], ...]] | None = None,
    greedy: Verdict | None = None,
) -> Group:
    """Responses of three tokens, or of `lengths`, to the prompt `name`; `cut` were stopped at the limit."""
    lengths = lengths or (3,) * len(scores)
    rollouts = tuple(rollout((True,) * n, name, i in cut, f"answer {i}", seed=i) for i, n in enumerate(lengths))
    verdicts = tuple(
        verdict(s, (steps or {}).get(i, ()), short=1.0 / n)
        for i, (s, n) in enumerate(zip(scores, lengths, strict=True))
    )
    return Group(prompt([name, 3]), rollouts, verdicts, greedy)


def noted(algorithm: Algorithm, one: Group) -> Annotation:
    """What the row needs of every response: numbers that depend on the response alone."""
    needs = algorithm.needs

    def each(make: Any) -> list[Tensor]:
        return [make(i, len(r.tokens)) for i, r in enumerate(one.rollouts)]

    def numbers(*shape: int, low: float = -2.0, high: float = -0.5) -> Tensor:
        count = int(torch.tensor(shape).prod())
        return torch.linspace(low, high, count, dtype=torch.float64).reshape(shape)

    return Annotation(
        previous=each(lambda i, n: numbers(n, high=-0.5 - 0.01 * n)) if needs.trainer else None,
        reference=each(lambda i, n: numbers(n, 2, high=-1.0 - 0.1 * n)) if needs.reference else None,
        values=each(lambda i, n: numbers(n + 1, 1, low=-0.5, high=0.1 * n)) if needs.critic else None,
        uniform=each(lambda i, n: numbers(n)) if needs.uniform else None,
    )


def credited(
    name: str,
    groups: Sequence[Group],
    annotations: Sequence[Annotation] | None = None,
    state: RowState | None = None,
    terms: Terms = TERMS,
    **changes: Any,
) -> tuple[list[Sample], dict[str, float]]:
    """The samples of a step, and what is reported of it."""
    algorithm = choose(name, changes)
    annotations = [noted(algorithm, g) for g in groups] if annotations is None else annotations
    samples, report = assign_credit(algorithm, groups, annotations, terms, state or RowState.of(algorithm))
    return samples, report.values()


def said(sample: Sample, values: Tensor | None = None) -> list[float]:
    """The advantages, or other values, at the tokens the policy said."""
    return (sample.advantages if values is None else values)[torch.tensor(sample.rollout.mask)].tolist()
