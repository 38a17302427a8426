"""Losses of pairs: laws between them, sorted margins, extreme inputs; and how much a pair weighs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from posttrain.objectives import contrasts, divergences, margins, preferences
from posttrain.objectives.sets import Sequences
from tests.objectives.test_preferences import (
    DEFAULTS,
    Case,
    alphapo,
    cpl,
    discopop,
    every_loss,
    exo_pair,
    gradient_of,
    hinge,
    margin_sigmoid,
    modpo,
    robust,
    simpo,
    smoothed,
    wide,
)

PAIR, SCORES = torch.tensor([0, 0]), wide([1.0, 0.0])
numbers = st.floats(-3, 3, width=32)
betas = st.sampled_from([0.1, 0.5, 3.0])
OF_DIFFERENCES = [
    c for c in DEFAULTS if c.slow in (hinge, exo_pair, robust, discopop, simpo, alphapo, margin_sigmoid, modpo, cpl)
]
"""Cases that see only d: AlphaPO and CPL do because alpha is 0 and lambda 1 by default."""


def sequences(logprobs: Tensor, baseline: float = 0.0) -> Sequences:
    ones = torch.ones_like(logprobs.detach())
    return Sequences(logprobs, ones, ones.long(), torch.tensor(baseline, dtype=logprobs.dtype))


def measured(loss: object, values: list[float], scores: Tensor = SCORES, **parameters: Any) -> list[float]:
    """Loss of one pair and its two slopes."""
    log_ratios = wide(values).requires_grad_()
    found = loss(log_ratios, scores, PAIR, **parameters)
    return [float(found.detach()), *gradient_of(found, log_ratios)]


def same(one: list[float], other: list[float]) -> None:
    assert one == pytest.approx(other, rel=1e-9, abs=1e-9)


class TestLaws:
    @given(numbers, numbers, betas)
    def test_what_is_dpo_at_one_point_of_its_parameter(self, b: float, w: float, beta: float) -> None:
        dpo = measured(contrasts.best_worst_sigmoid, [b, w], contrast_beta=beta)
        for loss, parameters in (
            (preferences.robust, {"label_smoothing": 0.0}),
            (preferences.cpl, {"cpl_lambda": 1.0}),
            (preferences.simpo, {"simpo_gamma": 0.0}),
            (preferences.alphapo, {"alphapo_alpha": 0.0, "simpo_gamma": 0.0}),
            (preferences.positive_sigmoid, {"positive_penalty": 0.0}),
        ):
            same(measured(loss, [b, w], contrast_beta=beta, **parameters), dpo)
        alone = measured(
            lambda lr, s, g: preferences.mpo(lr, s, g, sequences(lr, 0.4), beta, sigmoid_weight=1.0, bco_weight=0.0),
            [b, w],
        )
        same(alone, dpo)

    @given(numbers, numbers, betas, st.sampled_from([0.0, 0.2, 0.5]))
    def test_margins_that_vanish_leave_dpo(self, b: float, w: float, beta: float, e: float) -> None:
        # A loss needs a best and a worst; these are as good as equal.
        near, dpo = wide([1e-12, 0.0]), contrasts.best_worst_sigmoid
        plain = measured(dpo, [b, w], contrast_beta=beta, label_smoothing=e)
        same(measured(margins.margin_sigmoid, [b, w], near, contrast_beta=beta, label_smoothing=e), plain)
        whole = measured(margins.modpo, [b, w], near, contrast_beta=beta, objective_weight=1.0)
        same(whole, measured(dpo, [b, w], contrast_beta=beta))

    @given(numbers, numbers, betas, st.floats(0.1, 5))
    def test_a_margin_is_a_log_ratio_already_paid_for(self, b: float, w: float, beta: float, gap: float) -> None:
        found = measured(margins.margin_sigmoid, [b, w], wide([gap, 0.0]), contrast_beta=beta)
        same(found, measured(contrasts.best_worst_sigmoid, [b - gap / beta, w], contrast_beta=beta))
        weighed = measured(margins.modpo, [b, w], wide([gap, 0.0]), contrast_beta=beta, objective_weight=0.3)
        same(weighed, measured(margins.margin_sigmoid, [b, w], wide([gap / 0.3, 0]), contrast_beta=beta / 0.3))

    @given(numbers, numbers, betas, st.floats(-3, 3))
    def test_a_margin_may_be_against_the_preference(self, b: float, w: float, beta: float, gap: float) -> None:
        offsets = wide([gap + 1.5, 1.5])
        for loss, parameters in ((margins.margin_sigmoid, {"label_smoothing": 0.2}), (margins.modpo, {})):
            slow = {margins.margin_sigmoid: margin_sigmoid, margins.modpo: modpo}[loss]
            found = measured(loss, [b, w], contrast_beta=beta, offsets=offsets, **parameters)
            same(found, list(slow(b, w, gap, beta, **parameters)))

    @given(numbers, numbers, betas, st.sampled_from([1e-3, 0.1, 0.4]))
    def test_exo_is_the_other_direction_of_smoothed_dpo(self, b: float, w: float, beta: float, e: float) -> None:
        q = torch.sigmoid(wide([beta * (b - w), beta * (w - b)])).tolist()
        p = [1 - e, e]
        forward = sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
        dpo = measured(contrasts.best_worst_sigmoid, [b, w], contrast_beta=beta, label_smoothing=e)
        assert dpo[0] - forward == pytest.approx(-sum(x * math.log(x) for x in p), abs=1e-9)
        exo = measured(preferences.exo_pair, [b, w], contrast_beta=beta, label_smoothing=e)
        assert exo[0] == pytest.approx(sum(y * math.log(y / x) for x, y in zip(p, q, strict=True)), abs=1e-9)

    def test_both_directions_are_least_where_the_margin_is_the_labels_log_odds(self) -> None:
        e = 0.1
        solved = math.log((1 - e) / e) / 0.5
        for loss in (preferences.exo_pair, contrasts.best_worst_sigmoid):
            at = measured(loss, [solved, 0.0], contrast_beta=0.5, label_smoothing=e)
            assert at[1:] == pytest.approx([0.0, 0.0], abs=1e-12)
            for off in (solved - 0.1, solved + 0.1):
                assert measured(loss, [off, 0.0], contrast_beta=0.5, label_smoothing=e)[0] > at[0]
        assert measured(preferences.exo_pair, [solved, 0.0], contrast_beta=0.5, label_smoothing=e)[0] == pytest.approx(
            0
        )

    def test_exo_grows_towards_its_limit_by_the_log_of_the_smoothing(self) -> None:
        # Less what q spends on the wrong side, -q_worst log e, the loss tends to the entropy of q with its sign turned.
        q = 1 / (1 + math.exp(-0.2))
        entropy = -q * math.log(q) - (1 - q) * math.log(1 - q)
        for e in (1e-6, 1e-9, 1e-12):
            found = measured(preferences.exo_pair, [2.0, 0.0], contrast_beta=0.1, label_smoothing=e)[0]
            assert found + (1 - q) * math.log(e) == pytest.approx(-entropy, abs=2 * e + 1e-12)

    @given(numbers, numbers, betas, st.sampled_from([0.1, 0.3, 0.45]))
    def test_labels_flipped_at_random_leave_the_robust_loss_unbiased(
        self, b: float, w: float, beta: float, e: float
    ) -> None:
        right = measured(preferences.robust, [b, w], contrast_beta=beta, label_smoothing=e)
        wrong = measured(preferences.robust, [b, w], wide([0.0, 1.0]), contrast_beta=beta, label_smoothing=e)
        mean = [(1 - e) * x + e * y for x, y in zip(right, wrong, strict=True)]
        same(mean, measured(contrasts.best_worst_sigmoid, [b, w], contrast_beta=beta))

    @given(numbers, numbers, betas)
    def test_a_label_wrong_half_the_time_prefers_neither_response(self, b: float, w: float, beta: float) -> None:
        near = wide([1e-12, 0.0])
        for loss in (margins.margin_sigmoid, preferences.aot_unpaired, contrasts.best_worst_sigmoid):
            one, two = (measured(loss, x, near, contrast_beta=beta, label_smoothing=0.5) for x in ([b, w], [w, b]))
            same(one, [two[0], two[2], two[1]])

    @given(numbers, numbers)
    def test_the_anchored_losses_split_into_responses(self, b: float, w: float) -> None:
        for loss in (preferences.apo_zero, preferences.nca_pair, preferences.sppo_hard):
            values = [[measured(loss, [x, y])[0] for y in (w, 0.0)] for x in (b, 0.0)]
            assert values[0][0] + values[1][1] == pytest.approx(values[0][1] + values[1][0], abs=1e-9)

    @pytest.mark.parametrize("case", OF_DIFFERENCES, ids=[c.name for c in OF_DIFFERENCES])
    @given(numbers, numbers, numbers)
    def test_losses_of_differences_do_not_see_a_shift(self, case: Case, b: float, w: float, shift: float) -> None:
        same(measured(case.loss, [b, w]), measured(case.loss, [b + shift, w + shift]))

    def test_the_others_do(self) -> None:
        curved = [Case(alphapo, {"alphapo_alpha": 0.25}), Case(cpl, {"cpl_lambda": 0.5})]
        for case in [*DEFAULTS, *curved]:
            if case not in OF_DIFFERENCES:
                values = [measured(case.loss, [x, x - 0.7])[0] for x in (-0.5, -1.0)]
                assert abs(values[0] - values[1]) > 1e-5, case.name

    @every_loss
    @given(numbers, numbers, st.floats(0.1, 3))
    def test_a_pair_and_its_scores_in_the_other_order_are_the_same_pair(
        self, case: Case, b: float, w: float, gap: float
    ) -> None:
        b, w = b - 3.1 * case.likely, w - 3.1 * case.likely
        one, two = measured(case.loss, [b, w], wide([gap, 0])), measured(case.loss, [w, b], wide([0, gap]))
        assert one == [two[0], two[2], two[1]]

    @given(numbers, numbers, betas)
    def test_alphapo_is_simpo_of_the_alpha_divergence(self, b: float, w: float, beta: float) -> None:
        found = measured(preferences.alphapo, [b, w], contrast_beta=beta, alphapo_alpha=0.4, simpo_gamma=0.2)
        same(
            found,
            measured(lambda x, *rest: preferences.simpo(divergences.alpha(x, 0.6), *rest, beta, 0.2), [b, w]),
        )
        near = measured(preferences.alphapo, [b, w], contrast_beta=beta, alphapo_alpha=1e-9)
        # The reward is within alpha lr^2 / 2 of the log-ratio.
        assert near == pytest.approx(measured(preferences.simpo, [b, w], contrast_beta=beta, simpo_gamma=0.5), abs=1e-6)


@pytest.mark.parametrize(("loss", "e"), [("exo_pair", 0.0), ("exo_pair", 1.0), ("robust", 0.5), ("robust", -0.1)])
def test_a_smoothing_that_leaves_no_loss_is_refused(loss: str, e: float) -> None:
    with pytest.raises(ValueError, match=rf"{loss} needs a label_smoothing .*; got {e}"):
        getattr(preferences, loss)(wide([0.1, 0.2]), SCORES, PAIR, label_smoothing=e)


class TestSortedMargins:
    """Groups 9, 1, 4 and 6 prefer one of their responses; group 2 is alone and group 7 of one mind."""

    groups = torch.tensor([9, 1, 7, 4, 9, 1, 2, 4, 7, 6, 6])
    scores = wide([1.0, 0.0, 3.0, 0.2, 0.0, 1.0, 5.0, 0.1, 3.0, 0.0, 1.0])
    pairs = ((5, 1), (3, 7), (10, 9), (0, 4))
    """Best and worst of groups 1, 4, 6 and 9."""
    places = (0, 2, 3, 5)
    """Of these groups among all six, in ascending order."""

    def drawn(self, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        policy, anchor = torch.randn(2, len(self.groups), generator=generator, dtype=torch.float64) * 5 - 20
        return policy, policy - anchor

    def expected(self, upper: list[float], lower: list[float], e: float) -> tuple[list[float], dict[int, float]]:
        """Losses in the order of the ranks, and the slope of the upper value of each pair, its loss times its place."""
        order = [sorted(range(4), key=values.__getitem__) for values in (upper, lower)]
        losses, slopes = [0.0] * 6, {}
        for place, above, below in zip(self.places, *order, strict=True):
            value, slope, _ = smoothed(0.3 * (upper[above] - lower[below]), 0.3, -0.3, e)
            losses[place], slopes[above] = value, (place + 1) * slope
        return losses, slopes

    @pytest.mark.parametrize("e", [0.0, 0.2])
    @pytest.mark.parametrize("seed", range(5))
    def test_aot_ranks_margins_of_policy_and_anchor_over_all_groups(self, seed: int, e: float) -> None:
        policy, ratios = self.drawn(seed)
        margins = [[float(v[b] - v[w]) for b, w in self.pairs] for v in (policy, policy - ratios)]
        losses, slopes = self.expected(*margins, e)
        log_ratios = ratios.clone().requires_grad_()
        found = preferences.aot(
            log_ratios, self.scores, self.groups, sequences(policy), contrast_beta=0.3, label_smoothing=e
        )
        gradient = [0.0] * len(self.groups)
        for at, (b, w) in enumerate(self.pairs):
            gradient[b], gradient[w] = slopes[at], -slopes[at]
        same(found.tolist(), losses)
        same(gradient_of(found, log_ratios), gradient)

    @pytest.mark.parametrize("e", [0.0, 0.2])
    @pytest.mark.parametrize("seed", range(5))
    def test_unpaired_aot_ranks_best_and_worst_responses_over_all_groups(self, seed: int, e: float) -> None:
        _, ratios = self.drawn(seed)
        upper, lower = ([float(ratios[pair[side]]) for pair in self.pairs] for side in (0, 1))
        losses, up = self.expected(upper, lower, e)
        log_ratios = ratios.clone().requires_grad_()
        found = preferences.aot_unpaired(log_ratios, self.scores, self.groups, contrast_beta=0.3, label_smoothing=e)
        same(found.tolist(), losses)
        slopes = gradient_of(found, log_ratios)
        order = [sorted(range(4), key=values.__getitem__) for values in (upper, lower)]
        for above, below in zip(*order, strict=True):
            # What lifts a rank's best response lowers the worst one of the same rank by as much.
            assert slopes[self.pairs[above][0]] == pytest.approx(up[above])
            assert slopes[self.pairs[below][1]] == pytest.approx(-up[above])
        assert [slopes[i] for i in (2, 6, 8)] == [0.0] * 3

    def test_one_group_is_dpo(self) -> None:
        dpo = measured(contrasts.best_worst_sigmoid, [-0.4, 0.9])
        same(measured(preferences.aot_unpaired, [-0.4, 0.9]), dpo)
        same(measured(lambda lr, s, g: preferences.aot(lr, s, g, sequences(wide([-7.0, -5.0]))), [-0.4, 0.9]), dpo)

    def test_which_best_meets_which_worst_does_not_matter_unpaired(self) -> None:
        scores, groups = wide([1, 0] * 3), torch.tensor([0, 0, 1, 1, 2, 2])
        one = preferences.aot_unpaired(wide([0.3, -1.0, 2.0, 0.7, -0.1, 1.4]), scores, groups)
        other = preferences.aot_unpaired(wide([2.0, -1.0, -0.1, 1.4, 0.3, 0.7]), scores, groups)
        assert one.tolist() == other.tolist()

    def test_finite_differences(self) -> None:
        policy, ratios = self.drawn(7)

        def of(log_ratios: Tensor) -> tuple[Tensor, Tensor]:
            # The anchor stays where it is while the policy moves.
            policy_now = policy + (log_ratios - ratios).detach()
            paired = preferences.aot(log_ratios, self.scores, self.groups, sequences(policy_now))
            return paired, preferences.aot_unpaired(log_ratios, self.scores, self.groups)

        assert torch.autograd.gradcheck(of, (ratios.clone().requires_grad_(),))

    def test_without_a_pair_there_is_nothing_and_it_can_be_differentiated(self) -> None:
        log_ratios = wide([0.3, -2.0, 1.0]).requires_grad_()
        for loss in (preferences.aot_unpaired, lambda lr, s, g: preferences.aot(lr, s, g, sequences(lr))):
            found = loss(log_ratios, wide([1.0, 2.0, 2.0]), torch.tensor([5, 3, 3]))
            assert found.tolist() == [0.0, 0.0]
            assert gradient_of(found, log_ratios) == [0.0] * 3
