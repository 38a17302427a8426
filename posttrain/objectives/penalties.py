"""KL(policy || reference): estimators from the tokens the policy drew, the exact one, and what sets coefficients.

With d = reference - policy log-probability: k1 = -d, k2 = d^2 / 2, k3 = exp(d) - d - 1.
As a *value* k1 and k3 are unbiased. As a *loss* only k2 has the gradient of the true KL; k1's expected gradient is 0,
and k3's is that of KL(reference || policy). As a *reward* (its value times grad log pi) only k1 has the gradient of the
true KL. k3's is the true one minus that of KL(reference || policy); like k2's it is almost nothing close to the
reference, and its sign is right by chance: a reward that is even in d does not tell too likely from too unlikely.
"""

import torch
from torch import Tensor


def k1(policy: Tensor, reference: Tensor) -> Tensor:
    """`[N]`: -d. Unbiased value, high variance; the true gradient as a reward, none at all as a loss."""
    return policy - reference


def k2(policy: Tensor, reference: Tensor) -> Tensor:
    """`[N]`: d^2 / 2. Biased value, unbiased gradient of KL(policy || reference)."""
    return (policy - reference).square() / 2


def k3(policy: Tensor, reference: Tensor) -> Tensor:
    """`[N]`: exp(d) - d - 1. Unbiased, non-negative, low variance (the KL term of GRPO, 2402.03300, eq. 4)."""
    d = reference - policy
    return d.exp() - d - 1


def exact(policy_logits: Tensor, reference_logits: Tensor) -> Tensor:
    """`[M, V]` logits twice to `[M]`: sum over the vocabulary of p (log p - log q), in value and in gradient.

    It holds several `[M, V]` tables at once. A token that the policy cannot say (logit -inf) adds 0.
    """
    policy, reference = policy_logits.log_softmax(-1), reference_logits.log_softmax(-1)
    difference = torch.where(policy.isneginf(), torch.zeros_like(policy), policy - reference)
    return (policy.exp() * difference).sum(-1)


def adaptive_coefficient(coefficient: float, measured: float, target: float, horizon: float, count: int) -> float:
    """The next KL coefficient: times 1 + clip(measured / target - 1, -.2, .2) count / horizon (1909.08593, sec. 2.2).

    `count` is what was trained on since the last call, in the unit of `horizon`. More than a horizon counts as one,
    so that the coefficient never changes sign.
    """
    error = min(max(measured / target - 1, -0.2), 0.2)
    return coefficient * (1 + error * min(count / horizon, 1.0))


def adaptive_entropy(coefficient: float, entropy: float, target: float, rate: float, largest: float) -> float:
    """The next entropy coefficient: up by `rate` while entropy < target, else down, in [0, largest] (2505.22312).

    Skywork-OR1 also leaves the bonus out of every step whose entropy is above the target; the caller does that.
    """
    step = rate if entropy < target else -rate
    return min(max(coefficient + step, 0.0), largest)
