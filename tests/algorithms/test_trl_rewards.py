"""A reward model's loss and gradient are those of TRL 1.16's own RewardTrainer, given the same outputs or weights.

| ours | TRL |
|---|---|
| bradley_terry | RewardTrainer without a column `margin` |
| margin_bradley_terry, a pair's scores apart by its margin | RewardTrainer with one |
| centring | center_rewards_coefficient |

Known differences (asserted here):

- TRL reads a response after its last token whose id is not the padding id. Where padding is the end-of-turn token, its
  default for a tokenizer without one, that is the token before the end; ours is the last token by length.
- A margin of 0 is a pair without a margin for TRL; for us, two responses of equal worth, from which nothing is learnt.
- TRL knows no lists of more than two, no ties and no ensembles of heads (not asserted).

TRL 1.16 has no trainer of process reward models.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForSequenceClassification

from posttrain.objectives import scores
from posttrain.objectives.reductions import group_mean
from tests.algorithms.trl_side import StandIn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TRL does not know the installed vLLM yet.
    from trl.trainer.reward_config import RewardConfig
    from trl.trainer.reward_trainer import DataCollatorForPreference, RewardTrainer

MARGINS = (0.5, 0.125, 2.0, 1.25, 3.0)
"""Exact in the single precision in which TRL's collator keeps them."""
PAIRS = len(MARGINS)
END = 1
RESPONSES = (((5, 9, 12, 7), (5, 9, 3)), ((8, 2), (8, 4, 4, 6, 11)), ((13, 10, 6), (13, 2, 2, 2)))
"""Chosen and rejected, none of which ends with the padding id."""


class Outputs(SimpleNamespace):
    """A model that says the `[2 P]` outputs it was given, chosen first."""

    training = True

    def __call__(self, **_: Any) -> SimpleNamespace:
        return SimpleNamespace(logits=self.said[:, None])


def theirs(model: Any, batch: dict[str, Tensor], centring: float | None) -> Tensor:
    stand_in = StandIn(RewardConfig, center_rewards_coefficient=centring)
    stand_in.model, stand_in._total_train_tokens, stand_in._tp_size = model, 0, 1
    return RewardTrainer.compute_loss(stand_in, model, batch)


def ours(outputs: Tensor, margins: Sequence[float] | None, centring: float | None) -> Tensor:
    """`[2 P]` outputs, chosen first, as groups of two."""
    pairs = len(outputs) // 2
    worth = torch.cat([torch.tensor(margins or [1.0] * pairs, dtype=torch.float64), torch.zeros(pairs).double()])
    loss = scores.bradley_terry if margins is None else scores.margin_bradley_terry
    losses = loss(outputs[:, None], worth, torch.arange(pairs).repeat(2), centring=centring or 0.0)
    return group_mean(losses, pairs)


def same(found: Tensor, expected: Tensor, leaves: Sequence[Tensor], tolerance: float) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)
    slopes = [torch.autograd.grad(loss, leaves, retain_graph=True) for loss in (found, expected)]
    assert max(float(slope.abs().max()) for slope in slopes[1]) > 1e-3
    for mine, other in zip(*slopes, strict=True):
        torch.testing.assert_close(mine, other, atol=tolerance, rtol=0)


@pytest.mark.parametrize("centring", [None, 0.01, 0.7])
@pytest.mark.parametrize("margins", [None, MARGINS])
def test_pairs_with_and_without_margins_and_centring(margins: Sequence[float] | None, centring: float | None) -> None:
    torch.manual_seed(0)
    said = (2 * torch.randn(2 * PAIRS, dtype=torch.float64)).requires_grad_()
    assert len({bool(a > b) for a, b in zip(said[:PAIRS], said[PAIRS:], strict=True)}) == 2
    batch = {"attention_mask": torch.ones(2 * PAIRS, 3)}
    if margins is not None:
        batch["margin"] = torch.tensor(margins)
    same(ours(said, margins, centring), theirs(Outputs(said=said), batch, centring), [said], 1e-12)


def test_a_margin_of_zero_is_a_pair_for_trl_and_a_tie_for_us() -> None:
    said = torch.tensor([0.3, 1.1], dtype=torch.float64)
    batch = {"attention_mask": torch.ones(2, 3), "margin": torch.zeros(1)}
    torch.testing.assert_close(theirs(Outputs(said=said), batch, None), ours(said, None, None), atol=1e-12, rtol=0)
    assert float(ours(said, (0.0,), None)) == 0.0


@pytest.fixture
def model() -> LlamaForSequenceClassification:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=16,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        pad_token_id=END,
        num_labels=1,
        initializer_range=0.3,
    )
    return LlamaForSequenceClassification(config).double()


def read(model: LlamaForSequenceClassification, tokens: Sequence[int]) -> Tensor:
    """`[]`: the head on the state of the last token, whatever its id; nothing is padded."""
    return model.score(model.model(torch.tensor([tokens])).last_hidden_state[:, -1])[0, 0]


def collated(responses: Sequence[tuple[Sequence[int], Sequence[int]]]) -> dict[str, Tensor]:
    rows = [{"chosen_ids": list(a), "rejected_ids": list(b), "margin": 0.5} for a, b in responses]
    batch = DataCollatorForPreference(END)(rows)
    batch.pop("margin")
    return batch


def test_a_real_model_read_after_each_responses_last_token_has_trls_loss_and_gradient_in_every_weight(
    model: LlamaForSequenceClassification,
) -> None:
    said = torch.stack([read(model, pair[side]) for side in (0, 1) for pair in RESPONSES])
    # transformers computes RMS norms in single precision: padding moves what is said by about 1e-7.
    same(ours(said, None, 0.1), theirs(model, collated(RESPONSES), 0.1), list(model.parameters()), 1e-6)


def test_where_padding_is_the_end_of_turn_trl_reads_the_token_before_it(model: LlamaForSequenceClassification) -> None:
    ended = [tuple((*answer, END) for answer in pair) for pair in RESPONSES]
    expected = theirs(model, collated(ended), None)
    by_length = torch.stack([read(model, pair[side]) for side in (0, 1) for pair in ended])
    by_id = torch.stack([read(model, pair[side]) for side in (0, 1) for pair in RESPONSES])
    torch.testing.assert_close(ours(by_id, None, None), expected, atol=1e-6, rtol=0)  # single-precision norms, as above
    assert abs(float((ours(by_length, None, None) - expected).detach())) > 1e-2
