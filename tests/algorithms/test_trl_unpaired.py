"""Losses of single responses are those of TRL 1.16's own KTO trainer: values, and gradients to each log-probability.

| ours | TRL |
|---|---|
| kto, baseline = its kl | loss type kto, desirable_weight, undesirable_weight |
| kto_apo_zero | loss type apo_zero_unpaired |

Known differences (asserted here):

- TRL's reference point is a micro-batch's own: the mean log-ratio of its mismatched responses, at least 0. Ours is
  handed in, so it can be that of a whole update, and a gradient then does not depend on how a batch was cut.
- TRL's loss is a mean over responses, ours over groups of any size: the same for groups of one.

BCO has no trainer in TRL 1.16.
"""

from __future__ import annotations

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.objectives.sets import Sequences
from posttrain.objectives.unpaired import kto, kto_apo_zero
from tests.algorithms.trl_side import StandIn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TRL does not know the installed vLLM yet.
    from trl.trainer.kto_config import KTOConfig
    from trl.trainer.kto_trainer import KTOTrainer

PROMPT, LENGTHS, OTHERS = 2, (5, 2, 7, 1, 3, 8), (4, 6, 1, 2, 8, 3)
"""Tokens of the prompts, of the responses, and of the mismatched ones."""
ROWS, WIDTH = len(LENGTHS), PROMPT + max(LENGTHS)
MIXED = (True, False, False, True, True, False)


class Speaker(torch.nn.Module):
    """A policy whose `said [2, B, T]` are log-probabilities of the responses and of the mismatched ones. A token's id
    is its place in that table; what has no label is worth 0, as from TRL's fused head.
    """

    is_gradient_checkpointing = False

    def __init__(self, said: Tensor) -> None:
        super().__init__()
        self.said = said

    def forward(self, input_ids: Tensor, labels: Tensor, **_: Any) -> SimpleNamespace:
        said = self.said.flatten()[input_ids[:, 1:]]
        words = torch.where(labels[:, 1:] != -100, said, torch.zeros_like(said))
        nothing = torch.zeros_like(words)
        return SimpleNamespace(log_probs=words, entropy=nothing, mean_logits=nothing)


def spoken(lengths: tuple[int, ...]) -> Tensor:
    """`[B, T]`: where a response stands behind its prompt."""
    at = torch.arange(WIDTH)
    return torch.stack([(at >= PROMPT) & (at < PROMPT + length) for length in lengths])


def step(labels: tuple[bool, ...], drift: float) -> tuple[dict[str, Any], Speaker, Speaker]:
    """What TRL's collator makes of six ragged responses, a policy, and a reference that `drift` is taken from."""
    generator = torch.Generator().manual_seed(0)
    said = -2.5 + 0.5 * torch.randn(2, ROWS, WIDTH, generator=generator, dtype=torch.float64)
    before = said + 0.6 * torch.randn(2, ROWS, WIDTH, generator=generator, dtype=torch.float64) - drift
    ids = torch.arange(2 * ROWS * WIDTH).view(2, ROWS, WIDTH)
    inputs: dict[str, Any] = {"label": torch.tensor(labels)}
    for name, place, lengths in (("", 0, LENGTHS), ("KL_", 1, OTHERS)):
        mask = spoken(lengths)
        inputs |= {f"{name}input_ids": ids[place], f"{name}completion_mask": mask.long()}
        inputs[f"{name}attention_mask"] = (mask | (torch.arange(WIDTH) < PROMPT)).long()
    return inputs, Speaker(said.requires_grad_()), Speaker(before)


def theirs(inputs: dict[str, Any], policy: Speaker, reference: Speaker, **settings: Any) -> tuple[Tensor, float]:
    """TRL's loss and its reference point."""
    trainer = StandIn(KTOConfig, **settings)
    trainer.model, trainer.ref_model, trainer.precompute_ref_logps = policy, reference, False
    trainer.calculate_KL = trainer.loss_type == "kto"
    trainer._total_train_tokens, trainer._tp_size = 0, 1
    trainer._compute_kl_logps = lambda model, batch: KTOTrainer._compute_kl_logps(trainer, model, batch)
    loss = KTOTrainer._compute_loss(trainer, policy, inputs, False)
    return loss, trainer._metrics["train"]["kl"][-1]


def log_ratios(policy: Speaker, reference: Speaker, place: int) -> Tensor:
    """`[S]` of the responses (0) or the mismatched ones (1)."""
    return ((policy.said - reference.said)[place] * spoken((LENGTHS, OTHERS)[place])).sum(-1)


def sequences(baseline: Tensor) -> Sequences:
    nothing = torch.zeros(ROWS)
    return Sequences(nothing, nothing, torch.zeros(ROWS, dtype=torch.long), baseline)


def same(found: Tensor, expected: Tensor, policy: Speaker) -> None:
    """One loss and one gradient, which is there. fp64 on both sides."""
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    mine, gradient = (torch.autograd.grad(loss, policy.said, retain_graph=True)[0] for loss in (found, expected))
    assert float(gradient[0].abs().max()) > 1e-4
    assert float(gradient[1].abs().max()) == 0.0
    torch.testing.assert_close(mine, gradient, atol=1e-12, rtol=0)


weights = pytest.mark.parametrize("weights", [(1.0, 1.0), (1.3, 0.6)])
thumbs = pytest.mark.parametrize("labels", [MIXED, (True,) * ROWS, (False,) * ROWS], ids=["mixed", "good", "bad"])


@thumbs
@weights
@pytest.mark.parametrize("drift", [0.5, -0.5], ids=["far from the reference", "a reference point below zero"])
def test_kto_is_that_of_trl_around_its_reference_point(
    drift: float, weights: tuple[float, float], labels: tuple[bool, ...]
) -> None:
    inputs, policy, reference = step(labels, drift)
    settings = {"desirable_weight": weights[0], "undesirable_weight": weights[1]}
    expected, point = theirs(inputs, policy, reference, loss_type="kto", beta=0.2, **settings)
    apart = log_ratios(policy, reference, 1).mean().detach()
    assert float(apart) * drift > 0.1
    baseline = apart.clamp(min=0)
    assert point == pytest.approx(float(baseline), rel=1e-12)
    ratios, scores = log_ratios(policy, reference, 0), torch.tensor(labels).double()
    found = kto(ratios, scores, torch.arange(ROWS), sequences(baseline), contrast_beta=0.2, **settings)
    same(found.mean(), expected, policy)


@thumbs
@weights
def test_kto_apo_zero_is_trl_s_unpaired_apo_zero(weights: tuple[float, float], labels: tuple[bool, ...]) -> None:
    inputs, policy, reference = step(labels, 0.5)
    settings = {"desirable_weight": weights[0], "undesirable_weight": weights[1]}
    expected, point = theirs(inputs, policy, reference, loss_type="apo_zero_unpaired", beta=0.2, **settings)
    assert point == 0.0
    ratios, scores = log_ratios(policy, reference, 0), torch.tensor(labels).double()
    given = sequences(log_ratios(policy, reference, 1).mean().detach())
    found = kto_apo_zero(ratios, scores, torch.arange(ROWS), given, contrast_beta=0.2, **settings)
    same(found.mean(), expected, policy)


def test_trl_s_reference_point_depends_on_the_cut_and_ours_is_one_for_all() -> None:
    inputs, policy, reference = step(MIXED, 0.5)
    halves = [{name: tensor[at : at + 3] for name, tensor in inputs.items()} for at in (0, 3)]
    parts = [theirs(half, policy, reference, beta=0.2) for half in halves]
    assert abs(parts[0][1] - parts[1][1]) > 0.1
    cut, whole = sum(loss for loss, _ in parts) / 2, theirs(inputs, policy, reference, beta=0.2)[0]
    assert abs(float((cut - whole).detach())) > 1e-4
    baseline = log_ratios(policy, reference, 1).mean().detach().clamp(min=0)
    scores, names = torch.tensor(MIXED).double(), torch.arange(ROWS)
    pieces = [
        kto(
            log_ratios(policy, reference, 0)[part], scores[part], names[part], sequences(baseline), contrast_beta=0.2
        ).sum()
        for part in (slice(0, 3), slice(3, 6))
    ]
    same(sum(pieces) / ROWS, whole, policy)


def test_trl_means_over_responses_and_ours_over_groups() -> None:
    inputs, policy, reference = step(MIXED, 0.5)
    expected, point = theirs(inputs, policy, reference, beta=0.2)
    groups = torch.tensor([0, 0, 1, 2, 2, 2])
    baseline = torch.tensor(point, dtype=torch.float64)
    scores = torch.tensor(MIXED).double()
    found = kto(log_ratios(policy, reference, 0), scores, groups, sequences(baseline), contrast_beta=0.2)
    same((found * torch.tensor([2, 1, 3])).sum() / ROWS, expected, policy)
