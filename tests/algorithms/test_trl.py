"""Losses and gradients (to each log-probability) are those of TRL 1.16's own code, given the same tensors.

Ours beside what TRL's trainers compute; its advantages, corrections and whole steps are in `test_trl_advantages.py`:

| ours | TRL |
|---|---|
| grpo, dr_grpo, dapo, cispo, sapo; token_mean | GRPO loss types grpo, dr_grpo, dapo, cispo, sapo; bnpo |
| gspo, gspo_token, each reduction; sequence_sum | importance_sampling_level sequence, each loss type; luspo |
| objective dual_clip | delta, two-sided clipping |
| kl in_loss (k3), entropy bonus, adaptive | beta, entropy_coef, use_adaptive_entropy |
| gmpo; grpo, dr_grpo, gspo, token_mean | GMPO; the policy's part of SDPO's loss |
| online_dpo, online_ipo | online DPO, loss types sigmoid and ipo |
| anchor behaviour with clip and token_mean | asynchronous GRPO |

Known differences (asserted here unless said otherwise):

- A response with no token to learn from counts in TRL's means over responses: learnt / all times ours.
- bnpo divides by the tokens of the micro-batch: step's / (micro-batches x micro-batch's) tokens times ours.
- TRL's entropy bonus is a mean over the tokens of the micro-batch, whatever the loss type; ours goes through the row's
  reduction. They agree under token_mean; under sequence_mean ours is tokens / (responses x own length) times TRL's.
- TRL leaves the adaptive bonus out of a step that follows one with entropy above the target; ours only lowers the
  coefficient. At entropy = target TRL raises it and we lower it (not asserted).
- delta below 1 + epsilon_high also clips good tokens; dual_clip never does (not asserted).
- CISPO's epsilon_high is the cap itself, our clip_high what it is above 1.
- Of two equal scores TRL's online DPO prefers the first; ours learns nothing from them.
- The trainers of GMPO and RLOO know no correction for the engine's gap; rows do, unless it is none.
- TRL multiplies the penalty by the ratio (use_bias_correction_kl, its default); no row does. At the first update the
  gradient of that is our k2's, token by token.
- No row of ours: vespo, top_entropy_quantile, off_policy_mask_threshold, A2PO (its V* is estimated offline).
- No trainer of TRL 1.16: PPO and its relatives, GSPO-token (so gspo_token is held against level sequence).
"""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.algorithms.choice import choose
from posttrain.algorithms.state import RowState, Terms
from posttrain.metrics import Report
from posttrain.types import Sample
from tests.algorithms.trl_side import (
    MAX_TOKENS,
    SIZE,
    TOOLS,
    Model,
    StandIn,
    Step,
    gradient,
    inputs,
    leaf,
    ours,
    same,
    theirs,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TRL does not know the installed vLLM yet.
    from trl.experimental.async_grpo import AsyncGRPOConfig, AsyncGRPOTrainer
    from trl.experimental.gmpo import GMPOConfig, GMPOTrainer
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer
    from trl.experimental.sdpo import SDPOConfig, SDPOTrainer
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer

SEQUENCE = {"importance_sampling_level": "sequence", "epsilon": 0.25, "epsilon_high": 0.3}
NEAR = {"clip_low": 0.25, "clip_high": 0.3}
GRPO_LOSSES: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "grpo": ({"loss_type": "grpo"}, "grpo", {}),
    "grpo with a higher upper bound": ({"loss_type": "grpo", "epsilon_high": 0.35}, "grpo", {"clip_high": 0.35}),
    "bnpo": ({"loss_type": "bnpo"}, "grpo", {"reduction": "token_mean"}),
    "dr_grpo": ({"loss_type": "dr_grpo", "max_completion_length": MAX_TOKENS}, "dr_grpo", {}),
    "dapo": ({"loss_type": "dapo", "epsilon_high": 0.28}, "dapo", {}),
    "cispo": ({"loss_type": "cispo", "epsilon_high": 1.28}, "cispo", {}),
    "sapo": ({"loss_type": "sapo"}, "sapo", {}),
    "two-sided clipping": ({"loss_type": "grpo", "delta": 1.5}, "grpo", {"objective": "dual_clip", "dual_clip": 1.5}),
    "gspo": ({"loss_type": "grpo", **SEQUENCE}, "gspo", NEAR),
    "gspo with its own bounds": ({"loss_type": "grpo", **SEQUENCE, "epsilon": 3e-4, "epsilon_high": 4e-4}, "gspo", {}),
    "gspo_token": ({"loss_type": "grpo", **SEQUENCE}, "gspo_token", NEAR),
    "gspo over tokens": ({"loss_type": "dapo", **SEQUENCE}, "gspo", {"reduction": "token_mean", **NEAR}),
    "gspo over a constant": (
        {"loss_type": "dr_grpo", "max_completion_length": MAX_TOKENS, **SEQUENCE},
        "gspo",
        {"reduction": "constant", **NEAR},
    ),
    "luspo": ({"loss_type": "luspo", **SEQUENCE}, "gspo", {"reduction": "sequence_sum", **NEAR}),
}
KL = {"kl": "in_loss", "kl_coefficient": 0.3}
UNCORRECTED = {"use_bias_correction_kl": False}
PLAIN = {"correction": "none"}


def test_the_step_has_tokens_on_both_sides_of_every_bound() -> None:
    step = Step()
    ratio, good = (step.logprobs - step.previous).exp(), (step.advantages > 0)[:, None]
    for found in (ratio > 1.35, ratio < 0.8, ratio > 1.5, (ratio < 1.2) & (ratio > 0.8)):
        assert int((found & good & step.mask).sum()) > 0
        assert int((found & ~good & step.mask).sum()) > 0
    mean = ((ratio.log() * step.mask).sum(-1) / step.mask.sum(-1)).exp()
    assert bool((mean > 1.3).any() and (mean < 0.75).any() and ((mean < 1.3) & (mean > 0.75)).any())


@pytest.mark.parametrize("moved", [True, False], ids=["later update", "first update"])
@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("case", GRPO_LOSSES)
def test_a_loss_type_of_grpo_is_a_row(case: str, beta: float, moved: bool) -> None:
    settings, name, changes = GRPO_LOSSES[case]
    step, algorithm = Step(), choose(name, {**PLAIN, **changes, **(KL if beta else {})})
    model = leaf(step)
    expected = theirs(GRPOTrainer, StandIn(GRPOConfig, beta=beta, **UNCORRECTED, **settings), step, model, moved)
    # TRL keeps SAPO's temperatures in fp32.
    same(ours(algorithm, step, model, step.samples(moved)), expected, model, 1e-7 if "sapo" in case else 1e-12)


@pytest.mark.parametrize("case", [case for case in GRPO_LOSSES if case != "bnpo"])
def test_accumulated_micro_batches_are_still_the_row(case: str) -> None:
    settings, name, changes = GRPO_LOSSES[case]
    step, algorithm, model = Step(), choose(name, {**PLAIN, **changes, **KL}), leaf(Step())
    stand_in = StandIn(GRPOConfig, beta=0.3, gradient_accumulation_steps=3, **UNCORRECTED, **settings)
    found = ours(algorithm, step, model, step.samples(), budget=20)
    same(found, theirs(GRPOTrainer, stand_in, step, model), model, 1e-7 if "sapo" in case else 1e-12)


def test_the_bias_corrected_penalty_of_trl_has_the_gradient_of_k2_at_the_first_update() -> None:
    step, model = Step(), leaf(Step())
    found = ours(choose("grpo", {**PLAIN, **KL, "kl_estimator": "k2"}), step, model, step.samples(False))
    corrected = StandIn(GRPOConfig, loss_type="grpo", beta=0.3, use_bias_correction_kl=True)
    expected = theirs(GRPOTrainer, corrected, step, model, moved=False)
    torch.testing.assert_close(gradient(found, model), gradient(expected, model), atol=1e-12, rtol=0)


def test_bnpo_divides_by_the_tokens_of_a_micro_batch() -> None:
    step, algorithm, model = Step(), choose("grpo", {**PLAIN, "reduction": "token_mean"}), leaf(Step())
    stand_in = StandIn(GRPOConfig, loss_type="bnpo", gradient_accumulation_steps=3)
    tokens = step.mask.sum(-1).view(3, SIZE).sum(-1)
    factor = (tokens.sum() / (3 * tokens)).repeat_interleave(SIZE)[:, None]
    assert factor.unique().numel() == 3
    found = gradient(ours(algorithm, step, model, step.samples()), model)
    torch.testing.assert_close(found * factor, gradient(theirs(GRPOTrainer, stand_in, step, model), model))


@pytest.mark.parametrize(("case", "factor"), [("grpo", 10 / 12), ("dr_grpo", 10 / 12), ("luspo", 10 / 12), ("dapo", 1)])
def test_a_response_without_a_token_to_learn_counts_in_means_over_responses_of_trl(case: str, factor: float) -> None:
    settings, name, changes = GRPO_LOSSES[case]
    step, model = Step(tools={**TOOLS, 3: (0,), 10: (0, 1)}), leaf(Step())
    found = ours(choose(name, {**PLAIN, **changes}), step, model, step.samples())
    same(found * factor, theirs(GRPOTrainer, StandIn(GRPOConfig, beta=0.0, **settings), step, model), model)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_gmpo_is_its_row(beta: float, steps: int) -> None:
    step, model = Step(), leaf(Step())
    found = ours(choose("gmpo", {**PLAIN, **(KL if beta else {})}), step, model, step.samples())
    stand_in = StandIn(GMPOConfig, beta=beta, gradient_accumulation_steps=steps)
    same(found, theirs(GMPOTrainer, stand_in, step, model), model)


@pytest.mark.parametrize(("case", "level"), [("grpo", "token"), ("bnpo", "token"), ("dr_grpo", "token"), ("gspo", "")])
def test_the_policy_loss_of_sdpo_is_that_of_grpo(case: str, level: str) -> None:
    (settings, name, changes), step, model = GRPO_LOSSES[case], Step(), leaf(Step())
    bounds = {"epsilon_high": 0.2} if level else {}
    stand_in = StandIn(SDPOConfig, **{**settings, **bounds})
    # It reads whole tables of logits: the given log-probability at the token, the rest shared out among the others.
    others = torch.log1p(-model.logprobs.exp()) - math.log(step.ids.numel() - 1)
    here = torch.nn.functional.one_hot(step.ids, step.ids.numel()).bool()
    logits = torch.where(here, model.logprobs[..., None], others[..., None])
    given = {**inputs(step), "completion_mask": step.mask.long()}
    expected = SDPOTrainer._compute_policy_loss(stand_in, given, logits)
    same(ours(choose(name, {**PLAIN, **changes}), step, model, step.samples()), expected, model)


class OnlineDPO(StandIn):
    """Online DPO over pairs of neighbouring rows. It wants all first responses before all second ones."""

    def __init__(self, step: Step, model: Model, scores: Tensor, loss_type: str):
        super().__init__(OnlineDPOConfig, beta=BETA, loss_type=loss_type)
        order = torch.cat([torch.arange(0, len(scores), 2), torch.arange(1, len(scores), 2)])
        ids, mask = step.ids[order], step.mask[order].long()
        self._generate = lambda *_: (ids[:, :1], mask[:, :1], ids, mask, None)
        self._calculate_rewards_from_functions = lambda **_: scores[order]
        self.model, self.ref_model = model, Model(logprobs=step.reference, entropy=step.entropy)
        self.processing_class = SimpleNamespace(batch_decode=lambda ids, **_: [""] * len(ids))
        self.args.n_gpu, self.eos_token_ids, self.reward_funcs, self.stats = 1, [0], [], defaultdict(list)

    def loss(self) -> Tensor:
        losses: list[Tensor] = []
        self.accelerator.backward = losses.append
        OnlineDPOTrainer.training_step(self, self.model, {"prompt": [""] * (len(self.model.logprobs) // 2)})
        return losses[0]


BETA = 0.3
SCORES = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.5, 0.7, 0.2, 0.1, -1.0, 0.0, 3.0, 2.0], dtype=torch.float64)


def pairs(step: Step, scores: Tensor) -> list[Sample]:
    return [replace(s, group=i // 2, score=float(scores[i])) for i, s in enumerate(step.samples())]


@pytest.mark.parametrize(("name", "loss_type"), [("online_dpo", "sigmoid"), ("online_ipo", "ipo")])
def test_online_preferences_are_those_of_online_dpo(name: str, loss_type: str) -> None:
    step, model = Step(), leaf(Step())
    found = ours(choose(name, {"contrast_beta": BETA}), step, model, pairs(step, SCORES))
    same(found, OnlineDPO(step, model, SCORES, loss_type).loss(), model)


@pytest.mark.parametrize(("name", "loss_type"), [("online_dpo", "sigmoid"), ("online_ipo", "ipo")])
def test_of_equal_scores_online_dpo_prefers_the_first_and_we_learn_nothing(name: str, loss_type: str) -> None:
    step, model, scores = Step(), leaf(Step()), SCORES.index_fill(0, torch.tensor([0, 1]), 0.5)
    found = gradient(ours(choose(name, {"contrast_beta": BETA}), step, model, pairs(step, scores)), model)
    expected = gradient(OnlineDPO(step, model, scores, loss_type).loss(), model)
    torch.testing.assert_close(found[2:], expected[2:], atol=1e-12, rtol=0)
    assert not found[:2].any()
    assert float(expected[0][step.mask[0]].max()) < 0 < float(expected[1][step.mask[1]].min())


def test_asynchronous_grpo_is_clip_against_the_engine_over_tokens() -> None:
    step, model = Step(), leaf(Step())
    stand_in, where = StandIn(AsyncGRPOConfig), step.mask.flatten().nonzero()[:, 0]
    stand_in._step_forward_tokens = stand_in._step_trained_tokens = stand_in._step_seq_len_weighted = 0.0
    stand_in._step_samples = stand_in._step_forward_s = 0.0
    one, responses = torch.ones(1, step.ids.numel(), dtype=torch.long), where // step.ids.shape[1]
    given = {
        "input_ids": step.ids.view(1, -1),
        "token_index": where[None],
        "segment_id": responses[None],
        "old_log_probs": step.behaviour.flatten()[where][None],
        "advantages": step.advantages[responses][None],
        "global_n_tokens": step.mask.sum()[None],
        "tree_max_seqlens": torch.ones(1, 2),
        **dict.fromkeys(("attention_mask", "position_ids", "shift_labels"), one),
        **dict.fromkeys(("tree_kv_index", "tree_cu_seqlens_q", "tree_cu_seqlens_k"), one),
        **dict.fromkeys(("global_n_forward_tokens", "mean_seq_len"), torch.ones(1)),
    }
    changes = {**PLAIN, "anchor": "behaviour", "reduction": "token_mean", "clip_high": stand_in.epsilon_high}
    found = ours(choose("grpo", changes), step, model, step.samples())
    same(found, AsyncGRPOTrainer.compute_loss(stand_in, model, given), model)


@pytest.mark.parametrize("loss_type", ["bnpo", "dapo"])
def test_the_entropy_bonus_is_a_mean_over_tokens(loss_type: str) -> None:
    step, model = Step(), leaf(Step())
    changes = {**PLAIN, "reduction": "token_mean", "entropy": "bonus", "entropy_coefficient": 0.05}
    found = ours(choose("grpo", changes), step, model, step.samples())
    expected = theirs(GRPOTrainer, StandIn(GRPOConfig, loss_type=loss_type, entropy_coef=0.05), step, model)
    same(found, expected, model)
    torch.testing.assert_close(sought(found, model), sought(expected, model), atol=1e-12, rtol=0)


def test_the_entropy_bonus_of_a_mean_over_responses_is_ours_through_the_reduction() -> None:
    step, model = Step(), leaf(Step())
    found = ours(
        choose("grpo", {**PLAIN, "entropy": "bonus", "entropy_coefficient": 0.05}), step, model, step.samples()
    )
    expected = theirs(GRPOTrainer, StandIn(GRPOConfig, loss_type="grpo", entropy_coef=0.05), step, model)
    tokens = step.mask.double().sum(-1, keepdim=True)
    factor = tokens.sum() / (len(step.ids) * tokens)
    torch.testing.assert_close(sought(found, model), factor * sought(expected, model), atol=1e-12, rtol=0)


def sought(loss: Tensor, model: Model) -> Tensor:
    """The loss's gradient to the entropies."""
    return torch.autograd.grad(loss, model.entropy, retain_graph=True)[0]


def test_an_adaptive_entropy_coefficient_moves_as_in_trl_which_leaves_it_out_above_the_target() -> None:
    row = choose("grpo", {**PLAIN, "entropy": "adaptive", "entropy_target": 0.8, "entropy_rate": 0.004})
    names = {"entropy_coef_max": row.entropy["entropy_largest"], "entropy_coef_delta": 0.004, "entropy_target": 0.8}
    stand_in, state, before = StandIn(GRPOConfig, use_adaptive_entropy=True, **names), RowState.of(row), float("inf")
    coefficients, applied = [], []
    for entropy in (0.5, 0.6, 0.7, 0.4, 1.2, 1.1, 0.5, 1.3, 1.4, 1.5, 0.6):
        step = Step()
        step.entropy = step.entropy * entropy / step.entropy[step.mask].mean()
        model = leaf(step)
        loss = theirs(GRPOTrainer, stand_in, step, model)
        applied.append(-float((sought(loss, model) * step.mask).sum()))
        # The one difference in what is applied.
        assert applied[-1] == pytest.approx(state.coefficients(Terms(MAX_TOKENS)).entropy if before <= 0.8 else 0.0)
        before = entropy
        state.adapt(row, Report.mean("learn/entropy", entropy, 1), len(step.ids))
        coefficients.append(stand_in.entropy_coef)
        assert state.entropy_coefficient == pytest.approx(stand_in.entropy_coef)
    assert (max(coefficients), min(coefficients)) == (0.01, 0.0)
    assert 0.0 in applied[3:]
