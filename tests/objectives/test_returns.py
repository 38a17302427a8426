"""Returns along one response against their definitions as sums, written out one token and one term at a time."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from posttrain.objectives.returns import Trajectory, gae, length_adaptive_gae, n_step, reward_to_go, v_trace

real = st.floats(-3, 3, width=32)
share = st.sampled_from([0.0, 0.3, 0.95, 1.0])


@st.composite
def trajectories(draw: st.DrawFn, gap: float = 1.5) -> Trajectory:
    length = draw(st.integers(1, 12))

    def row(entries: st.SearchStrategy[float]) -> torch.Tensor:
        return torch.tensor(draw(st.lists(entries, min_size=length, max_size=length)), dtype=torch.float64)

    last = torch.tensor(draw(st.sampled_from([0.0, 1.75])), dtype=torch.float64)
    return Trajectory(row(real), row(real), last, row(st.floats(-gap, gap)))


def plain(trajectory: Trajectory) -> tuple[list[float], list[float]]:
    """Rewards, and values with the bootstrap behind them."""
    return trajectory.rewards.tolist(), [*trajectory.values.tolist(), float(trajectory.bootstrap)]


def by_n_steps(trajectory: Trajectory, gamma: float, n: int) -> list[float]:
    rewards, values = plain(trajectory)
    found = []
    for t in range(len(rewards)):
        ahead = min(n, len(rewards) - t)
        found.append(sum(gamma**i * rewards[t + i] for i in range(ahead)) + gamma**ahead * values[t + ahead])
    return found


def by_one_step_errors(trajectory: Trajectory, gamma: float, lam: float) -> list[float]:
    rewards, values = plain(trajectory)
    errors = [r + gamma * values[t + 1] - values[t] for t, r in enumerate(rewards)]
    return [sum((gamma * lam) ** i * e for i, e in enumerate(errors[t:])) for t in range(len(errors))]


def minus_values(returns: list[float], trajectory: Trajectory) -> list[float]:
    return [r - v for r, v in zip(returns, trajectory.values.tolist(), strict=True)]


@given(trajectories(), share)
def test_reward_to_go_is_what_is_still_to_come_and_asks_no_critic(trajectory: Trajectory, gamma: float) -> None:
    expected = by_n_steps(trajectory, gamma, 99)
    for asked in (trajectory, trajectory._replace(values=None)):
        advantages, returns = reward_to_go(asked, gamma)
        assert advantages.tolist() == pytest.approx(expected, abs=1e-9)
        assert returns.tolist() == pytest.approx(expected, abs=1e-9)


@given(trajectories(), share, share)
def test_gae_is_the_discounted_sum_of_one_step_errors(trajectory: Trajectory, gamma: float, lam: float) -> None:
    advantages, returns = gae(trajectory, gamma, lam)
    expected = by_one_step_errors(trajectory, gamma, lam)
    assert advantages.tolist() == pytest.approx(expected, abs=1e-9)
    assert minus_values(returns.tolist(), trajectory) == pytest.approx(expected, abs=1e-9)


@given(trajectories(), share, share)
def test_gae_is_the_average_of_n_step_advantages_that_its_name_promises(
    trajectory: Trajectory, gamma: float, lam: float
) -> None:
    """(1 - lam) sum_n lam^(n-1) A^(n), and everything beyond the end is the whole return."""
    length = len(trajectory.rewards)
    each = [minus_values(by_n_steps(trajectory, gamma, n), trajectory) for n in range(1, length + 1)]
    advantages = gae(trajectory, gamma, lam)[0].tolist()
    for t in range(length):
        left = length - t
        expected = sum((1 - lam) * lam ** (n - 1) * each[n - 1][t] for n in range(1, left))
        assert advantages[t] == pytest.approx(expected + lam ** (left - 1) * each[left - 1][t], abs=1e-9)


@given(trajectories(), share)
def test_gae_at_its_ends_is_the_return_minus_the_value_and_the_one_step_error(
    trajectory: Trajectory, gamma: float
) -> None:
    whole = reward_to_go(trajectory, gamma)[1].tolist()
    assert gae(trajectory, gamma, 1.0)[0].tolist() == pytest.approx(minus_values(whole, trajectory), abs=1e-9)
    assert gae(trajectory, gamma, 1.0)[1].tolist() == pytest.approx(whole, abs=1e-9)
    rewards, values = plain(trajectory)
    error = [r + gamma * values[t + 1] - values[t] for t, r in enumerate(rewards)]
    assert gae(trajectory, gamma, 0.0)[0].tolist() == pytest.approx(error, abs=1e-9)


@given(trajectories(), share, st.sampled_from([0.05, 0.1, 0.5, 4.0]))
def test_length_adaptive_gae_hears_further_in_a_longer_response(
    trajectory: Trajectory, gamma: float, alpha: float
) -> None:
    length = len(trajectory.rewards)
    lam = 1 - 1 / (alpha * length)
    advantages, returns = length_adaptive_gae(trajectory, gamma, alpha)
    expected = by_one_step_errors(trajectory, gamma, lam if lam > 0 else 0.0)
    assert advantages.tolist() == pytest.approx(expected, abs=1e-9)
    assert returns.tolist() == pytest.approx(by_n_steps(trajectory, gamma, 99), abs=1e-9)


def test_the_adaptive_weights_add_up_to_a_share_of_the_length() -> None:
    """A single error at the end of 200 tokens: alpha = .05 weighs the last ones .9^l, which add up to 10."""
    rewards = torch.zeros(200, dtype=torch.float64)
    rewards[-1] = 1.0
    nothing = Trajectory(rewards, torch.zeros(200, dtype=torch.float64), torch.tensor(0.0))
    advantages, returns = length_adaptive_gae(nothing, adaptive_alpha=0.05)
    assert advantages[-3:].tolist() == pytest.approx([0.81, 0.9, 1.0])
    assert float(advantages.sum()) == pytest.approx(10.0, abs=1e-6)
    assert returns.tolist() == [1.0] * 200


@given(trajectories(), share, st.integers(1, 14))
def test_n_step_returns_end_in_the_critics_guess(trajectory: Trajectory, gamma: float, n: int) -> None:
    advantages, returns = n_step(trajectory, gamma, n)
    expected = by_n_steps(trajectory, gamma, n)
    assert returns.tolist() == pytest.approx(expected, abs=1e-9)
    assert advantages.tolist() == pytest.approx(minus_values(expected, trajectory), abs=1e-9)


@given(trajectories(), share)
def test_one_step_is_gae_without_memory_and_all_steps_are_monte_carlo(trajectory: Trajectory, gamma: float) -> None:
    one, every = n_step(trajectory, gamma, 1)[0], n_step(trajectory, gamma, len(trajectory.rewards))
    assert one.tolist() == pytest.approx(gae(trajectory, gamma, 0.0)[0].tolist(), abs=1e-9)
    assert every[0].tolist() == pytest.approx(gae(trajectory, gamma, 1.0)[0].tolist(), abs=1e-9)
    assert every[1].tolist() == pytest.approx(reward_to_go(trajectory, gamma)[1].tolist(), abs=1e-9)


def test_a_return_that_looks_nowhere_is_refused() -> None:
    with pytest.raises(ValueError, match="n_steps is 0"):
        n_step(Trajectory(torch.ones(2), torch.ones(2), torch.tensor(0.0)), n_steps=0)


def by_double_sum(
    trajectory: Trajectory, gamma: float, lam: float, rho_cap: float, c_cap: float
) -> tuple[list[float], list[float]]:
    """Equation 1 of the paper, term by term."""
    rewards, values = plain(trajectory)
    ratio = [math.exp(g) for g in trajectory.log_ratio.tolist()]
    targets = []
    for s in range(len(rewards)):
        total = values[s]
        for t in range(s, len(rewards)):
            trace = 1.0
            for i in range(s, t):
                trace *= lam * min(c_cap, ratio[i])
            error = rewards[t] + gamma * values[t + 1] - values[t]
            total += gamma ** (t - s) * trace * min(rho_cap, ratio[t]) * error
        targets.append(total)
    following = [*targets[1:], values[-1]]
    advantages = [min(rho_cap, ratio[s]) * (r + gamma * following[s] - values[s]) for s, r in enumerate(rewards)]
    return advantages, targets


@given(trajectories(), share, share, st.sampled_from([0.7, 1.0, 3.0]), st.sampled_from([0.5, 1.0, 2.0]))
def test_v_trace_is_the_double_sum_of_its_paper(
    trajectory: Trajectory, gamma: float, lam: float, rho_cap: float, c_cap: float
) -> None:
    advantages, returns = v_trace(trajectory, gamma, lam, rho_cap, c_cap)
    expected = by_double_sum(trajectory, gamma, lam, rho_cap, c_cap)
    assert advantages.tolist() == pytest.approx(expected[0], abs=1e-8)
    assert returns.tolist() == pytest.approx(expected[1], abs=1e-8)


@given(trajectories(), share, share)
def test_v_trace_on_policy_is_the_whole_return_or_the_lambda_return(
    trajectory: Trajectory, gamma: float, lam: float
) -> None:
    same = trajectory._replace(log_ratio=torch.zeros_like(trajectory.rewards))
    advantages, returns = v_trace(same, gamma)
    whole = reward_to_go(same, gamma)[1].tolist()
    assert returns.tolist() == pytest.approx(whole, abs=1e-9)
    assert returns.tolist() == pytest.approx(n_step(same, gamma, 99)[1].tolist(), abs=1e-9)
    assert advantages.tolist() == pytest.approx(minus_values(whole, same), abs=1e-9)
    assert v_trace(same, gamma, lam)[1].tolist() == pytest.approx(gae(same, gamma, lam)[1].tolist(), abs=1e-9)


def test_uncapped_v_trace_learns_the_value_of_the_trainers_policy() -> None:
    """Two answers of one token, rewarded 1 and 0: averaged over what the engine says, the target is the trainer's."""
    engine, trainer = [0.8, 0.2], [0.4, 0.6]
    total = 0.0
    for q, p, reward in zip(engine, trainer, [1.0, 0.0], strict=True):
        gap = torch.tensor([math.log(p / q)], dtype=torch.float64)
        rewards = torch.tensor([reward], dtype=torch.float64)
        one = Trajectory(rewards, torch.full_like(rewards, 0.3), torch.tensor(0.0), gap)
        total += q * float(v_trace(one, rho_cap=math.inf)[1])
    assert total == pytest.approx(0.4)


def test_a_ratio_beyond_any_number_is_its_cap() -> None:
    rewards = torch.tensor([0.0, 1.0])
    far = Trajectory(rewards, torch.zeros(2), torch.tensor(0.0), torch.tensor([900.0, 900.0]))
    assert v_trace(far, rho_cap=2.0, c_cap=1.0)[1].tolist() == [2.0, 2.0]


every: dict[str, Callable[[Trajectory], tuple[torch.Tensor, torch.Tensor]]] = {
    "reward_to_go": reward_to_go,
    "gae": gae,
    "length_adaptive_gae": lambda t: length_adaptive_gae(t, adaptive_alpha=4.0),
    "n_step": lambda t: n_step(t, n_steps=3),
    "v_trace": v_trace,
}


@pytest.mark.parametrize("name", every)
def test_what_a_cut_response_expects_counts_as_a_last_reward(name: str) -> None:
    """A bootstrap of b is worth b more of reward on the last token, and reaches as far as the formula reaches."""
    torch.manual_seed(0)
    rewards, values = torch.randn(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    ended = Trajectory(rewards, values, torch.tensor(0.0, dtype=torch.float64), torch.zeros(6, dtype=torch.float64))
    cut = ended._replace(bootstrap=torch.tensor(2.0, dtype=torch.float64))
    more = ended._replace(rewards=rewards + torch.tensor([0.0, 0, 0, 0, 0, 2.0], dtype=torch.float64))
    gain = every[name](cut)[0] - every[name](ended)[0]
    torch.testing.assert_close(every[name](cut), every[name](more))
    lam = {"gae": 0.95, "length_adaptive_gae": 1 - 1 / 24}.get(name, 1.0)
    expected = [2 * lam ** (5 - t) for t in range(6)]
    if name == "n_step":
        expected = [0.0] * 3 + [2.0] * 3
    assert gain.tolist() == pytest.approx(expected)


@pytest.mark.parametrize("name", every)
def test_returns_keep_the_dtype_are_never_differentiated_and_take_an_empty_response(name: str) -> None:
    leaf = torch.ones(3, requires_grad=True)
    for out in every[name](Trajectory(leaf * 2, leaf, leaf.sum(), leaf)):
        assert out.dtype == torch.float32
        assert not out.requires_grad
    for out in every[name](Trajectory(torch.ones(0), torch.ones(0), torch.tensor(1.0), torch.ones(0))):
        assert out.shape == (0,)


@pytest.mark.parametrize("name", [n for n in every if n != "reward_to_go"])
def test_without_a_critic_the_way_out_is_named(name: str) -> None:
    with pytest.raises(ValueError, match=r"needs a critic's values.*reward_to_go"):
        every[name](Trajectory(torch.ones(3), None, torch.tensor(0.0), torch.zeros(3)))


def test_v_trace_without_the_engines_probabilities_is_not_silently_on_policy() -> None:
    with pytest.raises(ValueError, match="no log-probabilities of the engine"):
        v_trace(Trajectory(torch.ones(3), torch.ones(3), torch.tensor(0.0)))


def test_a_long_response_of_single_precision_loses_nothing_on_the_way() -> None:
    rewards = torch.full((20_000,), 0.1)
    found = reward_to_go(Trajectory(rewards, None, torch.tensor(0.0)))[1]
    assert float(found[0]) == pytest.approx(20_000 * float(rewards[0]), rel=1e-7)
