"""How much likelier the policy finds responses to other prompts than its reference does: what KTO measures against."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from posttrain.algorithms.row import Algorithm
from posttrain.algorithms.set_loss import shared_out
from posttrain.errors import TrainingError
from posttrain.learner import Learner
from posttrain.types import Rollout, Sample


def mismatched(samples: Sequence[Sample]) -> list[Rollout]:
    """Each sample's prompt with what was said to another one: of the next sample whose prompt differs, in a circle.

    Raises TrainingError where all prompts are one.
    """
    prompts = [_prompt(s.rollout) for s in samples]
    out = []
    for i, prompt in enumerate(prompts):
        order = [(i + step) % len(samples) for step in range(1, len(samples))]
        other = next((j for j in order if prompts[j] != prompt), None)
        if other is None:
            raise TrainingError(
                "an update has one prompt only, so no response is another prompt's, and the reference point cannot be "
                "measured; raise optimizer.prompts_per_step or lower optimizer.minibatches"
            )
        said = samples[other].rollout
        start = len(prompts[other])
        tokens, mask = said.tokens[start:], said.mask[start:]
        out.append(Rollout((*prompt, *tokens), (False,) * len(prompt) + mask, "", "given", author="data"))
    return out


def reference_point(
    learner: Learner, algorithm: Algorithm, samples: Sequence[Sample], references: Sequence[float]
) -> float:
    """The mean over mismatched responses of their summed log-ratio to the reference, 0 at least (KTO, 2402.01306)."""
    rollouts = mismatched(samples)
    policy, reference = learner.logprobs(rollouts), learner.logprobs(rollouts, "reference")
    sums = [
        float((own.double() - shared_out(other.double(), references))[torch.tensor(r.mask)].sum())
        for own, other, r in zip(policy, reference, rollouts, strict=True)
    ]
    return max(0.0, sum(sums) / len(sums))


def _prompt(rollout: Rollout) -> tuple[int, ...]:
    return rollout.tokens[: rollout.mask.index(True)]
