"""Losses of a reward model: what it says of a response against what the response is worth.

`outputs [S, B]` are what B heads say after the last token of each response, `scores [S]` what it is worth; only the
outputs carry a gradient. `groups [S]` names each response's group, in any order and of any size: a preference pair is a
group of two, a ranked list a larger one. Every function gives `[K]`, one loss per distinct group in ascending order of
its name, a mean over the heads: each head of an ensemble learns from a loss of its own. Where responses are compared, a
group of one has loss 0 and gradient 0. Outputs in half precision are read in single precision.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid, normalize

from posttrain.objectives import values
from posttrain.objectives.sets import best_worst, decided, each


def bradley_terry(outputs: Tensor, scores: Tensor, groups: Tensor, centring: float = 0.0) -> Tensor:
    """`[S, B]` to `[K]`: mean over pairs with s_i > s_j of -log sigmoid(r_i - r_j) + centring (r_i + r_j)^2
    (2203.02155).

    The first term learns only differences of outputs; the second draws their mean to 0 (2312.09244). A group of equal
    scores prefers nothing: loss 0, gradient 0.
    """
    return _pair_mean(lambda gap, margin: -logsigmoid(gap), outputs, scores, groups, centring, scores)


def margin_bradley_terry(
    outputs: Tensor, scores: Tensor, groups: Tensor, centring: float = 0.0, offsets: Tensor | None = None
) -> Tensor:
    """`[S, B]` to `[K]`: as `bradley_terry`, with -log sigmoid(r_i - r_j - (o_i - o_j)) (Llama 2, 2307.09288).

    What is much better has to be scored much higher. The margin of a pair is what its `offsets [S]` differ by, by
    default its scores.
    """
    margins = scores if offsets is None else offsets
    return _pair_mean(lambda gap, margin: -logsigmoid(gap - margin), outputs, scores, groups, centring, margins)


def bradley_terry_ties(outputs: Tensor, scores: Tensor, groups: Tensor, tie_theta: float = 1.5) -> Tensor:
    """`[S, B]` to `[K]`: mean over all pairs of -log P(what the scores say) (Rao and Kupper, 10.2307/2282923).

    P(i is better) = e^{r_i} / (e^{r_i} + theta e^{r_j}) and, where the scores are equal, P(tie) =
    (theta^2 - 1) e^{r_i + r_j} / [(e^{r_i} + theta e^{r_j}) (theta e^{r_i} + e^{r_j})]. Either one better, or a tie:
    the three add up to 1. `tie_theta` is greater than 1; near 1 there are no ties, and a better response is as likely
    as under `bradley_terry`. Raises ValueError for 1 or less.
    """
    if tie_theta <= 1:
        raise ValueError(f"tie_theta must be greater than 1, not {tie_theta}")
    threshold, ties = math.log(tie_theta), math.log(tie_theta**2 - 1)

    def loss(r: Tensor, s: Tensor) -> Tensor:
        i, j = torch.triu_indices(len(r), len(r), offset=1, device=r.device)
        gap, order = r[i] - r[j], (s[i] - s[j])[:, None]
        first, second = logsigmoid(gap - threshold), logsigmoid(-gap - threshold)
        return -torch.where(order > 0, first, torch.where(order < 0, second, ties + first + second)).mean()

    return _each(loss, outputs, scores, groups)


def plackett_luce(outputs: Tensor, scores: Tensor, groups: Tensor) -> Tensor:
    """`[S, B]` to `[K]`: -sum over responses of log(e^{r_i} / sum of e^{r_j} over i and what is worse) (2301.11270).

    The likelihood of the whole order: of what is left, the best is taken first. It is a sum over ranks, so a list of K
    weighs about as much as its K - 1 choices; for two responses it is `bradley_terry`. Equal scores have no order: such
    responses are never set against each other, only against what is strictly worse.
    """

    def loss(r: Tensor, s: Tensor) -> Tensor:
        left = (s[:, None] > s) | torch.eye(len(s), dtype=torch.bool, device=s.device)
        remaining = r.expand(len(r), *r.shape).masked_fill(~left[:, :, None], -torch.inf)
        return (remaining.logsumexp(1) - r).sum(0).mean()

    return _each(loss, outputs, scores, groups)


def gap(outputs: Tensor, scores: Tensor, groups: Tensor) -> Tensor:
    """`[S, B]` to `[K]`: -log sigmoid(r_best) - log sigmoid(-r_worst) (PIT, 2310.00898).

    For pairs whose responses were each read with the other one in their context, so that an output is by how much a
    response is the better of the two. Of several best or worst the first counts; a group of equal scores prefers
    nothing: loss 0, gradient 0.
    """

    def loss(r: Tensor, s: Tensor) -> Tensor:
        best, worst = best_worst(r, s)
        return decided((-logsigmoid(best) - logsigmoid(-worst)).mean(), s)

    return _each(loss, outputs, scores, groups)


def regression(outputs: Tensor, scores: Tensor, groups: Tensor) -> Tensor:
    """`[S, B]` to `[K]`: mean over responses of (r - s)^2 (2110.14168)."""
    return _each(lambda r, s: (r - s[:, None]).square().mean(), outputs, scores, groups, least=1)


def binary(outputs: Tensor, scores: Tensor, groups: Tensor) -> Tensor:
    """`[S, B]` to `[K]`: mean over responses of -s log sigmoid(r) - (1 - s) log sigmoid(-r) (2211.14275).

    A score is the probability that the response is right: 0, 1, or a share of graders in between. Raises ValueError
    for a score outside [0, 1], under which the loss would have no lowest value.
    """
    wrong = scores[~((scores >= 0) & (scores <= 1))]
    if len(wrong):
        raise ValueError(f"binary reads scores from 0 to 1, not {float(wrong[0])}; rescale them, or use regression")
    return _each(
        lambda r, s: binary_cross_entropy_with_logits(r, s[:, None].expand_as(r)), outputs, scores, groups, least=1
    )


def hl_gauss(
    outputs: Tensor,
    scores: Tensor,
    groups: Tensor,
    value_low: float = 0.0,
    value_high: float = 1.0,
    value_sigma: float = 0.75,
) -> Tensor:
    """`[S, B]` logits of bins to `[K]`: mean over responses of the cross-entropy with the score's histogram (HL-Gauss,
    2403.03950). One head of B bins; `values.read_hl_gauss` reads its outputs as scores.
    """

    def loss(r: Tensor, s: Tensor) -> Tensor:
        return values.hl_gauss(r, s, s, value_low, value_high, value_sigma).mean()

    return _each(loss, outputs, scores, groups, least=1)


def step_bce(outputs: Tensor, labels: Tensor) -> Tensor:
    """`[N, B]` to `[N]`: -y log sigmoid(r) - (1 - y) log sigmoid(-r), a mean over heads (PRM, 2305.20050).

    `labels [N]` in [0, 1] are how likely a step is right. Only tokens that end a step mean anything: the caller masks
    the others.
    """
    outputs = _wide(outputs)
    targets = labels.detach().to(outputs.dtype)[:, None].expand_as(outputs)
    return binary_cross_entropy_with_logits(outputs, targets, reduction="none").mean(-1)


def contrastive(
    states: Tensor, segment: Tensor, mask: Tensor, scores: Tensor, groups: Tensor, contrast_temperature: float = 0.1
) -> Tensor:
    """`[N, H]` last hidden states of tokens to `[K]`: states of the best response foretell its later ones rather than
    those of the worst (2407.13887).

    `segment [N]` says which of the S responses a token belongs to, `mask [N]` which tokens count. With b_0 ... b_{T-1}
    the masked states of a group's best response and w_0 ... w_{U-1} those of its worst, the loss is the mean over t =
    0 ... T - 2 of -log sigmoid((cos(b_t, b_g) - cos(b_t, w_h)) / temperature), with g = floor((T + t) / 2) the middle
    one of the states after t, and h = min(g, U - 1) the worst's state at the same place. That is InfoNCE with one
    negative. The paper draws both states at random; that they are these is ours, so that a loss depends on nothing but
    its group. Loss 0 and gradient 0 where the best has fewer than two masked tokens, the worst none, or all scores are
    equal.
    """
    directions = normalize(_wide(states), dim=-1, eps=1e-6)
    # Part of the graph, so that backward works where no group has anything to contrast.
    nothing = directions[:0].sum()

    def loss(_: Tensor, s: Tensor, responses: Tensor) -> Tensor:
        best, worst = (directions[mask & (segment == name)] for name in best_worst(responses, s))
        if len(best) < 2 or not len(worst):
            return nothing
        source = torch.arange(len(best) - 1, device=s.device)
        goal = (len(best) + source) // 2
        contrast = best[goal] - worst[goal.clamp(max=len(worst) - 1)]
        return decided(-logsigmoid((best[source] * contrast).sum(-1) / contrast_temperature).mean(), s)

    return each(loss, groups, nothing.expand(len(scores)), scores, torch.arange(len(scores), device=scores.device))


def _pair_mean(
    loss: Callable[[Tensor, Tensor], Tensor],
    outputs: Tensor,
    scores: Tensor,
    groups: Tensor,
    centring: float,
    offsets: Tensor,
) -> Tensor:
    """`[S, B]` to `[K]`: mean over pairs with s_i > s_j of `loss(r_i - r_j, o_i - o_j)` + centring (r_i + r_j)^2."""
    outputs = _wide(outputs)

    def of_group(r: Tensor, s: Tensor, o: Tensor) -> Tensor:
        i, j = (s[:, None] > s).nonzero(as_tuple=True)
        if not len(i):
            return r[:0].sum()
        return (loss(r[i] - r[j], (o[i] - o[j])[:, None]) + centring * (r[i] + r[j]).square()).mean()

    return each(of_group, groups, outputs, scores.detach(), offsets.detach().to(outputs.dtype))


def _each(
    loss: Callable[[Tensor, Tensor], Tensor], outputs: Tensor, scores: Tensor, groups: Tensor, least: int = 2
) -> Tensor:
    """`[S, B]` and `[S]` twice to `[K]`: the loss of every group, from its `[G, B]` outputs and `[G]` scores."""
    outputs = _wide(outputs)
    return each(loss, groups, outputs, scores.detach().to(outputs.dtype), least=least)


def _wide(outputs: Tensor) -> Tensor:
    """At least single precision: in half, outputs that differ are equal."""
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))
