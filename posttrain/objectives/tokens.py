"""What an objective may know of a token beside its log-ratio and its advantage."""

from typing import NamedTuple

from torch import Tensor


class Tokens(NamedTuple):
    """The tokens of a micro-batch, all sequences end to end.

    `logprobs [N]` are the policy's own and carry the gradient; `mask [N]` (bool) is true where the policy spoke;
    `segment [N]` (long) says which sequence a token belongs to. `uniform [N]` is the log-ratio to the previous policy
    averaged over the whole vocabulary in the state *after* the token, where the next masked token is predicted; it is
    0 at a sequence's last masked token and carries no gradient. `ends [N]` (bool) is true where a step of a response
    ends; None where nothing says so.

    Outside the mask everything is finite, and what an objective returns there is ignored.
    """

    logprobs: Tensor
    mask: Tensor
    segment: Tensor
    uniform: Tensor | None = None
    ends: Tensor | None = None
