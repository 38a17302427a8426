"""Verdicts to rewards: shaping, scaling and penalties, token by token, so that they add up to the response's score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from posttrain.algorithms.bound import formula
from posttrain.algorithms.row import Algorithm
from posttrain.algorithms.set_loss import shared_out
from posttrain.algorithms.state import RowState, Terms
from posttrain.metrics import Report
from posttrain.objectives import penalties, values, whitening
from posttrain.objectives.returns import Trajectory
from posttrain.types import Annotation, Group, Rollout, Verdict

Members = Sequence[tuple[int, int, Group, Annotation]]
"""The graded responses of one group: (index of the group, index in it, the group, what the learner noted)."""


@dataclass(frozen=True)
class Marked:
    """One graded response with its rewards `[A]`, one per token the policy said. Scores are fp64, so that equal
    stays equal.
    """

    index: int
    """Of its group in the step."""
    i: int
    group: Group
    annotation: Annotation
    rewards: Tensor
    learnt: bool
    """Whether it is learnt from, not only compared."""

    @property
    def rollout(self) -> Rollout:
        return self.group.rollouts[self.i]

    @property
    def verdict(self) -> Verdict:
        return self.group.verdicts[self.i]

    @cached_property
    def score(self) -> Tensor:
        """`[]`: all rewards together."""
        return torch.tensor(float(sum(self.rewards.tolist())), dtype=torch.float64)

    def noted(self, name: str) -> Tensor | None:
        """What the learner noted of this response under a name of `Annotation`."""
        noted = getattr(self.annotation, name)
        return None if noted is None else noted[self.i]

    def parts(self, names: Sequence[str]) -> Tensor:
        """`[P]` scores of single graders, NaN where one had nothing to say."""
        found = [self.verdict.parts.get(name) for name in names]
        return torch.tensor([float("nan") if part is None else part for part in found], dtype=torch.float64)

    def values(self, algorithm: Algorithm) -> Tensor:
        """`[A + 1]` values of the states before each token the policy said, and after the last one."""
        outputs = self.noted("values")
        assert outputs is not None
        said = torch.tensor((*self.rollout.mask, True))
        return read_values(algorithm, outputs)[said].double()

    def trajectory(self, algorithm: Algorithm) -> Trajectory:
        """What a token-level credit cell reads. A response that ended by itself has nothing to expect after it."""
        said = torch.tensor(self.rollout.mask)
        after, own = torch.zeros((), dtype=torch.float64), None
        if self.annotation.values is not None:
            read = self.values(algorithm)
            own = read[:-1]
            if algorithm.truncated.kind == "bootstrap" and self.rollout.truncated:
                after = read[-1]
        log_ratio = None
        if algorithm.needs.trainer:
            previous = self.noted("previous")
            assert previous is not None
            assert self.rollout.logprobs is not None
            log_ratio = (previous.double() - torch.tensor(self.rollout.logprobs, dtype=torch.float64))[said]
        return Trajectory(self.rewards, own, after, log_ratio, self.ends() if self.verdict.steps else None)

    def ends(self) -> Tensor:
        """`[A]` bool: tokens that end a step of the verdict; the last token always ends one."""
        out = torch.zeros(self.rollout.length, dtype=torch.bool)
        if len(out):
            out[[at for at, _ in self.verdict.steps]] = True
            out[-1] = True
        return out


def read_values(algorithm: Algorithm, outputs: Tensor) -> Tensor:
    """`[N, B]` outputs of the critic to `[N]` values."""
    if algorithm.critic.kind == "frozen_probability":
        return values.read_squared(outputs).sigmoid()
    if algorithm.critic.kind == "hl_gauss":
        return values.read_hl_gauss(outputs, algorithm.critic["value_low"], algorithm.critic["value_high"])
    return values.read_squared(outputs)


def mark(
    algorithm: Algorithm, groups: Sequence[Members], terms: Terms, state: RowState
) -> tuple[list[list[Marked]], Report]:
    """Every graded response with its rewards; scaling sees the whole step, and its statistics go into `state`."""
    plain = [[_outcome(algorithm, group, i, terms) for _, i, group, _ in members] for members in groups]
    scaled = _scaled(algorithm, plain, state)
    out, report = [], Report()
    for members, scores in zip(groups, scaled, strict=True):
        row = []
        for (index, i, group, annotation), (score, steps) in zip(members, scores, strict=True):
            rollout = group.rollouts[i]
            rewards = _placed(rollout, score, steps)
            if algorithm.kl.kind == "in_reward":
                estimate = _kl(algorithm, rollout, annotation, i, terms)
                rewards = rewards - (state.kl_coefficient or 0.0) * estimate
                report += Report.mean("learn/kl", float(estimate.sum()), rollout.length)
            learnt = not (algorithm.truncated.kind == "mask" and rollout.truncated)
            row.append(Marked(index, i, group, annotation, rewards, learnt))
        out.append(row)
    return out, report


def _outcome(algorithm: Algorithm, group: Group, i: int, terms: Terms) -> tuple[float, tuple[tuple[int, float], ...]]:
    """A verdict's score with what its length adds, and the shares of it that belong to single tokens."""
    rollout, verdict = group.rollouts[i], group.verdicts[i]
    assert verdict.score is not None
    score = verdict.score + formula(algorithm.shaping)(rollout.length, terms.max_tokens)
    if algorithm.truncated.kind == "penalise" and rollout.truncated:
        score -= algorithm.truncated["truncated_penalty"]
    return score, verdict.steps


def _scaled(
    algorithm: Algorithm, groups: Sequence[Sequence[tuple[float, tuple[tuple[int, float], ...]]]], state: RowState
) -> list[list[tuple[float, tuple[tuple[int, float], ...]]]]:
    """Scores through the row's scaling cell; step rewards are scaled by the same factor, so they stay shares of it."""
    flat = torch.tensor([score for row in groups for score, _ in row], dtype=torch.float64)
    if algorithm.scaling.kind == "none" or not len(flat):
        return [list(row) for row in groups]
    if algorithm.scaling.kind == "batch":
        scaled = whitening.batch_norm(flat)
        # Where all scores are equal there is no scale, and nothing to share out.
        factor = 1 / float(flat.std(unbiased=False)) if bool(scaled.any()) else 0.0
    else:
        sums = whitening.running(int(state.reward_count), state.reward_mean, state.reward_square, flat)
        state.reward_count, state.reward_mean, state.reward_square = sums
        scaled = whitening.running_scale(flat, *sums)
        factor = float(whitening.running_scale(torch.ones((), dtype=flat.dtype), *sums))
    bound = algorithm.scaling["reward_clip"]
    numbers = iter(scaled.clamp(-bound, bound).tolist())
    return [[(next(numbers), tuple((t, r * factor) for t, r in steps)) for _, steps in row] for row in groups]


def _placed(rollout: Rollout, score: float, steps: Sequence[tuple[int, float]]) -> Tensor:
    """`[A]`: step rewards where they belong, the rest of the score on the last token."""
    rewards = torch.zeros(rollout.length, dtype=torch.float64)
    if not len(rewards):
        return rewards
    rest = score
    for at, reward in steps:
        rewards[at] += reward
        rest -= reward
    rewards[-1] += rest
    return rewards


def _kl(algorithm: Algorithm, rollout: Rollout, annotation: Annotation, i: int, terms: Terms) -> Tensor:
    """`[A]`: the estimate of KL(policy || reference) at each token the policy said."""
    said = torch.tensor(rollout.mask)
    assert annotation.reference is not None
    assert rollout.logprobs is not None
    policy = (
        torch.tensor(rollout.logprobs, dtype=torch.float64) if annotation.previous is None else annotation.previous[i]
    )
    estimate = getattr(penalties, algorithm.kl["kl_estimator"])(
        policy.double()[:, None], annotation.reference[i].double()
    )
    return shared_out(estimate, terms.references)[said]
