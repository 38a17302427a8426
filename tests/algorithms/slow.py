"""A row's loss written out: one sequence at a time, one token at a time, from whole tables of logits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from posttrain.algorithms.row import Algorithm
from posttrain.algorithms.state import Coefficients
from posttrain.learner.policy import PolicyLearner
from posttrain.types import Sample
from tests.algorithms.slow_cells import CORRECTIONS, LEVELS, OBJECTIVES, REDUCTIONS, VALUES, Row, Token
from tests.algorithms.slow_pairs import Member
from tests.algorithms.slow_sets import DIVERGENCES, WEIGHTINGS, cloned, sets_loss


class Slow:
    """The models of a learner, each run on one unpadded sequence after another; tables are kept between losses."""

    def __init__(self, learner: PolicyLearner, batch: Sequence[Sample]) -> None:
        self.learner = learner
        self.tables = [self._tables(s.rollout.tokens) for s in batch]

    def _tables(self, tokens: tuple[int, ...]) -> tuple[Tensor, list[Tensor], Tensor | None]:
        ids, temperature = torch.tensor([tokens]), self.learner.temperature
        out = self.learner.model(ids, output_hidden_states=True)
        others = [(m(ids).logits[0] / temperature).log_softmax(-1) for m in self.learner.references.models]
        critic, hidden = self.learner.critic, out.hidden_states[-1][0]
        if critic.own:
            hidden = critic.model.model(ids).last_hidden_state[0]
        elif critic.settings.stop_gradient:
            hidden = hidden.detach()
        return (out.logits[0] / temperature).log_softmax(-1), others, hidden @ critic.head.weight.t()

    def rows(self, batch: Sequence[Sample]) -> list[Row]:
        found = []
        for s, (table, others, outputs) in zip(batch, self.tables, strict=True):
            said = [t for t in range(len(s.rollout.tokens)) if s.mask[t]]
            found.append([Token(s, t, table[t - 1], [o[t - 1] for o in others], outputs[t - 1]) for t in said])
        return [row for row in found if row]


def slow_loss(slow: Slow, algorithm: Algorithm, batch: Sequence[Sample], c: Coefficients) -> Tensor:
    """The loss of a whole optimiser step."""
    rows = slow.rows(batch)
    step = [x for row in rows for x in row]
    for row in rows:
        shortest = min(len(other) for other in rows if other[0].sample.group == row[0].sample.group)
        levels = LEVELS[algorithm.ratio.kind](
            [x.logp - anchor(algorithm, x, c) for x in row], algorithm.ratio, shortest
        )
        for x, level in zip(row, levels, strict=True):
            x.level = level
    if algorithm.objective.entry.level == "set":
        total = c.policy * _sets(algorithm, rows, c.baseline)
        reduce = REDUCTIONS["token_mean"]
    else:
        objective, weigh = OBJECTIVES[algorithm.objective.kind], CORRECTIONS[algorithm.correction.kind]
        reduce = REDUCTIONS[algorithm.reduction.kind]
        losses = [
            [
                weigh([y.gap for y in row], i, algorithm.correction) * objective(x, row, step, algorithm.objective)
                for i, x in enumerate(row)
            ]
            for row in rows
        ]
        total = c.policy * reduce(losses, c.constant_length)

    def add(weight: float, term: Callable[[Token], Tensor], how: Any = reduce) -> None:
        nonlocal total
        total = total + weight * how([[term(x) for x in row] for row in rows], c.constant_length)

    if algorithm.kl.kind == "in_loss":
        add(c.policy * c.kl, lambda x: kl(algorithm.kl["kl_estimator"], x, c.references))
    if algorithm.entropy.kind != "none":
        add(c.policy * c.entropy, lambda x: (x.table.exp() * x.table).sum())
    if algorithm.trust.kind in ("penalty", "fixup"):
        add(c.trust, lambda x: (x.logp - x.old).exp() - 1 - (x.logp - x.old))
    if algorithm.critic.kind in VALUES:
        value = VALUES[algorithm.critic.kind]
        add(algorithm.critic["value_coefficient"], lambda x: value(x, algorithm.critic), REDUCTIONS["token_mean"])
    return total


def anchor(algorithm: Algorithm, x: Token, c: Coefficients) -> float:
    if algorithm.anchor.kind == "behaviour":
        return x.sample.rollout.logprobs[x.t]
    if algorithm.anchor.kind == "none":
        return 0.0
    if algorithm.anchor.kind in ("reference", "iterate"):
        return sum(share * float(r) for share, r in zip(c.references, x.sample.reference[x.t], strict=True))
    return x.old


def kl(estimator: str, x: Token, shares: Sequence[float]) -> Tensor:
    total = 0 * x.logp
    for r, share in enumerate(shares):
        d = x.sample.reference[x.t, r].item() - x.logp
        if estimator == "k2":
            value = d * d / 2
        elif estimator == "k3":
            value = d.exp() - d - 1
        else:
            value = sum(p.exp() * (p - q.item()) for p, q in zip(x.table, x.others[r], strict=True))
        total = total + share * value
    return total


def _sets(algorithm: Algorithm, rows: list[Row], usual: float) -> Tensor:
    """The mean over groups of what their responses make of one another, and what is cloned of them beside it."""
    groups: dict[int, list[Member]] = {}
    for row in rows:
        groups.setdefault(row[0].sample.group, []).append(_member(algorithm, row))
    members, weigh = list(groups.values()), WEIGHTINGS[algorithm.weighting.kind]
    total = sets_loss(algorithm.objective.kind, members, algorithm.objective, usual, weigh)
    if algorithm.cloning.kind == "best":
        total = total + algorithm.cloning["cloning_coefficient"] * cloned(members)
    return total


def _member(algorithm: Algorithm, row: Row) -> Member:
    sample, outputs = row[0].sample, row[0].outputs
    # The sequence's log-ratio is the same at each of its tokens.
    lr = DIVERGENCES[algorithm.divergence.kind](row[0].level, algorithm.divergence)
    aligned = sum(x.logp.item() - (2 * x.table).exp().sum().log().item() for x in row) / len(row)
    value = None if outputs is None else outputs[0]
    offset = sample.score if sample.offset is None else sample.offset
    return Member(lr, sample.score, sum(x.logp for x in row), sample.rollout.author, value, aligned, len(row), offset)
