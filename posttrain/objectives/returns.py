"""From the rewards and values along one response to advantages and to what the critic should have said.

`[A]` are the tokens the policy said, compressed: what a tool or the environment wrote is not among them, so no return
ever runs through it. The reward for reaching the end sits on the last of them. All of it is computed in double
precision, and nothing is differentiated.
"""

from typing import NamedTuple

import torch
from torch import Tensor


class Trajectory(NamedTuple):
    """One response: `[A]` rewards, `[A]` values of the state before each token (None without a critic), the `[]` value
    of the state after the last token (0 where the response ended by itself, so only a cut one expects more), `[A]`
    log-probabilities of the trainer minus those of the engine, and `[A]` (bool) where a step of it ends (None: nowhere
    but with the response).
    """

    rewards: Tensor
    values: Tensor | None
    bootstrap: Tensor
    log_ratio: Tensor | None = None
    ends: Tensor | None = None


def reward_to_go(trajectory: Trajectory, gamma: float = 1.0) -> tuple[Tensor, Tensor]:
    """Advantages and returns `[A]`, both R_t = sum_l gamma^l r_{t+l} + gamma^(A-t) bootstrap (REINFORCE++, 2501.03262).

    Values are not looked at: `gae` with lam = 1 is the same return against a critic.
    """
    returns = _shaped_like(trajectory.rewards, _monte_carlo(trajectory, gamma)[:-1])
    return returns, returns


def gae(trajectory: Trajectory, gamma: float = 1.0, lam: float = 0.95) -> tuple[Tensor, Tensor]:
    """Advantages `[A]` sum_l (gamma lam)^l d_{t+l} and returns A_t + V_t (1506.02438).

    d_t = r_t + gamma V_{t+1} - V_t, with the bootstrap as the last V_{t+1}. lam = 0 is the one-step error, lam = 1 the
    Monte Carlo return minus the value.
    """
    values = _values(trajectory, "gae")
    errors = _plain(trajectory.rewards) + gamma * values[1:] - values[:-1]
    advantages = _accumulate(errors, torch.full_like(errors, gamma * lam), 0.0)[:-1]
    rewards = trajectory.rewards
    return _shaped_like(rewards, advantages), _shaped_like(rewards, advantages + values[:-1])


def length_adaptive_gae(
    trajectory: Trajectory, gamma: float = 1.0, adaptive_alpha: float = 0.05
) -> tuple[Tensor, Tensor]:
    """Advantages `[A]` of `gae` with lam = 1 - 1 / (alpha A), at least 0, and returns with lam = 1 (VAPO, 2504.05118).

    The longer the response, the further its end is heard: the weights lam^l add up to alpha A. A response of at most
    1 / alpha tokens sees one step ahead. The critic's targets are Monte Carlo returns, so their bias does not grow
    with the length.
    """
    length = len(trajectory.rewards)
    lam = max(0.0, 1 - 1 / (adaptive_alpha * length)) if length else 0.0
    advantages, _ = gae(trajectory, gamma, lam)
    _, returns = gae(trajectory, gamma, 1.0)
    return advantages, returns


def n_step(trajectory: Trajectory, gamma: float = 1.0, n_steps: int = 8) -> tuple[Tensor, Tensor]:
    """Advantages `[A]` R_t - V_t and returns R_t = sum_{l<n} gamma^l r_{t+l} + gamma^n V_{t+n} (A3C, 1602.01783).

    Fewer than n tokens before the end: all of them, then the bootstrap. n = 1 is `gae` with lam = 0, n >= A with
    lam = 1. Raises ValueError for n < 1.
    """
    if n_steps < 1:
        raise ValueError(f"n_steps is {n_steps}; a return looks at least 1 token ahead")
    values, whole = _values(trajectory, "n_step"), _monte_carlo(trajectory, gamma)
    # The whole return, with what follows the n-th token replaced by the critic's guess of it. Past the end they agree.
    ahead = (torch.arange(len(values) - 1) + n_steps).clamp(max=len(values) - 1)
    returns = whole[:-1] + gamma**n_steps * (values - whole)[ahead]
    rewards = trajectory.rewards
    return _shaped_like(rewards, returns - values[:-1]), _shaped_like(rewards, returns)


def v_trace(
    trajectory: Trajectory, gamma: float = 1.0, lam: float = 1.0, rho_cap: float = 1.0, c_cap: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Advantages `[A]` rho_s (r_s + gamma v_{s+1} - V_s) and returns v_s (IMPALA, 1802.01561, eq. 1 and section 4.2).

    v_s = V_s + sum_{t>=s} gamma^(t-s) (prod_{s<=i<t} c_i) rho_t d_t with d_t = r_t + gamma V_{t+1} - V_t,
    rho = min(rho_cap, ratio), c = lam min(c_cap, ratio), ratio = exp(log_ratio). rho_cap decides which policy's value
    the critic learns, c_cap only how fast; the paper takes rho_cap >= c_cap. The advantage carries the weight rho
    already: a correction for the same gap on top would count it twice.
    """
    if trajectory.log_ratio is None:
        raise ValueError(
            "v_trace weighs by the gap between trainer and engine and got no log-probabilities of the engine; "
            "keep those of the rollout, or use gae"
        )
    values, rewards = _values(trajectory, "v_trace"), _plain(trajectory.rewards)
    ratio = _plain(trajectory.log_ratio).exp()
    rho, c = ratio.clamp(max=rho_cap), lam * ratio.clamp(max=c_cap)
    errors = rho * (rewards + gamma * values[1:] - values[:-1])
    targets = values + _accumulate(errors, gamma * c, 0.0)
    advantages = rho * (rewards + gamma * targets[1:] - values[:-1])
    return _shaped_like(trajectory.rewards, advantages), _shaped_like(trajectory.rewards, targets[:-1])


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().double().cpu()


def _shaped_like(rewards: Tensor, found: Tensor) -> Tensor:
    return found.to(device=rewards.device, dtype=rewards.dtype)


def _values(trajectory: Trajectory, formula: str) -> Tensor:
    """`[A + 1]`: the value before each token, then the bootstrap."""
    if trajectory.values is None:
        raise ValueError(f"{formula} needs a critic's values and got none; train a critic, or use reward_to_go")
    return torch.cat([_plain(trajectory.values), _plain(trajectory.bootstrap).reshape(1)])


def _monte_carlo(trajectory: Trajectory, gamma: float) -> Tensor:
    """`[A + 1]`: the discounted sum of rewards from each token on, the bootstrap included and last."""
    rewards = _plain(trajectory.rewards)
    return _accumulate(rewards, torch.full_like(rewards, gamma), float(trajectory.bootstrap.detach()))


def _accumulate(terms: Tensor, decay: Tensor, last: float) -> Tensor:
    """`[A + 1]`: x_A = last, x_t = terms_t + decay_t x_{t+1}. A loop over numbers: faster than over tensors."""
    found = [last]
    for term, factor in zip(reversed(terms.tolist()), reversed(decay.tolist()), strict=True):
        found.append(term + factor * found[-1])
    return torch.tensor(found[::-1], dtype=terms.dtype)
