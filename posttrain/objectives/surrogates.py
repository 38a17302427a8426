"""Per-token losses as functions of the log-ratio to the previous policy and of the advantage.

`[N]` log-ratios and `[N]` advantages to `[N]` losses; sg(x) is x without its gradient, A the advantage.
"""

import torch
from torch import Tensor

from posttrain.objectives.ratios import sequence
from posttrain.objectives.tokens import Tokens


def reinforce(log_ratio: Tensor, advantages: Tensor) -> Tensor:
    """`[N]`: -A, with the gradient -A grad log pi, whatever the ratio's value (Williams 1992)."""
    return -(log_ratio - log_ratio.detach()).exp() * advantages


def clip(log_ratio: Tensor, advantages: Tensor, clip_low: float = 0.2, clip_high: float = 0.2) -> Tensor:
    """`[N]`: -min(ratio A, clip(ratio, 1 - low, 1 + high) A) (PPO, 1707.06347; unequal bounds: DAPO, 2503.14476)."""
    ratio = log_ratio.exp()
    return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip_low, 1 + clip_high) * advantages)


def dual_clip(
    log_ratio: Tensor, advantages: Tensor, clip_low: float = 0.2, clip_high: float = 0.2, dual_clip: float = 3.0
) -> Tensor:
    """`[N]`: `clip`, whose objective is at least `dual_clip` A where A < 0 (1912.09729, eq. 5).

    `clip` alone has no bound for a bad token whose ratio has grown. Past `dual_clip` (> 1) the gradient is 0.
    """
    loss = clip(log_ratio, advantages, clip_low, clip_high)
    return torch.where(advantages < 0, torch.minimum(loss, -dual_clip * advantages), loss)


def geometric_clip(
    log_ratio: Tensor, advantages: Tensor, tokens: Tokens, clip_low: float = 0.4, clip_high: float = 0.4
) -> Tensor:
    """`[N]`: -A exp(mean of the clipped log-ratios of the sequence), the same for all its tokens (GMPO, 2507.20673).

    Each log-ratio is clipped pessimistically in log space: at `clip_high` from above where A > 0, at -`clip_low` from
    below where A < 0. The paper has one advantage per response; with several, each token has the common ratio times
    its own.
    """
    clipped = torch.where(advantages > 0, log_ratio.clamp(max=clip_high), log_ratio.clamp(min=-clip_low))
    return -sequence(clipped, tokens.mask, tokens.segment).exp() * advantages


def soft_gate(log_ratio: Tensor, advantages: Tensor, tau_positive: float = 1.0, tau_negative: float = 1.05) -> Tensor:
    """`[N]`: -(4 / tau) sigmoid(tau (ratio - 1)) A, tau by the sign of A (SAPO, 2511.20347).

    4 / tau makes the gradient at ratio 1 that of `reinforce` for every tau; away from 1 it fades without an edge.
    """
    tau = torch.full_like(log_ratio.detach(), tau_negative).masked_fill(advantages > 0, tau_positive)
    return -(4 / tau) * torch.sigmoid(tau * (log_ratio.exp() - 1)) * advantages


def clipped_weight(
    log_ratio: Tensor, advantages: Tensor, tokens: Tokens, clip_low: float = 1.0, clip_high: float = 0.28
) -> Tensor:
    """`[N]`: -sg(clip(ratio, 1 - low, 1 + high)) A log pi (CISPO, 2506.13585): no token loses its gradient.

    `clip_low` 1 is no lower bound, as in the paper.
    """
    weight = log_ratio.detach().exp().clamp(1 - clip_low, 1 + clip_high)
    return -weight * advantages * tokens.logprobs


def truncated_weight(log_ratio: Tensor, advantages: Tensor, tokens: Tokens, weight_cap: float = 1.0) -> Tensor:
    """`[N]`: -sg(min(ratio, cap)) A log pi (PipelineRL, 2509.19128; RAPID, 2510.03515)."""
    return -log_ratio.detach().exp().clamp(max=weight_cap) * advantages * tokens.logprobs


def _inside(log_ratio: Tensor, advantages: Tensor, distance: Tensor, max_divergence: float) -> Tensor:
    """`[N]`: -ratio A, whose gradient is 0 where `distance` is too large and the update would make it larger."""
    outward = advantages * log_ratio.detach() > 0
    loss = -log_ratio.exp() * advantages
    return torch.where(outward & (distance > max_divergence), loss.detach(), loss)


def binary_tv(log_ratio: Tensor, advantages: Tensor, tokens: Tokens, max_divergence: float = 0.2) -> Tensor:
    """`[N]`: -ratio A within |p - p_old| <= `max_divergence` of the token's probability (DPPO-Binary-TV, 2602.04879).

    Beyond it only an update that brings the token back keeps its gradient. Needs the token's own log-ratio: the old
    probability is exp(log p - log-ratio).
    """
    new = tokens.logprobs.detach()
    old = new - log_ratio.detach()
    return _inside(log_ratio, advantages, (new.exp() - old.exp()).abs(), max_divergence)


def binary_kl(log_ratio: Tensor, advantages: Tensor, tokens: Tokens, max_divergence: float = 0.05) -> Tensor:
    """`[N]`: as `binary_tv` with KL(Bernoulli(p_old) || Bernoulli(p)) (DPPO-Binary-KL, 2602.04879)."""
    new = tokens.logprobs.detach()
    # Rounding must not lift a probability above 1, nor make the other outcome's exactly 0.
    old = (new - log_ratio.detach()).clamp(max=0)
    smallest = torch.finfo(new.dtype).tiny
    other_new, other_old = -torch.expm1(new), -torch.expm1(old)
    other = other_old * (other_old.clamp(min=smallest).log() - other_new.clamp(min=smallest).log())
    return _inside(log_ratio, advantages, old.exp() * (old - new) + other, max_divergence)


def drift(log_ratio: Tensor, advantages: Tensor, drift_alpha: float = 2.0, drift_beta: float = 0.6) -> Tensor:
    """`[N]`: -(ratio A - f) with the drift f found by meta-learning (discovered policy optimisation, 2210.05639).

    f = relu(x - alpha tanh(x / alpha)), x = (ratio - 1) A, where A >= 0; f = relu(y - beta tanh(y / beta)),
    y = log-ratio A, where A < 0. f and its gradient are 0 at ratio 1.
    """
    ratio = log_ratio.exp()
    gain, fall = (ratio - 1) * advantages, log_ratio * advantages
    positive = torch.relu(gain - drift_alpha * torch.tanh(gain / drift_alpha))
    negative = torch.relu(fall - drift_beta * torch.tanh(fall / drift_beta))
    return torch.where(advantages >= 0, positive, negative) - ratio * advantages


def mirror_descent(log_ratio: Tensor, advantages: Tensor, step_size: float = 1.0) -> Tensor:
    """`[N]`: -ratio A + (ratio log ratio - ratio + 1) / step (MDPO, 2005.09814, on-policy).

    For tokens of the previous policy the second term is non-negative, its mean is KL(policy || previous), and the mean
    of its gradient is that KL's gradient.
    """
    ratio = log_ratio.exp()
    return (ratio * log_ratio - ratio + 1) / step_size - ratio * advantages


def kl_penalised(log_ratio: Tensor, advantages: Tensor) -> Tensor:
    """`[N]`: -ratio A, the first phase of FixPO (2312.05405) without its penalty beta KL(previous || policy).

    Nothing here bounds the ratio: the penalty has to.
    """
    return -log_ratio.exp() * advantages
