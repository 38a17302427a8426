"""Losses of a value head, and how its outputs are read as values.

`outputs [N, B]` are what the head says of each token, `returns [N]` what it should have said, `previous [N]` the
values it gave when the advantages were computed. Only the outputs carry a gradient.
"""

import math

import torch
from torch import Tensor


def squared(outputs: Tensor, returns: Tensor, previous: Tensor, value_clip: float | None = None) -> Tensor:
    """`[N, 1]` to `[N]`: 1/2 max((v - R)^2, (previous + clip(v - previous, -c, c) - R)^2) (PPO's code).

    Without `value_clip` it is 1/2 (v - R)^2. 2005.12729 describes the clipping, but prints min. The greater of the two
    is pessimistic: a value that has moved past the bound towards its return stops learning, one that has moved away
    from it does not.
    """
    values, returns, previous = read_squared(outputs), returns.detach(), previous.detach()
    error = (values - returns).square()
    if value_clip is not None:
        held = previous + (values - previous).clamp(-value_clip, value_clip)
        error = torch.maximum(error, (held - returns).square())
    return error / 2


def read_squared(outputs: Tensor) -> Tensor:
    """`[N, 1]` to `[N]`: the output is the value."""
    if outputs.shape[-1] != 1:
        raise ValueError(f"a squared value loss reads 1 output per token, not {outputs.shape[-1]}; use hl_gauss")
    return outputs[..., 0]


def hl_gauss(
    outputs: Tensor,
    returns: Tensor,
    previous: Tensor,
    value_low: float = 0.0,
    value_high: float = 1.0,
    value_sigma: float = 0.75,
) -> Tensor:
    """`[N, B]` logits of bins to `[N]`: cross-entropy with `histogram(returns)` (HL-Gauss, 2403.03950).

    The gradient is softmax(outputs) - target. `previous` is not looked at: a cross-entropy needs no clipping.
    """
    logits = _wide(outputs)
    target = histogram(returns.to(logits.dtype), outputs.shape[-1], value_low, value_high, value_sigma)
    return -(target * logits.log_softmax(-1)).sum(-1)


def histogram(returns: Tensor, bins: int, value_low: float, value_high: float, value_sigma: float) -> Tensor:
    """`[N]` to `[N, B]`: the mass of a Gaussian around each return in `bins` equal bins of [low, high], sum 1.

    `value_sigma` is in bin widths. A return outside the support counts as its nearest end. What falls outside is cut
    and the rest scaled up, so that within about three sigma of an end the mean is drawn inwards: by .7 of a bin for a
    return at the end itself. A support that is a few bins wider than the scores has no such bias.
    """
    if bins < 2:
        raise ValueError(f"hl_gauss needs at least 2 bins, not {bins}; give the value head more outputs")
    returns = returns.detach().clamp(value_low, value_high)
    edges = torch.linspace(value_low, value_high, bins + 1, dtype=returns.dtype, device=returns.device)
    sigma = value_sigma * (value_high - value_low) / bins
    below = torch.erf((edges - returns[:, None]) / (sigma * math.sqrt(2)))
    return below.diff(dim=-1) / (below[:, -1:] - below[:, :1])


def read_hl_gauss(outputs: Tensor, value_low: float, value_high: float) -> Tensor:
    """`[N, B]` logits of bins to `[N]`: the expected bin centre."""
    half = (value_high - value_low) / outputs.shape[-1] / 2
    logits = _wide(outputs)
    centres = torch.linspace(
        value_low + half, value_high - half, outputs.shape[-1], dtype=logits.dtype, device=logits.device
    )
    return (logits.softmax(-1) * centres).sum(-1)


def _wide(outputs: Tensor) -> Tensor:
    """At least single precision: half cannot tell the edges of the bins apart."""
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))
