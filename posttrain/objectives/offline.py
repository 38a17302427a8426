"""Learning from scored responses that somebody else wrote, with a critic: what advantages are, and regressions on them.

Values here are guesses of the whole score of a response from what stands of it, so the last word on a response is the
sum of its rewards, and a step is worth what it changes in the guess.
"""

import torch
from torch import Tensor

from posttrain.objectives.returns import Trajectory
from posttrain.objectives.sets import Sequences, each
from posttrain.objectives.tokens import Tokens


def dro(log_ratios: Tensor, scores: Tensor, groups: Tensor, sequences: Sequences, dro_tau: float = 1.0) -> Tensor:
    """`[S]` to `[K]`: mean over a group's members, of which one is enough, of (r - V - tau lr)^2 / 2 (DRO, 2405.19107).

    V is the critic's value of the prompt, `sequences.values [S]`; it learns from the same loss, so the gradient flows
    through V and lr. Raises ValueError without a critic.
    """
    if sequences.values is None:
        raise ValueError("dro regresses on the score minus the critic's value and got no values; train a critic")
    error = scores.detach().to(log_ratios.dtype) - sequences.values - dro_tau * log_ratios
    return each(torch.mean, groups, error.square() / 2, least=1)


def above_value(trajectory: Trajectory) -> tuple[Tensor, Tensor]:
    """Advantages `[A]` max(0, R - V_0) and returns `[A]` R, the same at every token (A-LoL, 2305.14718).

    R is the sum of the rewards, V_0 the value before the first token. What is no better than the critic expects of the
    prompt is not learnt from. Raises ValueError without a critic.
    """
    guesses = _guesses(trajectory, "above_value")
    advantage = (guesses[-1:] - guesses[:1]).clamp(min=0)
    return _at_every_token(trajectory, advantage), _at_every_token(trajectory, guesses[-1:])


def step_differences(trajectory: Trajectory) -> tuple[Tensor, Tensor]:
    """Advantages `[A]` by steps and returns `[A]` R, the sum of the rewards (direct advantage policy optimisation,
    2412.18279).

    A step's advantage stands at each of its tokens: V after it minus V before it, and R minus V before it for the last
    one; over the steps they add up to R minus the first value. Steps end where `trajectory.ends` says and with the
    response; None is one step. Raises ValueError without a critic.
    """
    guesses = _guesses(trajectory, "step_differences")
    stop = torch.zeros(len(trajectory.rewards), dtype=torch.long)
    if trajectory.ends is not None:
        stop += trajectory.ends.cpu()
    stop[-1:] = 1
    border = torch.cat([torch.zeros(1, dtype=torch.long), stop.nonzero()[:, 0] + 1])
    difference = guesses[border[1:]] - guesses[border[:-1]]
    # Of a token, how many steps ended before it.
    return _as_rewards(trajectory, difference[stop.cumsum(0) - stop]), _at_every_token(trajectory, guesses[-1:])


def step_regression(log_ratio: Tensor, advantages: Tensor, tokens: Tokens, contrast_beta: float = 0.1) -> Tensor:
    """`[N]`: (sum of a step's log-ratios - A / beta)^2 / 2 at the step's last token, 0 elsewhere (direct advantage
    policy optimisation, 2412.18279).

    Steps are made of masked tokens; they end where `tokens.ends` is true and with the sequence's last masked token.
    None is one step per sequence. A is the advantage at the step's last token. Needs the token's own log-ratio.
    """
    said = tokens.mask.nonzero()[:, 0]
    segment = tokens.segment[said]
    stop = torch.ones_like(segment)
    stop[:-1] = (segment[1:] != segment[:-1]).long()
    if tokens.ends is not None:
        stop = stop | tokens.ends[said].long()
    sums = torch.zeros_like(log_ratio).scatter_add(0, stop.cumsum(0) - stop, log_ratio[said])
    last = said[stop.bool()]
    error = sums[: len(last)] - advantages[last] / contrast_beta
    return torch.zeros_like(log_ratio).index_put((last,), error.square() / 2)


def _guesses(trajectory: Trajectory, formula: str) -> Tensor:
    """`[A + 1]`: the value before each token, then the sum of the rewards and of what is expected after a cut."""
    if trajectory.values is None:
        raise ValueError(f"{formula} needs a critic's values and got none; train a critic, or use reward_to_go")
    total = trajectory.rewards.detach().double().sum() + trajectory.bootstrap.detach().double()
    return torch.cat([trajectory.values.detach().double().cpu(), total.reshape(1).cpu()])


def _as_rewards(trajectory: Trajectory, found: Tensor) -> Tensor:
    rewards = trajectory.rewards
    return found.to(device=rewards.device, dtype=rewards.dtype)


def _at_every_token(trajectory: Trajectory, found: Tensor) -> Tensor:
    """`[1]` to `[A]`."""
    return _as_rewards(trajectory, found.expand(len(trajectory.rewards)).clone())
