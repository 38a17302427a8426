"""Per-token estimators of KL(policy || reference) from the log-probabilities of tokens the policy drew.

With d = reference - policy log-probability: k1 = -d, k2 = d^2 / 2, k3 = exp(d) - d - 1.
As a *value* (in the reward) k1 and k3 are unbiased. As a *loss* only k2 has the gradient of the true KL; k1's expected
gradient is 0, and k3's is that of KL(reference || policy).
"""

from torch import Tensor


def k1(policy: Tensor, reference: Tensor) -> Tensor:
    """`[N]`: -d. Unbiased value, high variance; as a loss its expected gradient is zero."""
    return policy - reference


def k2(policy: Tensor, reference: Tensor) -> Tensor:
    """`[N]`: d^2 / 2. Biased value, unbiased gradient of KL(policy || reference)."""
    return (policy - reference).square() / 2


def k3(policy: Tensor, reference: Tensor) -> Tensor:
    """`[N]`: exp(d) - d - 1. Unbiased, non-negative, low variance (the KL term of GRPO, 2402.03300, eq. 4)."""
    d = reference - policy
    return d.exp() - d - 1
