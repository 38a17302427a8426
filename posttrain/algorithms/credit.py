"""Groups to Samples: who gets how much credit, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from posttrain.algorithms.bound import formula
from posttrain.algorithms.rewards import Marked, mark
from posttrain.algorithms.row import Algorithm
from posttrain.algorithms.selection import kept
from posttrain.algorithms.state import RowState, Terms
from posttrain.errors import TrainingError
from posttrain.metrics import Report
from posttrain.types import Annotation, Group, Sample


@dataclass(frozen=True)
class _Credited:
    """One graded response, its advantages and returns over what the policy said, `[A]` each."""

    marked: Marked
    advantages: Tensor
    returns: Tensor | None = None


def assign_credit(
    algorithm: Algorithm,
    groups: Sequence[Group],
    annotations: Sequence[Annotation],
    terms: Terms,
    state: RowState | None = None,
) -> tuple[list[Sample], Report]:
    """Groups and what the learner noted about them to Samples with per-token advantages `[T]`.

    A response without a score leaves its group and the group's baseline; a group with fewer graded responses than
    the row compares teaches nothing. Both are counted in the Report. `state` moves on by one step.
    """
    state = RowState.of(algorithm) if state is None else state
    report, usable = Report(), []
    for index, (group, annotation) in enumerate(zip(groups, annotations, strict=True)):
        graded = [i for i, verdict in enumerate(group.verdicts) if verdict.score is not None]
        report += Report.mean("learn/ungraded_fraction", len(group.verdicts) - len(graded), len(group.verdicts))
        enough = len(graded) >= algorithm.needs.min_group
        report += Report.mean("learn/unusable_groups", float(not enough), 1)
        if enough:
            usable.append([(index, i, group, annotation) for i in graded])
    marked, about = mark(algorithm, usable, terms, state)
    report += about
    try:
        credited = _credit(algorithm, marked, terms, state)
    except ValueError as error:
        raise TrainingError(f"algorithm.credit: {algorithm.credit.kind}: {error}") from None
    for members in credited:
        silent = not any(bool(c.advantages.any()) for c in members)
        report += Report.mean("learn/zero_advantage_groups", float(silent), 1)
    chosen = [c for members in credited for c in kept(algorithm, members, lambda c: c.marked)]
    return [_sample(algorithm, c) for c in _whitened(algorithm, chosen)], report


def _credit(
    algorithm: Algorithm, groups: Sequence[Sequence[Marked]], terms: Terms, state: RowState
) -> list[list[_Credited]]:
    """The row's credit cell over all groups, at the level it works on."""
    credit, level = formula(algorithm.credit), algorithm.credit.entry.level
    flat = [m for members in groups for m in members]
    if not flat:
        return []
    if level == "token":
        return [[_Credited(m, *credit(m.trajectory(algorithm))) for m in members] for members in groups]
    if level == "step":
        scores = torch.stack([m.score for m in flat])
        of = torch.tensor([m.index for m in flat])
        advantages = iter(credit(scores, of))
        return [[_even(m, next(advantages)) for m in members] for members in groups]
    out = [
        [_even(m, a) for m, a in zip(members, _in_group(algorithm, members, terms, state), strict=True)]
        for members in groups
    ]
    if "baseline" in algorithm.credit.entry.takes:
        mean, decay = float(torch.stack([m.score for m in flat]).mean()), algorithm.credit["baseline_decay"]
        state.baseline = mean if state.baseline is None else decay * state.baseline + (1 - decay) * mean
    return out


def _in_group(algorithm: Algorithm, members: Sequence[Marked], terms: Terms, state: RowState) -> Tensor:
    """`[G]` advantages of one group's graded responses."""
    credit, takes = formula(algorithm.credit), algorithm.credit.entry.takes
    scores, inputs = torch.stack([m.score for m in members]), []
    if "weights" in takes:
        names = [name for name, weight in terms.weights.items() if weight]
        scores = torch.stack([m.parts(names) for m in members])
        # A grader that had nothing to say of a response counts as the others' mean, which is no contrast.
        scores = torch.where(scores.isnan(), scores.nanmean(0).nan_to_num(0.0), scores)
        inputs.append(torch.tensor([terms.weights[name] for name in names], dtype=scores.dtype))
    if "lengths" in takes:
        inputs.append(torch.tensor([m.rollout.length for m in members], dtype=scores.dtype))
    if "greedy" in takes:
        verdict = members[0].group.greedy
        if verdict is None or verdict.score is None:
            # Without its greedy response the group has no baseline, so it teaches nothing.
            return torch.zeros_like(scores)
        inputs.append(torch.tensor(verdict.score, dtype=scores.dtype))
    if "baseline" in takes:
        # Nothing is known before the first step, and the group's own mean would not be a baseline from outside it.
        inputs.append(torch.tensor(state.baseline or 0.0, dtype=scores.dtype))
    return credit(scores, *inputs)


def _even(marked: Marked, advantage: Tensor) -> _Credited:
    return _Credited(marked, advantage.expand(marked.rollout.length))


def _whitened(algorithm: Algorithm, credited: Sequence[_Credited]) -> list[_Credited]:
    """Advantages through the row's whitening cell, over every token of the step that is learnt from."""
    learnt = [c for c in credited if c.marked.learnt]
    if algorithm.whitening.kind == "none" or not learnt:
        return list(credited)
    flat = formula(algorithm.whitening)(torch.cat([c.advantages for c in learnt]))
    parts = iter(flat.split([len(c.advantages) for c in learnt]))
    return [replace(c, advantages=next(parts)) if c.marked.learnt else c for c in credited]


def _sample(algorithm: Algorithm, credited: _Credited) -> Sample:
    marked = credited.marked
    said = torch.tensor(marked.rollout.mask)

    def placed(values: Tensor) -> Tensor:
        return torch.zeros(len(said), dtype=torch.float64).masked_scatter(said, values.double())

    return Sample(
        rollout=marked.rollout,
        group=marked.index,
        mask=said if marked.learnt else torch.zeros_like(said),
        advantages=placed(credited.advantages) if marked.learnt else torch.zeros(len(said), dtype=torch.float64),
        score=float(marked.score),
        offset=marked.verdict.offset,
        previous=marked.noted("previous"),
        reference=marked.noted("reference"),
        returns=placed(credited.returns) if credited.returns is not None and algorithm.learns_values else None,
        values=None if marked.annotation.values is None else placed(marked.values(algorithm)[:-1]),
        uniform=marked.noted("uniform"),
        ends=placed(marked.ends()) if algorithm.needs.steps else None,
    )
