"""What a policy or a reward model makes of held-out answers: figures with their intervals."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from posttrain.algorithms.row import Algorithm
from posttrain.algorithms.scorer_loss import read_scores
from posttrain.algorithms.set_loss import shared_out
from posttrain.learner import Learner
from posttrain.learner.scorer import ScorerLearner
from posttrain.metrics import Report
from posttrain.metrics.statistics import wilson
from posttrain.types import Group


class HeldOutAnswers:
    """Measures a policy on groups of the data: how likely the best answers are, and, of pairs, how often the better one
    has the larger implicit reward (its log-ratio to the reference) and the larger log-probability per token.
    """

    def __init__(
        self, learner: Learner, algorithm: Algorithm, groups: Sequence[Group], references: Sequence[float]
    ) -> None:
        self.learner, self.algorithm, self.groups, self.references = learner, algorithm, groups, references

    def __call__(self) -> tuple[Report, Sequence[Group]]:
        rollouts = [r for group in self.groups for r in group.rollouts]
        own = iter(self._sums(self.learner.logprobs(rollouts)))
        other = None
        if self.algorithm.needs.reference:
            found = self.learner.logprobs(rollouts, "reference")
            other = iter(self._sums([shared_out(t.double(), self.references) for t in found]))
        report, implicit, likelier = Report(), [], []
        for group in self.groups:
            logprobs = [next(own) for _ in group.rollouts]
            lengths = [max(r.length, 1) for r in group.rollouts]
            scores = [v.score or 0.0 for v in group.verdicts]
            best, worst = scores.index(max(scores)), scores.index(min(scores))
            if len(scores) > 1 or scores[best] > 0:
                report += Report.mean("eval/nll", -logprobs[best], lengths[best])
            if other is not None:
                ratios = [p - next(other) for p in logprobs]
            if scores[best] == scores[worst]:
                continue
            likelier.append(_right(logprobs[best] / lengths[best] - logprobs[worst] / lengths[worst]))
            if other is not None:
                implicit.append(_right(ratios[best] - ratios[worst]))
                report += Report.mean("eval/margin", ratios[best] - ratios[worst], 1)
        return report + share("preferred", implicit) + share("likelier", likelier), ()

    def _sums(self, logprobs: Sequence[Tensor]) -> list[float]:
        return [float(t.double().sum()) for t in logprobs]


class HeldOutPairs:
    """Measures a reward model on groups of the data: how often the better answer scores higher."""

    def __init__(self, learner: ScorerLearner, algorithm: Algorithm, groups: Sequence[Group]) -> None:
        self.learner, self.algorithm, self.groups = learner, algorithm, groups

    def scores(self) -> list[list[list[float]]]:
        """Of every group's responses, what each member of the ensemble says."""
        outputs = self.learner.outputs([r for group in self.groups for r in group.rollouts])
        read = iter(read_scores(self.algorithm, torch.stack(outputs)).double().tolist())
        return [[next(read) for _ in group.rollouts] for group in self.groups]

    def __call__(self) -> tuple[Report, Sequence[Group]]:
        right, report = [], Report()
        for group, members in zip(self.groups, self.scores(), strict=True):
            said = [sum(m) / len(m) for m in members]
            worth = [v.score or 0.0 for v in group.verdicts]
            best, worst = worth.index(max(worth)), worth.index(min(worth))
            if self.algorithm.needs.min_group == 1 and not self.algorithm.needs.steps:
                squares = sum((s - w) ** 2 for s, w in zip(said, worth, strict=True))
                report += Report.mean("eval/squared_error", squares, len(said))
            if worth[best] > worth[worst]:
                right.append(_right(said[best] - said[worst]))
                report += Report.mean("eval/margin", said[best] - said[worst], 1)
        return report + share("preferred", right), ()


def share(name: str, right: Sequence[float]) -> Report:
    """A share with Wilson's interval; nothing where nothing was compared."""
    if not right:
        return Report()
    low, high = wilson(sum(right), len(right))
    return (
        Report.value(f"eval/{name}", sum(right) / len(right))
        + Report.value(f"eval/{name}_low", low)
        + Report.value(f"eval/{name}_high", high)
        + Report.value("eval/pairs", float(len(right)))
    )


def _right(margin: float) -> float:
    return 1.0 if margin > 0 else 0.5 if margin == 0 else 0.0
