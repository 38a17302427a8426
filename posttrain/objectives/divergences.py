"""What a log-ratio counts for when the distance to the anchor is another f-divergence than the reverse KL.

`[S]` log-ratios to `[S]`: f'(t) of the ratio t (f-DPO, 2309.16240). Only differences of responses to one prompt mean
anything, so these go with losses of differences. An exponent is at most `LARGEST`, beyond which the gradient is 0.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

LARGEST = 80.0
"""exp of it, and sums of a few, are finite in fp32 and bf16."""


def reverse_kl(log_ratios: Tensor) -> Tensor:
    """`[S]` to `[S]`: log t."""
    return log_ratios


def forward_kl(log_ratios: Tensor) -> Tensor:
    """`[S]` to `[S]`: 1 - 1 / t, the constant chosen so that t = 1 gives 0."""
    return alpha(log_ratios, 0.0)


def js(log_ratios: Tensor) -> Tensor:
    """`[S]` to `[S]`: log (2 t / (1 + t)) (Jensen-Shannon); never above log 2."""
    return math.log(2) + logsigmoid(log_ratios)


def alpha(log_ratios: Tensor, alpha_coefficient: float = 0.5) -> Tensor:
    """`[S]` to `[S]`: (t^(a - 1) - 1) / (a - 1); a = 0 is the forward KL, a = 1 the reverse KL."""
    power = alpha_coefficient - 1
    if power == 0:
        return log_ratios
    return torch.expm1((power * log_ratios).clamp(max=LARGEST)) / power
