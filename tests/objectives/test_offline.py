"""Regressions and advantages of offline responses, one response, step and token at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from posttrain.objectives import offline
from posttrain.objectives.contrasts import rebel
from posttrain.objectives.returns import Trajectory, gae
from posttrain.objectives.sets import Sequences
from tests.objectives.ragged import Batch, batches, build, measured
from tests.objectives.test_contrasts import gradient_of, wide

number = st.floats(-3, 3, width=32)
rated = st.lists(
    st.tuples(st.sampled_from([-7, 0, 3]), number, number, number), min_size=1, max_size=10
)  # group, score, log-ratio, value


def with_values(values: Tensor | None, size: int) -> Sequences:
    nothing = torch.full((size,), math.nan)
    return Sequences(nothing, nothing, torch.zeros(size, dtype=torch.long), torch.tensor(math.nan), values)


class TestDro:
    @given(rated, st.sampled_from([None, 0.3]))
    def test_value_and_both_gradients_are_means_over_ragged_interleaved_groups(
        self, rows: list, tau: float | None
    ) -> None:
        names, r, lr, v = (list(column) for column in zip(*rows, strict=True))
        losses, by_ratio, by_value, scale = [], [0.0] * len(rows), [0.0] * len(rows), tau or 1.0
        for k, group in enumerate(sorted(set(names)), start=1):
            members = [i for i, n in enumerate(names) if n == group]
            errors = {i: r[i] - v[i] - scale * lr[i] for i in members}
            losses.append(sum(e**2 / 2 for e in errors.values()) / len(members))
            for i, error in errors.items():
                by_ratio[i], by_value[i] = -k * scale * error / len(members), -k * error / len(members)
        log_ratios, values = wide(lr).requires_grad_(), wide(v).requires_grad_()
        params = {} if tau is None else {"dro_tau": tau}
        found = offline.dro(log_ratios, wide(r), torch.tensor(names), with_values(values, len(rows)), **params)
        total = (found * torch.arange(1, len(found) + 1)).sum()
        slopes = [g.tolist() for g in torch.autograd.grad(total, (log_ratios, values))]
        assert found.tolist() == pytest.approx(losses, rel=1e-9, abs=1e-12)
        assert slopes[0] == pytest.approx(by_ratio, rel=1e-9, abs=1e-12)
        assert slopes[1] == pytest.approx(by_value, rel=1e-9, abs=1e-12)

    def test_finite_differences_and_scores_as_data(self) -> None:
        torch.manual_seed(0)
        lr, v = (torch.randn(5, dtype=torch.float64).requires_grad_() for _ in range(2))
        r, groups = torch.randn(5, dtype=torch.float64).requires_grad_(), torch.tensor([2, 0, 2, 5, 0])
        assert torch.autograd.gradcheck(
            lambda a, b: offline.dro(a, r.detach(), groups, with_values(b, 5), dro_tau=0.7), (lr, v)
        )
        offline.dro(lr, r, groups, with_values(v, 5)).sum().backward()
        assert r.grad is None

    @given(number, number, number, number)
    def test_with_the_value_that_fits_two_responses_best_it_is_an_eighth_of_rebel(
        self, a: float, b: float, r: float, s: float
    ) -> None:
        """V = mean(r - tau lr) leaves each response half of the difference between the two, and 1/2 stands before."""
        scores, lr, groups = wide([r, s]), wide([a, b]), torch.tensor([0, 0])
        value = (scores - 0.5 * lr).mean().expand(2)
        found = offline.dro(lr, scores, groups, with_values(value, 2), dro_tau=0.5)
        assert found.item() == pytest.approx(rebel(lr, scores, groups, rebel_eta=2.0).item() / 8, rel=1e-9, abs=1e-12)

    def test_without_a_critic_it_is_refused(self) -> None:
        with pytest.raises(ValueError, match="train a critic"):
            offline.dro(torch.zeros(1), torch.zeros(1), torch.zeros(1).long(), with_values(None, 1))

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_far_log_ratios_are_pulled_back(self, dtype: torch.dtype) -> None:
        lr = torch.tensor([1e4, -1e4], dtype=dtype).requires_grad_()
        found = offline.dro(lr, torch.ones(2, dtype=dtype), torch.tensor([0, 1]), with_values(torch.zeros(2).to(lr), 2))
        assert found.tolist() == pytest.approx([9999**2 / 2, 10001**2 / 2])
        assert torch.autograd.grad(found.sum(), lr)[0].tolist() == pytest.approx([9999, -10001])


@st.composite
def trajectories(draw: st.DrawFn) -> Trajectory:
    length = draw(st.integers(1, 10))
    row = st.lists(number, min_size=length, max_size=length)
    ends = draw(st.none() | st.lists(st.booleans(), min_size=length, max_size=length).map(torch.tensor))
    return Trajectory(wide(draw(row)), wide(draw(row)), wide([draw(st.sampled_from([0.0, 1.75]))])[0], None, ends)


def steps_of(trajectory: Trajectory) -> list[list[int]]:
    """Tokens of each step."""
    last = len(trajectory.rewards) - 1
    ends = [last] if trajectory.ends is None else sorted({*trajectory.ends.nonzero()[:, 0].tolist(), last})
    return [list(range(begin, end + 1)) for begin, end in zip([0, *(e + 1 for e in ends)], ends, strict=False)]


def whole(trajectory: Trajectory) -> float:
    return sum(trajectory.rewards.tolist()) + float(trajectory.bootstrap)


class TestAdvantages:
    @given(trajectories())
    def test_above_value_is_what_a_response_brings_beyond_the_prompt_s_value_or_nothing(
        self, trajectory: Trajectory
    ) -> None:
        advantages, returns = offline.above_value(trajectory)
        length, total = len(trajectory.rewards), whole(trajectory)
        assert advantages.tolist() == pytest.approx([max(0.0, total - float(trajectory.values[0]))] * length)
        assert returns.tolist() == pytest.approx([total] * length)

    @given(trajectories())
    def test_a_step_is_worth_the_change_in_value_and_the_last_one_what_came_of_it(self, trajectory: Trajectory) -> None:
        advantages, returns = offline.step_differences(trajectory)
        steps, values = steps_of(trajectory), trajectory.values.tolist()
        for step in steps:
            after = whole(trajectory) if step is steps[-1] else values[step[-1] + 1]
            assert advantages[step].tolist() == pytest.approx([after - values[step[0]]] * len(step), abs=1e-9)
        assert returns.tolist() == pytest.approx([whole(trajectory)] * len(values))
        assert sum(float(advantages[step[0]]) for step in steps) == pytest.approx(
            whole(trajectory) - values[0], abs=1e-9
        )

    @given(trajectories())
    def test_a_step_a_token_is_the_one_step_error_of_a_reward_at_the_end(self, trajectory: Trajectory) -> None:
        rewards = torch.zeros_like(trajectory.rewards)
        rewards[-1] = 1.5
        fine = trajectory._replace(rewards=rewards, ends=torch.ones(len(rewards), dtype=torch.bool))
        expected, _ = gae(fine, lam=0.0)
        assert offline.step_differences(fine)[0].tolist() == pytest.approx(expected.tolist(), abs=1e-9)

    @pytest.mark.parametrize("formula", [offline.above_value, offline.step_differences])
    def test_nothing_is_differentiated_dtypes_are_kept_and_a_critic_is_needed(
        self, formula: Callable[[Trajectory], tuple[Tensor, Tensor]]
    ) -> None:
        leaf = torch.tensor([0.5, 0.25, 2.0], requires_grad=True)
        ends = torch.tensor([True, False, False])
        for found in formula(Trajectory(leaf * 2, leaf, leaf.sum(), None, ends)):
            assert not found.requires_grad
            assert found.dtype == torch.float32
        assert ends.tolist() == [True, False, False]
        for found in formula(Trajectory(torch.ones(0), torch.ones(0), torch.tensor(1.0), None, torch.ones(0).bool())):
            assert found.tolist() == []
        with pytest.raises(ValueError, match="needs a critic's values"):
            formula(Trajectory(leaf, None, leaf.sum()))


def slow_steps(batch: Batch, ends: list[bool] | None, beta: float) -> tuple[dict[int, float], dict[int, float]]:
    """Losses at last tokens and slopes of every masked token."""
    losses: dict[int, float] = {}
    slopes: dict[int, float] = {}
    step: list[int] = []
    masked = batch.masked()
    for i in masked:
        step.append(i)
        if i == batch.members(i)[-1] or (ends is not None and ends[i]):
            error = sum(float(batch.log_ratio[j]) for j in step) - float(batch.advantages[i]) / beta
            losses[i] = error**2 / 2
            slopes |= dict.fromkeys(step, error)
            step = []
    return losses, slopes


class TestStepRegression:
    @given(batch=batches(), data=st.data(), beta=st.sampled_from([None, 2.0]))
    def test_value_and_gradient_step_by_step_whatever_stands_outside_the_mask(
        self, batch: Batch, data: st.DataObject, beta: float | None
    ) -> None:
        size, mask = len(batch.log_ratio), batch.tokens.mask
        ends = data.draw(st.none() | st.lists(st.booleans(), min_size=size, max_size=size))
        losses, slopes = slow_steps(batch, ends, beta or 0.1)
        known = batch.tokens._replace(ends=None if ends is None else torch.tensor(ends))
        noise = Batch(batch.log_ratio.where(mask, 30.0), batch.advantages.where(mask, 1e6), known)
        for told in (Batch(batch.log_ratio, batch.advantages, known), noise):
            found, by_ratio, by_logprob = measured(
                offline.step_regression, told, **({} if beta is None else {"contrast_beta": beta})
            )
            assert found.tolist() == pytest.approx([losses.get(i, 0.0) for i in batch.masked()], rel=1e-9, abs=1e-9)
            assert by_ratio.tolist() == pytest.approx([slopes.get(i, 0.0) for i in range(size)], rel=1e-9, abs=1e-9)
            assert by_logprob.tolist() == [0.0] * size

    def test_finite_differences(self) -> None:
        batch = build([4, 1, 5], [True, False, True, True, True, True, True, True, False, True], seed=3, scale=0.5)
        ends = torch.tensor([True, False, False, False, False, False, True, False, True, False])
        tokens = batch.tokens._replace(ends=ends)
        assert torch.autograd.gradcheck(
            lambda x: offline.step_regression(x, batch.advantages, tokens, 0.7), (batch.log_ratio.requires_grad_(),)
        )

    def test_it_rests_where_each_step_s_log_ratio_is_its_advantage_over_beta(self) -> None:
        batch = build([3], [True] * 3, seed=0, scale=0.5)
        tokens = batch.tokens._replace(ends=torch.tensor([False, True, False]))
        lr = wide([1.0, 1.5, -2.0]).requires_grad_()
        found = offline.step_regression(lr, wide([0.25, 0.25, -0.2]), tokens, 0.1)
        assert found.tolist() == pytest.approx([0.0] * 3, abs=1e-24)
        assert gradient_of(found, lr) == pytest.approx([0.0] * 3, abs=1e-12)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_far_log_ratios_are_pulled_back(self, dtype: torch.dtype) -> None:
        lr = torch.tensor([1e4, 1.0, -1e4], dtype=dtype).requires_grad_()
        tokens = build([2, 1], [True] * 3, seed=0, scale=0.5).tokens
        found = offline.step_regression(lr, torch.zeros(3, dtype=dtype), tokens)
        slopes = torch.autograd.grad(found.sum(), lr)[0].tolist()
        assert slopes == pytest.approx([10001.0, 10001.0, -10000.0])
