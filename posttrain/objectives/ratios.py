"""The level of the log-ratio to the previous policy: `[N]` per token to `[N]` per token.

Only tokens inside the mask count. A sequence without any has the log-ratio 0.
"""

from torch import Tensor

from posttrain.objectives.reductions import per_segment


def token(log_ratio: Tensor, mask: Tensor, segment: Tensor) -> Tensor:
    """`[N]` to `[N]`: every token keeps its own log-ratio."""
    return log_ratio


def sequence(log_ratio: Tensor, mask: Tensor, segment: Tensor) -> Tensor:
    """`[N]` to `[N]`: every token carries the mean log-ratio of its sequence (GSPO, 2507.18071, eq. 7)."""
    total, count = per_segment(log_ratio, mask, segment)
    return (total / count.clamp(min=1))[segment]


def sequence_token(log_ratio: Tensor, mask: Tensor, segment: Tensor) -> Tensor:
    """`[N]` to `[N]`: the value of `sequence`, the gradient of the token's own log-ratio (GSPO-token, 2507.18071).

    sg(mean) + lr - sg(lr). Where all tokens of a sequence have one advantage, the gradient of the whole sequence is
    that of `sequence`; with an advantage per token, each token is moved by its own.
    """
    return sequence(log_ratio, mask, segment).detach() + log_ratio - log_ratio.detach()


def sequence_sum(log_ratio: Tensor, mask: Tensor, segment: Tensor) -> Tensor:
    """`[N]` to `[N]`: every token carries the sum of its sequence, the log-ratio of the response as one action."""
    total, _ = per_segment(log_ratio, mask, segment)
    return total[segment]
