"""Per-token losses that weigh the log-likelihood of what was sampled, with no importance ratio in the gradient.

`[N]` log-ratios, `[N]` advantages and the tokens to `[N]` losses; A is the advantage, sg(x) is x without its gradient.
"""

import torch
from torch import Tensor

from posttrain.objectives.tokens import Tokens


def likelihood(log_ratio: Tensor, advantages: Tensor, tokens: Tokens) -> Tensor:
    """`[N]`: -A log pi. The gradient of `surrogates.reinforce`; with A = 1, maximum likelihood."""
    return -advantages * tokens.logprobs


def kept_likelihood(
    log_ratio: Tensor, advantages: Tensor, tokens: Tokens, clip_low: float = 0.2, clip_high: float = 0.2
) -> Tensor:
    """`[N]`: -A log pi, whose gradient is kept where the ratio is at most 1 + high (A > 0) or at least 1 - low (A < 0).

    The clipping of PPO without its importance weight (REC-OneSide-NoIS, 2509.24203).
    """
    ratio = log_ratio.detach().exp()
    kept = torch.where(advantages > 0, ratio <= 1 + clip_high, ratio >= 1 - clip_low)
    loss = likelihood(log_ratio, advantages, tokens)
    return torch.where(kept, loss, loss.detach())


def tempered_likelihood(log_ratio: Tensor, advantages: Tensor, tokens: Tokens, temper: float = 1.0) -> Tensor:
    """`[N]`: -A log pi / (1 + temper) (OPMD in its simple form, discussed in 2509.24203): a smaller step."""
    return likelihood(log_ratio, advantages, tokens) / (1 + temper)


def shifted_likelihood(log_ratio: Tensor, advantages: Tensor, tokens: Tokens, shift: float = 0.1) -> Tensor:
    """`[N]`: -(A + shift) log pi (AsymRE, 2506.20520): a baseline lowered by `shift`.

    The same as `likelihood` plus `shift` times maximum likelihood on everything that was sampled.
    """
    return likelihood(log_ratio, advantages + shift, tokens)


def positive_cloning(
    log_ratio: Tensor,
    advantages: Tensor,
    tokens: Tokens,
    positive_weight: float = 1.0,
    negative_weight: float = 0.5,
) -> Tensor:
    """`[N]`: -w+ log pi where A > 0, -w- A ratio where A < 0, 0 where A = 0 (OREAL, 2502.06781).

    Good responses are cloned, whatever their advantage; bad ones are moved by the policy gradient. The paper's learnt
    weights of single tokens are not part of this.
    """
    cloned = -positive_weight * tokens.logprobs
    return torch.where(advantages > 0, cloned, -negative_weight * advantages * log_ratio.exp())


def bellman(log_ratio: Tensor, advantages: Tensor, tokens: Tokens, rover_scale: float = 1.0) -> Tensor:
    """`[N]`: (q - sg(A + scale uniform))^2 with q = scale log-ratio (ROVER, 2509.24981).

    q is the value of a token under the policy that picks uniformly, and the mean of q over the vocabulary in the next
    state (`tokens.uniform` times the scale) is that state's value. Needs the token's own log-ratio.
    """
    if tokens.uniform is None:
        raise ValueError("bellman needs tokens.uniform, the next state's mean log-ratio over the vocabulary; got None")
    target = (advantages + rover_scale * tokens.uniform).detach()
    return (rover_scale * log_ratio - target).square()


def dynamic_likelihood(log_ratio: Tensor, advantages: Tensor, tokens: Tokens) -> Tensor:
    """`[N]`: -A sg(p) log p with p the token's own probability (DFT, 2508.05629).

    The slope of p itself: without p, an unlikely token of a demonstration would count 1 / p times as much.
    """
    return likelihood(log_ratio, advantages, tokens) * tokens.logprobs.detach().exp()


def regressed(log_ratio: Tensor, advantages: Tensor, contrast_beta: float = 0.1) -> Tensor:
    """`[N]`: (beta lr - A)^2 / 2, the advantage regressed on the token's log-ratio (DQO, 2410.09302)."""
    return (contrast_beta * log_ratio - advantages).square() / 2
