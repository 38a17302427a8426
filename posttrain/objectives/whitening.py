"""Advantages brought to one scale over all action tokens of a step, and rewards over all steps so far.

`[N]` are the action tokens of the whole step, not of a micro-batch: a mean over a part would depend on the cut. Every
token weighs the same, so a long response moves the mean and the spread more than a short one.
"""

import math

from torch import Tensor

from posttrain.objectives.advantages import group_mean, group_norm


def none(advantages: Tensor) -> Tensor:
    """`[N]` to `[N]`: as they are."""
    return advantages


def batch_norm(advantages: Tensor, whiten_floor: float = 1e-8) -> Tensor:
    """`[N]` to `[N]`: (A - mean(A)) / std(A) over the tokens of the step (REINFORCE++, 2501.03262).

    The standard deviation is the population's. Equal values give exactly 0, and so do values whose spread is at most
    `whiten_floor` of the largest of them. Invariant to scale and shift. The shift means that a response above its
    baseline can end up below 0.
    """
    return group_norm(advantages, std_floor=whiten_floor) if len(advantages) else advantages


def batch_scale(advantages: Tensor, whiten_floor: float = 1e-8) -> Tensor:
    """`[N]` to `[N]`: A / std(A) over the tokens of the step; no advantage changes its sign.

    Values whose spread (about their mean) is at most `whiten_floor` of the largest of them have no scale to divide by
    and stay as they are.
    """
    if not len(advantages):
        return advantages
    std = group_mean(advantages).square().mean().sqrt()
    if bool(std <= whiten_floor * advantages.abs().max()):
        return advantages
    return advantages / std


def running(count: int, mean: float, square: float, scores: Tensor) -> tuple[int, float, float]:
    """Count of scores, their mean, and the sum of squared distances to it, with `[S]` more of them; starts at 0, 0, 0.

    The parallel form of Welford's update (Chan et al. 1979): the result does not depend on how scores were cut into
    steps, and nothing is lost where the mean is large against the spread. Raises ValueError for a score that is not
    finite, because it would never leave the sums again.
    """
    if not bool(scores.isfinite().all()):
        raise ValueError("a score is not finite; leave responses without a verdict out before the running scale")
    if not len(scores):
        return count, mean, square
    values = scores.detach().double()
    more, own = len(values), float(values.mean())
    total, gap = count + more, own - mean
    spread = float((values - own).square().sum())
    return total, mean + gap * more / total, square + spread + gap * gap * count * more / total


def running_scale(scores: Tensor, count: int, mean: float, square: float, whiten_floor: float = 1e-8) -> Tensor:
    """`[S]` to `[S]`: scores / std of all scores so far, from the sums of `running` (PPO-max, 2307.04964).

    Scaled, not centred: 0 stays 0 and no score changes its sign. The standard deviation is the population's; it counts
    as 1 until two scores were seen, and as long as all were equal (a spread of at most `whiten_floor` of their mean).
    """
    std = math.sqrt(square / max(count, 1))
    return scores if std <= whiten_floor * abs(mean) else scores / std
