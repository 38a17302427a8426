"""Losses of a best response against a worst one that know by how much it is better.

`log_ratios [S]` carry the gradient; `scores [S]` say which is best and worst of each of `groups [S]`, and `offsets [S]`
by how much: a margin is the difference of the two. Every function gives `[K]`, one loss per distinct group in ascending
order of its name; where all scores are equal the loss is 0.
"""

from torch import Tensor
from torch.nn.functional import logsigmoid

from posttrain.objectives.preferences import Pairs, pairs


def margin_sigmoid(
    log_ratios: Tensor,
    scores: Tensor,
    groups: Tensor,
    contrast_beta: float = 0.1,
    label_smoothing: float = 0.0,
    offsets: Tensor | None = None,
) -> Tensor:
    """`[S]` to `[K]`: -log sigmoid(beta d - gap) (DPO with an offset, 2402.10571): how much better counts.

    The gap is that of the `offsets [S]`, by default the scores. Label smoothing as in `best_worst_sigmoid`; a flipped
    pair has the flipped gap.
    """
    pair = pairs(scores, groups)
    short = _short(pair, log_ratios, scores if offsets is None else offsets, contrast_beta)
    return pair.where(-(1 - label_smoothing) * logsigmoid(short) - label_smoothing * logsigmoid(-short))


def modpo(
    log_ratios: Tensor,
    scores: Tensor,
    groups: Tensor,
    contrast_beta: float = 0.1,
    objective_weight: float = 0.5,
    offsets: Tensor | None = None,
) -> Tensor:
    """`[S]` to `[K]`: -log sigmoid((beta d - gap) / weight) (MODPO, 2310.03708).

    The gap, of the `offsets [S]` or by default the scores, is what the other objectives, each times its weight, prefer
    the best response by; it is negative where they prefer the other one. `objective_weight` (> 0) is that of the
    objective which the pair was labelled for.
    """
    pair = pairs(scores, groups)
    short = _short(pair, log_ratios, scores if offsets is None else offsets, contrast_beta)
    return pair.where(-logsigmoid(short / objective_weight))


def _short(pair: Pairs, log_ratios: Tensor, offsets: Tensor, contrast_beta: float) -> Tensor:
    """`[S]` to `[K]`: beta d - gap."""
    return contrast_beta * pair.gap(log_ratios) - pair.gap(offsets.detach()).to(log_ratios.dtype)
