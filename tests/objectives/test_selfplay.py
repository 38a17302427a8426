"""Losses of games against loops over responses and their authors, with gradients worked out by hand, and their laws."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from posttrain.objectives import selfplay
from posttrain.objectives.contrasts import best_worst_sigmoid
from posttrain.objectives.sets import DATA, OPPONENT, POLICY, Sequences
from tests.objectives.test_contrasts import wide

Loss = Callable[..., Tensor]


class Response(NamedTuple):
    group: int
    score: float
    lr: float
    author: int = POLICY
    logprob: float = -1.0


Slow = Callable[[list[Response], float], tuple[float, list[float], list[float]]]
"""Members of a group and beta to the loss and its slopes in log-ratios and in log-probabilities."""
number = st.floats(-4, 4, width=32)
responses = st.lists(
    st.builds(
        Response,
        st.sampled_from([-7, 0, 3]),
        st.sampled_from([0.0, 0.5, 1.0]) | st.floats(0, 1, width=32),
        number,
        st.sampled_from([POLICY, DATA, OPPONENT]),
        number,
    ),
    min_size=1,
    max_size=12,
)
ALPHA, LAMBDA = 0.3, 2.5


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def slow_sppo(rows: list[Response], beta: float) -> tuple[float, list[float], list[float]]:
    errors = [row.lr - (row.score - 0.5) / beta for row in rows]
    return sum(e**2 for e in errors) / len(rows), [2 * e / len(rows) for e in errors], [0.0] * len(rows)


def slow_soft(rows: list[Response], beta: float) -> tuple[float, list[float], list[float]]:
    loss, slopes, size = 0.0, [0.0] * len(rows), len(rows) * (len(rows) - 1) / 2
    for i, one in enumerate(rows):
        for j, two in enumerate(rows[:i]):
            p, q = sigmoid(one.score - two.score), sigmoid(beta * (one.lr - two.lr))
            loss -= (p * math.log(q) + (1 - p) * math.log(1 - q)) / size
            slopes[i] += beta * (q - p) / size
            slopes[j] -= beta * (q - p) / size
    return loss, slopes, [0.0] * len(rows)


def slow_spin(rows: list[Response], beta: float) -> tuple[float, list[float], list[float]]:
    loss, slopes = 0.0, [0.0] * len(rows)
    games = [(i, j) for i, a in enumerate(rows) for j, b in enumerate(rows) if a.author == DATA != b.author]
    for i, j in games:
        lost = sigmoid(-beta * (rows[i].lr - rows[j].lr))
        loss -= math.log(1 - lost) / len(games)
        slopes[i] -= beta * lost / len(games)
        slopes[j] += beta * lost / len(games)
    return loss, slopes, [0.0] * len(rows)


def slow_dpo(rows: list[Response], kept: list[int], beta: float) -> tuple[float, list[float]]:
    """Best against worst of the kept rows; the first of several."""
    slopes, scores = [0.0] * len(rows), [rows[i].score for i in kept]
    if not kept or max(scores) == min(scores):
        return 0.0, slopes
    best, worst = kept[scores.index(max(scores))], kept[scores.index(min(scores))]
    lost = sigmoid(-beta * (rows[best].lr - rows[worst].lr))
    slopes[best], slopes[worst] = -beta * lost, beta * lost
    return -math.log(1 - lost), slopes


def slow_xpo(rows: list[Response], beta: float) -> tuple[float, list[float], list[float]]:
    loss, slopes = slow_dpo(rows, list(range(len(rows))), beta)
    theirs = [row.logprob for row in rows if row.author == OPPONENT]
    optimism = ALPHA * sum(theirs) / len(theirs) if theirs else 0.0
    return loss + optimism, slopes, [ALPHA / len(theirs) if row.author == OPPONENT else 0.0 for row in rows]


def slow_spac(rows: list[Response], beta: float) -> tuple[float, list[float], list[float]]:
    given = [i for i, row in enumerate(rows) if row.author == DATA]
    own = [i for i, row in enumerate(rows) if row.author == POLICY]
    loss, slopes = slow_dpo(rows, given, beta)
    loss, slopes = LAMBDA * loss, [LAMBDA * s for s in slopes]
    if given and own:
        best = max(given, key=lambda i: (rows[i].score, -i))
        loss += beta * (sum(rows[i].lr for i in own) / len(own) - rows[best].lr)
        slopes[best] -= beta
        for i in own:
            slopes[i] += beta / len(own)
    return loss, slopes, [0.0] * len(rows)


ALL: list[tuple[Loss, Slow, dict[str, float]]] = [
    (selfplay.sppo, slow_sppo, {}),
    (selfplay.soft_pairs, slow_soft, {}),
    (selfplay.spin, slow_spin, {}),
    (selfplay.xpo, slow_xpo, {"xpo_alpha": ALPHA}),
    (selfplay.spac, slow_spac, {"spac_lambda": LAMBDA}),
]
NAMES = [entry[0].__name__ for entry in ALL]
every = pytest.mark.parametrize(("loss", "slow", "more"), ALL, ids=NAMES)
every_loss = pytest.mark.parametrize("loss", [entry[0] for entry in ALL], ids=NAMES)


def call(loss: Loss, lr: Tensor, logprobs: Tensor, rows: list[Response], **params: float) -> Tensor:
    """Pass the authors to a formula that asks for them."""
    author = torch.tensor([row.author for row in rows], dtype=torch.long)
    nothing = torch.full_like(lr.detach(), math.nan)
    extra = (
        (Sequences(logprobs, nothing, author, nothing),) if "sequences" in inspect.signature(loss).parameters else ()
    )
    scores = torch.tensor([row.score for row in rows], dtype=lr.dtype)
    return loss(lr, scores, torch.tensor([row.group for row in rows], dtype=torch.long), *extra, **params)


def measured(
    loss: Loss, rows: list[Response], dtype: torch.dtype = torch.float64, **params: float
) -> tuple[list[float], list[float], list[float]]:
    """Losses, and the slopes of their sum weighed 1, 2, 3, ... so that a gradient under the wrong group shows."""
    lr = torch.tensor([row.lr for row in rows], dtype=dtype, requires_grad=True)
    logprobs = torch.tensor([row.logprob for row in rows], dtype=dtype, requires_grad=True)
    found = call(loss, lr, logprobs, rows, **params)
    total = (found * torch.arange(1, len(found) + 1, dtype=dtype)).sum() + 0 * (lr.sum() + logprobs.sum())
    by_ratio, by_logprob = torch.autograd.grad(total, (lr, logprobs))
    return found.tolist(), by_ratio.tolist(), by_logprob.tolist()


class TestAgainstLoops:
    @every
    @given(rows=responses, beta=st.sampled_from([0.1, 2.0]))
    def test_value_and_gradient_over_ragged_interleaved_groups(
        self, loss: Loss, slow: Slow, more: dict[str, float], rows: list[Response], beta: float
    ) -> None:
        losses, by_ratio, by_logprob = [], [0.0] * len(rows), [0.0] * len(rows)
        for k, group in enumerate(sorted({row.group for row in rows}), start=1):
            members = [i for i, row in enumerate(rows) if row.group == group]
            value, slopes, others = 0.0, [0.0], [0.0]
            if len(members) > 1:
                value, slopes, others = slow([rows[i] for i in members], beta)
            losses.append(value)
            for i, slope, other in zip(members, slopes, others, strict=True):
                by_ratio[i], by_logprob[i] = k * slope, k * other
        for found, expected in zip(
            measured(loss, rows, contrast_beta=beta, **more), (losses, by_ratio, by_logprob), strict=True
        ):
            assert found == pytest.approx(expected, rel=1e-9, abs=1e-9)

    @every
    def test_finite_differences(self, loss: Loss, slow: Slow, more: dict[str, float]) -> None:
        torch.manual_seed(0)
        lr, logprobs = (torch.randn(9, dtype=torch.float64).requires_grad_() for _ in range(2))
        authors = [DATA, POLICY, OPPONENT, DATA, POLICY, DATA, POLICY, DATA, OPPONENT]
        groups, scores = [2, 0, 2, 2, 0, 0, 2, 7, 0], [0.0, 0.7, 0.5, 0.3, 0.1, 0.8, 0.6, 0.4, 0.2]
        rows = [Response(g, s, 0.0, a) for g, s, a in zip(groups, scores, authors, strict=True)]
        assert torch.autograd.gradcheck(lambda a, b: call(loss, a, b, rows, contrast_beta=0.7, **more), (lr, logprobs))

    def test_defaults_are_a_beta_of_a_tenth_a_tiny_optimism_and_a_lambda_of_one(self) -> None:
        rows = [Response(0, 1.0, 0.4, DATA), Response(0, 0.0, -0.3, DATA), Response(0, 0.2, 0.1, POLICY)]
        rows.append(Response(0, 0.5, 0.2, OPPONENT, -12.0))
        changed = {"xpo": {"xpo_alpha": 1e-5}, "spac": {"spac_lambda": 1.0}}
        for loss, name in zip((entry[0] for entry in ALL), NAMES, strict=True):
            assert measured(loss, rows) == measured(loss, rows, contrast_beta=0.1, **changed.get(name, {}))
            assert measured(loss, rows) != measured(loss, rows, contrast_beta=0.2)

    @every_loss
    def test_groups_of_one_and_no_group_at_all_give_nothing(self, loss: Loss) -> None:
        rows = [Response(4, 1.0, 3.0, DATA), Response(2, 0.0, -2.0, OPPONENT), Response(9, 0.5, 0.5, POLICY)]
        assert measured(loss, rows) == ([0.0] * 3, [0.0] * 3, [0.0] * 3)
        assert measured(loss, [])[0] == []

    @every_loss
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_far_log_ratios_give_finite_losses_and_a_way_back(self, loss: Loss, dtype: torch.dtype) -> None:
        for far in (1e4, -1e4):
            rows = [Response(0, 1.0, far, DATA), Response(0, 0.0, -far, DATA), Response(0, 0.0, -far, OPPONENT)]
            losses, by_ratio, _ = measured(loss, [*rows, Response(0, 0.5, 0.0, POLICY)], dtype)
            assert all(math.isfinite(x) for x in losses + by_ratio)
            if far < 0:
                assert by_ratio[0] < -0.01
                assert max(by_ratio) > 0.01


class TestLaws:
    def test_sppo_rests_where_log_ratios_are_win_rates_around_a_half(self) -> None:
        rows = [Response(0, 0.9, 4.0), Response(0, 0.5, 0.0), Response(0, 0.1, -4.0)]
        assert measured(selfplay.sppo, rows)[0] == pytest.approx([0.0], abs=1e-20)
        shifted = [row._replace(lr=row.lr + 1) for row in rows]
        assert measured(selfplay.sppo, shifted)[0] == pytest.approx([1.0])

    @given(number, number)
    def test_sppo_with_certain_wins_is_half_its_hard_form(self, won: float, lost: float) -> None:
        """TRL's sppo_hard adds the winner's and the loser's squares; here it is their mean."""
        hard = (won - 0.5 / 0.1) ** 2 + (lost + 0.5 / 0.1) ** 2
        found = measured(selfplay.sppo, [Response(0, 1.0, won), Response(0, 0.0, lost)])[0]
        assert found == pytest.approx([hard / 2])

    @given(number, number, st.floats(0, 1), st.floats(0, 1))
    def test_soft_pairs_of_two_are_dpo_with_smoothed_labels(self, a: float, b: float, r: float, s: float) -> None:
        found = measured(selfplay.soft_pairs, [Response(0, r, a), Response(0, s, b)])
        wrong = sigmoid(s - r)
        lr = wide([a, b]).requires_grad_()
        dpo = best_worst_sigmoid(lr, wide([1, 0]), torch.tensor([0, 0]), label_smoothing=wrong)
        assert found[0] == pytest.approx(dpo.tolist())
        assert found[1] == pytest.approx(torch.autograd.grad(dpo.sum(), lr)[0].tolist(), abs=1e-12)

    @given(st.lists(st.floats(0, 1, width=32), min_size=2, max_size=6), st.sampled_from([0.1, 2.0]), number)
    def test_soft_pairs_rest_where_log_ratios_follow_the_win_rates(
        self, rates: list[float], beta: float, shift: float
    ) -> None:
        rows = [Response(0, r, r / beta + shift) for r in rates]
        at_rest = measured(selfplay.soft_pairs, rows, contrast_beta=beta)
        assert at_rest[1] == pytest.approx([0.0] * len(rates), abs=1e-9)
        rows[0] = rows[0]._replace(lr=rows[0].lr + 1)
        assert measured(selfplay.soft_pairs, rows, contrast_beta=beta)[0][0] > at_rest[0][0]

    @given(number, number, st.floats(0, 1), st.floats(0, 1), st.sampled_from([POLICY, OPPONENT]))
    def test_spin_with_one_opponent_is_dpo_and_reads_no_score(
        self, data: float, other: float, r: float, s: float, author: int
    ) -> None:
        rows = [Response(0, r, other, author), Response(0, s, data, DATA)]
        lr = wide([other, data]).requires_grad_()
        dpo = best_worst_sigmoid(lr, wide([0, 1]), torch.tensor([0, 0]))
        found = measured(selfplay.spin, rows)
        assert found[0] == pytest.approx(dpo.tolist())
        assert found[1] == pytest.approx(torch.autograd.grad(dpo.sum(), lr)[0].tolist())

    @pytest.mark.parametrize("loss", [selfplay.soft_pairs, selfplay.spin, selfplay.spac])
    def test_only_differences_of_log_ratios_count(self, loss: Loss) -> None:
        rows = [Response(0, 1.0, 0.4, DATA), Response(0, 0.0, -0.3, DATA), Response(0, 0.2, 0.1, POLICY)]
        moved = [row._replace(lr=row.lr + 3) for row in rows]
        assert measured(loss, moved)[0] == pytest.approx(measured(loss, rows)[0])

    def test_xpo_without_optimism_is_dpo_and_its_optimism_unsays_the_opponent(self) -> None:
        rows = [Response(0, 1.0, 0.4, POLICY, -3.0), Response(0, 0.0, -0.3, OPPONENT, -5.0)]
        lr = wide([0.4, -0.3])
        dpo = best_worst_sigmoid(lr, wide([1, 0]), torch.tensor([0, 0])).tolist()
        assert measured(selfplay.xpo, rows, xpo_alpha=0.0)[0] == pytest.approx(dpo)
        losses, _, by_logprob = measured(selfplay.xpo, rows, xpo_alpha=0.01)
        assert losses == pytest.approx([dpo[0] - 0.05])
        assert by_logprob == pytest.approx([0.0, 0.01])
        tied = [row._replace(score=1.0) for row in rows]
        assert measured(selfplay.xpo, tied, xpo_alpha=0.01) == ([-0.05], [0.0, 0.0], [0.0, 0.01])

    def test_spac_lowers_its_own_words_raises_the_data_s_best_and_reads_only_the_data_s_scores(self) -> None:
        rows = [Response(0, 1.0, 0.0, DATA), Response(0, 0.0, 0.0, DATA), Response(0, 9.0, 0.0), Response(0, -9.0, 0.0)]
        losses, by_ratio, _ = measured(selfplay.spac, rows, contrast_beta=0.2, spac_lambda=3.0)
        assert losses == pytest.approx([3 * math.log(2)])
        assert by_ratio == pytest.approx([-0.2 * 3 / 2 - 0.2, 0.2 * 3 / 2, 0.1, 0.1])

    @given(st.lists(number, min_size=4, max_size=4), st.sampled_from([0.2, 1.0]))
    def test_spac_is_its_critic_s_objective_at_the_reward_that_explains_the_policy_s_step(
        self, rewards: list[float], beta: float
    ) -> None:
        """Any reward, the mirror step that answers it, and from that step's log-ratios the game again."""
        before = [0.1, 0.4, 0.3, 0.2]
        after = [p * math.exp(r / beta) for p, r in zip(before, rewards, strict=True)]
        lr = [math.log(q / sum(after) / p) for p, q in zip(before, after, strict=True)]
        best, worst, *own = rewards
        expected = sum(own) / 2 - best - 3 * math.log(sigmoid(best - worst))
        rows = [Response(0, 1.0, lr[0], DATA), Response(0, 0.0, lr[1], DATA), *(Response(0, 0.0, x) for x in lr[2:])]
        found = measured(selfplay.spac, rows, contrast_beta=beta, spac_lambda=3.0)[0]
        assert found == pytest.approx([expected], rel=1e-9, abs=1e-9)
