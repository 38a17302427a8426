"""From scores to what each response was worth: against the others of its group, a baseline from outside, or nothing.

`[G]` is one entry per response of a group, `[S]` one per response of a step. Where the baseline comes from the group
itself, equal scores give exactly 0.
"""

import math

import torch
from torch import Tensor


def score(scores: Tensor) -> Tensor:
    """`[G]` scores to `[G]` advantages: r, against no baseline (REINFORCE, Williams 1992)."""
    return scores


def ones(scores: Tensor) -> Tensor:
    """`[G]` scores to `[G]` advantages: 1 each. What a selection left over is learnt, whatever it scored."""
    return torch.ones_like(scores)


def group_mean(scores: Tensor) -> Tensor:
    """`[G]` scores to `[G]` advantages: r - mean(r) (Dr. GRPO, 2503.20783). Equal scores give exactly 0."""
    if bool((scores == scores[0]).all()):
        return torch.zeros_like(scores)
    return scores - scores.mean()


def group_norm(scores: Tensor, std_floor: float = 1e-6) -> Tensor:
    """`[G]` scores to `[G]` advantages: (r - mean(r)) / std(r) (GRPO, 2402.03300).

    The standard deviation is the population's, so that |A| <= sqrt(G - 1). Scores that differ by less than
    `std_floor` of their own size are noise of the arithmetic and give 0 instead of a division by almost nothing.
    """
    centred = group_mean(scores)
    std = centred.square().mean().sqrt()
    if bool(std <= std_floor * scores.abs().max()):
        return torch.zeros_like(scores)
    return centred / std


def leave_one_out(scores: Tensor) -> Tensor:
    """`[G]` scores to `[G]` advantages: r minus the mean of the others (RLOO, 2402.14740). Needs G >= 2."""
    return group_mean(scores) * len(scores) / (len(scores) - 1)


def length_weighted(scores: Tensor, lengths: Tensor) -> Tensor:
    """`[G]` scores and lengths to `[G]` advantages: r - sum(l r) / sum(l) (OPO, 2505.23585).

    The baseline of least variance if a response's squared gradient norm grows with its length. The advantages weighted
    by length add up to 0. Equal scores give exactly 0; equal lengths give `group_mean`.
    """
    weights = lengths.to(scores.dtype)
    if bool((scores == scores[0]).all()) or not bool(weights.any()):
        return group_mean(scores)
    return scores - (weights * scores).sum() / weights.sum()


def mean_scaled(scores: Tensor) -> Tensor:
    """`[G]` scores >= 0 to `[G]` advantages: (r - mean(r)) / mean(r), 0 where the mean is 0 (MaxRL, 2602.02710).

    For right-or-wrong scores, the expected gradient (averaged over the group) is sum_{k<G} grad pass@k / k: the first
    G - 1 terms of the gradient of log pass@1. A group without a right answer teaches nothing, which is why it is G - 1
    terms and not G. Invariant to the scale of the scores, not to a shift; -1 <= A <= G - 1.

    Raises ValueError for a negative score: the mean could then be 0 or change the sign.
    """
    if bool((scores < 0).any()):
        raise ValueError(
            f"mean_scaled divides by the mean of the group and needs scores >= 0, but one is {float(scores.min())!r}; "
            "shift the reward to start at 0, or use group_norm"
        )
    centred = group_mean(scores)
    if not bool(centred.any()):
        return centred
    return centred / scores.mean()


def pass_at_k(scores: Tensor, pass_k: int = 4) -> Tensor:
    """`[G]` scores to `[G]` advantages for the chance that one of k answers is right (2508.10751, analytical form).

    A score >= 1/2 counts as right. With W wrong answers, p = 1 - C(W, k) / C(G, k) and s = sqrt(p (1 - p)):
    right A = (1 - p) / s, wrong A = (1 - p - C(W - 1, k - 1) / C(G - 1, k - 1)) / s. This is the mean, over every
    set of k answers that holds the response, of that set's normalised reward. A group in which every set of k holds a
    right answer, or none does, gives exactly 0; with G = k there is one set only, so it needs G > k to teach anything.
    The advantages add up to 0, |A| <= sqrt(G / k - 1), and k = 1 is `group_norm` of right-or-wrong scores.

    Raises ValueError unless 1 <= pass_k <= G.
    """
    size, right = len(scores), scores >= 0.5
    if not 1 <= pass_k <= size:
        raise ValueError(
            f"pass_k is {pass_k}, but the group has {size} responses; sample more, or choose 1 <= pass_k < {size}"
        )
    wrong = size - int(right.sum())
    missed = math.comb(wrong, pass_k) / math.comb(size, pass_k)
    if missed in (0.0, 1.0):
        return torch.zeros_like(scores)
    std = math.sqrt(missed * (1 - missed))
    missed_with = math.comb(wrong - 1, pass_k - 1) / math.comb(size - 1, pass_k - 1)
    up, down = torch.full_like(scores, missed / std), torch.full_like(scores, (missed - missed_with) / std)
    return torch.where(right, up, down)


def component_norm(parts: Tensor, weights: Tensor, std_floor: float = 1e-6) -> Tensor:
    """`[G, P]` components of the reward and their `[P]` weights to `[G]` advantages: sum_p w_p `group_norm`(r_p).

    GDPO (2601.05242): no component is drowned by one with a larger spread. A component on which the group agrees adds
    exactly 0. The paper then normalises over the batch; that is not done here but by `whitening.batch_norm`.
    """
    normed = torch.stack([group_norm(part, std_floor) for part in parts.unbind(dim=1)], dim=1)
    return (normed * weights.to(normed.dtype)).sum(dim=1)


def from_greedy(scores: Tensor, greedy: Tensor) -> Tensor:
    """`[G]` scores and the `[]` score of the greedy response to `[G]` advantages: r - r(greedy) (ReMax, 2310.10505).

    The baseline does not depend on what was sampled, so the gradient stays unbiased with G = 1 as well.
    """
    return scores - greedy


def from_baseline(scores: Tensor, baseline: Tensor) -> Tensor:
    """`[G]` scores and a `[]` baseline to `[G]` advantages: r - b, b a moving average over earlier steps.

    Unbiased as long as b holds no score of this step.
    """
    return scores - baseline


def win_rate(scores: Tensor) -> Tensor:
    """`[G]` win rates within the own group to `[G]` advantages: s - 1/2 (SPO, 2401.04056).

    One half is the value of the symmetric game, whatever the group. The advantages add up to 0 if every pair of the
    group was compared and each comparison shares out 1.
    """
    return scores - 0.5


def batch_std(scores: Tensor, groups: Tensor, std_floor: float = 1e-6) -> Tensor:
    """`[S]` scores of a step and their `[S]` group ids to `[S]` advantages: (r - mean of the group) / std of all.

    Lite PPO (2508.08221). The standard deviation is the population's over every score of the step, about their common
    mean, so |A| <= sqrt(S) and a group that agrees gives exactly 0. `std_floor` is that of `group_norm`.
    """
    centred = torch.zeros_like(scores)
    for group in groups.unique():
        members = groups == group
        centred[members] = group_mean(scores[members])
    std = group_mean(scores).square().mean().sqrt()
    if bool(std <= std_floor * scores.abs().max()):
        return torch.zeros_like(scores)
    return centred / std
