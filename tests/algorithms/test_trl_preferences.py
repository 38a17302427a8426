"""Losses of pairs and their gradients (to each log-probability) are those of TRL 1.16's own trainers.

Ours are put together by hand, without rows:

| ours | TRL |
|---|---|
| every loss of `preferences`; `best_worst_sigmoid`, `best_worst_squared` | each DPO loss type; f_divergence_type |
| ratio sequence (mean over tokens) | loss types ipo and sigmoid_norm |
| ratio desensitised; weighting policy_probability | ld_alpha; use_weighting |
| mpo, likelihood | loss types sigmoid, bco_pair and sft with weights |
| anchor none with hinge, IPO, simpo, alphapo, divergence alpha | CPO loss types, alpha |
| orpo | ORPO |

Known differences (asserted here unless said otherwise):

- BCO's reward shift is 0 in TRL, in bco_pair alone and in MPO; ours is the baseline.
- ipo and sigmoid_norm with a divergence: TRL divides the divergence of the summed log-ratio by the length; ours takes
  the divergence of the mean. Under the reverse KL they agree.
- TRL's alpha-divergence knows no fp64 (a KeyError), so it is compared in fp32; its forward KL is not bounded, ours is.
- ORPO: next to p = 1 TRL's gradient is NaN in fp32. Its likelihood term also learns the prompt; a row's does not.
- A weighted hinge cannot be differentiated in TRL: it multiplies the rectifier's output in place.
- AlphaPO: TRL's power of a probability that rounds to 0 makes the loss NaN; ours is bounded.
- AOT sorts a micro-batch in TRL, all groups of the update here. With ld_alpha TRL weighs the tails of policy and
  anchor; our anchor is what summed log-probabilities say, so that AOT needs ratio sequence_sum (not asserted).
- TRL counts a response's first token towards its length where no prompt stands before it, though nothing predicts it;
  our mask leaves it out (not asserted).
- TRL takes a smoothed label for exo_pair, robust and aot only; sigmoid's smoothing is ours (not asserted; CPO has it).
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.objectives import contrasts, divergences, likelihoods, preferences, ratios, reductions, weightings
from posttrain.objectives.sets import Sequences
from posttrain.objectives.tokens import Tokens
from tests.algorithms.trl_side import StandIn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TRL does not know the installed vLLM yet.
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

PROMPTS, LENGTHS = (2, 1, 3, 2, 1), ((5, 2), (3, 7), (1, 4), (6, 6), (2, 1))
"""Tokens of each pair's prompt, and of its chosen and its rejected response."""
COUNT, VOCABULARY = len(PROMPTS), 7
BETA = 0.3


class Batch:
    """Padded rows as TRL has them, all chosen ones first; `[R, T]`, and `[R, T - 1]` for what is predicted."""

    def __init__(self, dtype: torch.dtype = torch.float64):
        lengths = [pair[0] for pair in LENGTHS] + [pair[1] for pair in LENGTHS]
        prompts = torch.tensor(PROMPTS * 2)
        ends = prompts + torch.tensor(lengths)
        place = torch.arange(int(ends.max()))
        self.present = place < ends[:, None]
        self.mask = self.present & (place >= prompts[:, None])
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(VOCABULARY, self.mask.shape, generator=generator)
        noise = torch.randn(3, *self.mask[:, 1:].shape, generator=generator, dtype=torch.float64)
        self.logprobs = (-1.5 + 0.6 * noise[0]).to(dtype).requires_grad_()
        self.reference = (self.logprobs.detach() + 0.7 * noise[1]).to(dtype)
        self.collision = (-1.2 + 0.3 * noise[2]).to(dtype)
        self.logits = 2 * torch.randn(*self.mask.shape, VOCABULARY, generator=generator, dtype=torch.float64)
        self.logits.requires_grad_()

    def said(self) -> Tensor:
        """`[R, T - 1]`: log-probabilities of the ids under the logits."""
        return self.logits[:, :-1].log_softmax(-1).gather(-1, self.ids[:, 1:, None]).squeeze(-1)


def ours(
    batch: Batch,
    objective: Callable[..., Tensor],
    logprobs: Tensor | None = None,
    level: Callable[..., Tensor] = ratios.sequence_sum,
    divergence: Callable[[Tensor], Tensor] = divergences.reverse_kl,
    weighting: Callable[..., Tensor] = weightings.none,
) -> Tensor:
    """The loss of our functions, its rows shuffled and end to end. With `logprobs`, the anchor is none."""
    order = [7, 0, 4, 2, 9, 1, 5, 3, 8, 6]
    shown = batch.present[order, 1:]
    mask, segment = batch.mask[order, 1:][shown], torch.arange(len(order))[:, None].expand_as(shown)[shown]
    own = (batch.logprobs if logprobs is None else logprobs)[order][shown]
    anchor = torch.zeros_like(own) if logprobs is not None else batch.reference[order][shown]
    groups = torch.tensor([3 * (row % COUNT) - 4 for row in order])
    scores = torch.tensor([float(row < COUNT) for row in order])
    more = (groups,) if "groups" in inspect.signature(level).parameters else ()
    total, counts = reductions.per_segment(level(own - anchor, mask, segment, *more), mask, segment)
    sums, _ = reductions.per_segment(own, mask, segment)
    aligned, _ = reductions.per_segment(own - batch.collision[order][shown], mask, segment)
    sequences = Sequences(sums, counts, torch.ones_like(groups), torch.zeros((), dtype=own.dtype))
    given = (sequences,) if "sequences" in inspect.signature(objective).parameters else ()
    losses = objective(divergence(total / counts), scores, groups, *given)
    return reductions.group_mean(losses * weighting(scores, aligned / counts, groups), COUNT)


def cloned(batch: Batch, logprobs: Tensor, mask: Tensor) -> Tensor:
    """Mean negative log-likelihood of the chosen responses' tokens."""
    flat, inside = logprobs[:COUNT].flatten(), mask[:COUNT, 1:].flatten()
    tokens = Tokens(flat, inside, torch.zeros_like(inside, dtype=torch.long))
    losses = likelihoods.likelihood(flat, torch.ones_like(flat), tokens)
    return reductions.token_mean(losses, inside, tokens.segment, int(inside.sum()), COUNT)


class Words(torch.nn.Module):
    """A model that says a table of log-probabilities, 0 where TRL's own head would leave a 0."""

    is_gradient_checkpointing = False

    def __init__(self, table: Tensor, collision: Tensor):
        super().__init__()
        self.table, self.collision = table, collision

    def forward(self, labels: Tensor, **_: Any) -> SimpleNamespace:
        said, nothing = labels[:, 1:] != -100, torch.zeros_like(self.table)
        return SimpleNamespace(
            log_probs=torch.where(said, self.table, nothing),
            log_sum_sq_probs=torch.where(said, self.collision, nothing),
            entropy=nothing,
            mean_logits=nothing,
            is_top1=said,
        )


def dpo(batch: Batch, losses: Sequence[str], weights: Sequence[float] | None = None, **settings: Any) -> Tensor:
    """What TRL's DPO trainer computes."""
    stand_in = StandIn(DPOConfig, beta=BETA, **settings)
    stand_in.loss_types, stand_in.loss_weights = losses, weights or [1.0] * len(losses)
    stand_in.precompute_ref_logps, stand_in._total_train_tokens, stand_in._tp_size = False, 0, 1
    stand_in.model = Words(batch.logprobs, batch.collision)
    stand_in.ref_model = Words(batch.reference, batch.collision)
    inputs = {"input_ids": batch.ids, "attention_mask": batch.present.long(), "completion_mask": batch.mask.long()}
    return DPOTrainer._compute_loss(stand_in, stand_in.model, inputs, return_outputs=False)


def agree(found: Tensor, expected: Tensor, leaf: Tensor, tolerance: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected.to(found.dtype), atol=tolerance, rtol=tolerance)
    ours_, theirs = (torch.autograd.grad(loss, leaf)[0] for loss in (found, expected))
    assert float(theirs.abs().max()) > 1e-4
    torch.testing.assert_close(ours_, theirs, atol=tolerance, rtol=tolerance)


sigmoid, squared = (
    partial(f, contrast_beta=BETA) for f in (contrasts.best_worst_sigmoid, contrasts.best_worst_squared)
)


def pair(name: str, **parameters: float) -> Callable[..., Tensor]:
    return partial(getattr(preferences, name), contrast_beta=BETA, **parameters)


PLAIN = ("hinge", "nca_pair", "sppo_hard", "bco_pair", "aot", "aot_unpaired", "apo_zero", "apo_down", "discopop")
LOSSES: dict[str, tuple[Callable[..., Tensor], dict[str, Any]]] = {
    "sigmoid": (sigmoid, {}),
    **{name: (pair(name), {}) for name in PLAIN},
    "exo_pair": (pair("exo_pair", label_smoothing=1e-3), {"label_smoothing": 1e-3}),
    "robust": (pair("robust", label_smoothing=0.15), {"label_smoothing": 0.15}),
    "aot smoothed": (pair("aot", label_smoothing=0.2), {"label_smoothing": 0.2}),
    "aot_unpaired smoothed": (pair("aot_unpaired", label_smoothing=0.2), {"label_smoothing": 0.2}),
    "discopop wide": (pair("discopop", discopop_tau=0.7), {"discopop_tau": 0.7}),
}
MEANS = {"ipo": squared, "sigmoid_norm": sigmoid}
DIVERGENCES = {
    "forward_kl": divergences.forward_kl,
    "js_divergence": divergences.js,
    "alpha_divergence": partial(divergences.alpha, alpha_coefficient=0.4),
}


def tolerance(case: str) -> float:
    """TRL makes an fp32 number of EXO's smoothing."""
    return 1e-6 if case == "exo_pair" else 1e-12


@pytest.mark.parametrize("case", LOSSES)
def test_a_loss_type_of_dpo_is_one_of_ours(case: str) -> None:
    batch, (objective, settings) = Batch(), LOSSES[case]
    agree(ours(batch, objective), dpo(batch, [case.split()[0]], **settings), batch.logprobs, tolerance(case))


@pytest.mark.parametrize("case", MEANS)
def test_a_loss_type_of_means_is_one_of_ours_at_the_level_of_sequences(case: str) -> None:
    batch = Batch()
    agree(ours(batch, MEANS[case], level=ratios.sequence), dpo(batch, [case]), batch.logprobs)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("case", ["sigmoid", "hinge", "exo_pair", "robust", "discopop"])
def test_a_divergence_of_dpo_is_one_of_ours(case: str, divergence: str) -> None:
    single = divergence == "alpha_divergence"
    batch, (objective, settings) = Batch(torch.float32 if single else torch.float64), LOSSES[case]
    expected = dpo(batch, [case], f_divergence_type=divergence, f_alpha_divergence_coef=0.4, **settings)
    found = ours(batch, objective, divergence=DIVERGENCES[divergence])
    agree(found, expected, batch.logprobs, 1e-6 if single else tolerance(case))


def test_an_alpha_of_one_is_the_reverse_kl_on_both_sides() -> None:
    batch, one = Batch(), partial(divergences.alpha, alpha_coefficient=1.0)
    expected = dpo(batch, ["sigmoid"], f_divergence_type="alpha_divergence", f_alpha_divergence_coef=1.0)
    agree(ours(batch, sigmoid, divergence=one), expected, batch.logprobs)


def test_a_mean_of_a_divergence_is_not_the_divergence_of_a_mean() -> None:
    batch = Batch()
    expected = dpo(batch, ["sigmoid_norm"], f_divergence_type="js_divergence")
    found = ours(batch, sigmoid, level=ratios.sequence, divergence=divergences.js)
    assert float((found - expected).detach().abs()) > 1e-3
    lengths = torch.tensor(LENGTHS).T.flatten()
    score = divergences.js(((batch.logprobs - batch.reference) * batch.mask[:, 1:]).sum(-1)) / lengths
    by_hand = -torch.nn.functional.logsigmoid(BETA * (score[:COUNT] - score[COUNT:])).mean()
    agree(by_hand, expected, batch.logprobs)


@pytest.mark.parametrize("case", [case for case in [*LOSSES, *MEANS] if not case.startswith("aot")])
def test_wpo_weighs_pairs_as_trl_does(case: str) -> None:
    batch, (objective, settings) = Batch(), LOSSES.get(case) or (MEANS[case], {})
    level = ratios.sequence if case in MEANS else ratios.sequence_sum
    found = ours(batch, objective, level=level, weighting=weightings.policy_probability)
    expected = dpo(batch, [case.split()[0]], use_weighting=True, **settings)
    if case != "hinge":
        agree(found, expected, batch.logprobs, tolerance(case))
        return
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    with pytest.raises(RuntimeError, match="inplace operation"):
        expected.backward()


@pytest.mark.parametrize("ld_alpha", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("case", ["sigmoid", "hinge", "sppo_hard", "apo_down", "aot_unpaired"])
def test_tails_count_as_in_trl(case: str, ld_alpha: float) -> None:
    batch, (objective, settings) = Batch(), LOSSES[case]
    found = ours(batch, objective, level=partial(ratios.desensitised, ld_alpha=ld_alpha))
    agree(found, dpo(batch, [case], ld_alpha=ld_alpha, **settings), batch.logprobs)


def test_mpo_is_trl_s_sum_of_three() -> None:
    batch = Batch()
    agree(cloned(batch, batch.logprobs, batch.mask), dpo(batch, ["sft"]), batch.logprobs)
    found = ours(batch, pair("mpo")) + cloned(batch, batch.logprobs, batch.mask)
    agree(found, dpo(batch, ["sigmoid", "bco_pair", "sft"], [0.8, 0.2, 1.0]), batch.logprobs)


class ReferenceFree(StandIn):
    """What CPO's and ORPO's methods read of themselves, their own methods among it."""

    is_encoder_decoder, pad_token_id, padding_value = False, 0, 0

    def __init__(self, trainer: type, config: type, **settings: Any):
        super().__init__(config, beta=BETA, **settings)
        for name in ("concatenated_inputs", "get_batch_logps"):
            setattr(self, name, getattr(trainer, name))
        for name in ("concatenated_forward", "cpo_loss", "odds_ratio_loss"):
            if hasattr(trainer, name):
                setattr(self, name, partial(getattr(trainer, name), self))


def reference_free(trainer: type, config: type, batch: Batch, **settings: Any) -> Tensor:
    """What TRL's CPO or ORPO trainer computes of the batch's logits."""
    labels = batch.ids.masked_fill(~batch.mask, -100)
    rows = {"chosen": slice(0, COUNT), "rejected": slice(COUNT, None)}
    tables = {"input_ids": batch.ids, "attention_mask": batch.present.long(), "labels": labels}
    inputs = {f"{side}_{name}": table[at] for side, at in rows.items() for name, table in tables.items()}
    answer = SimpleNamespace(logits=batch.logits)
    return trainer.get_batch_loss_metrics(ReferenceFree(trainer, config, **settings), lambda *_, **__: answer, inputs)[
        0
    ]


CURVED = {"divergence": partial(divergences.alpha, alpha_coefficient=0.75)}
CPO: dict[str, tuple[dict[str, Any], Callable[..., Tensor], dict[str, Any]]] = {
    "sigmoid": ({}, sigmoid, {}),
    "sigmoid smoothed": ({"label_smoothing": 0.1}, partial(sigmoid, label_smoothing=0.1), {}),
    "hinge": ({}, pair("hinge"), {}),
    "ipo": ({}, squared, {"level": ratios.sequence}),
    "simpo": ({"simpo_gamma": 0.7}, pair("simpo", simpo_gamma=0.7), {"level": ratios.sequence}),
    "simpo curved": (
        {"simpo_gamma": 0.2, "alpha": 0.25, "cpo_alpha": 0.0},
        pair("alphapo", alphapo_alpha=0.25, simpo_gamma=0.2),
        {"level": ratios.sequence},
    ),
    "sigmoid curved": ({"alpha": 0.25}, sigmoid, CURVED),
    "ipo curved": ({"alpha": 0.25}, squared, {"level": ratios.sequence, **CURVED}),
}


@pytest.mark.parametrize("case", CPO)
def test_a_loss_type_of_cpo_is_one_of_ours_without_an_anchor(case: str) -> None:
    settings, objective, cells = CPO[case]
    batch = Batch()
    expected = reference_free(CPOTrainer, CPOConfig, batch, loss_type=case.split()[0], **settings)
    share = settings.get("cpo_alpha", 1.0)
    found = ours(batch, objective, batch.said(), **cells) + share * cloned(batch, batch.said(), batch.mask)
    agree(found, expected, batch.logits)


def test_orpo_is_ours_beside_the_likelihood_of_prompt_and_response() -> None:
    batch = Batch()
    expected = reference_free(ORPOTrainer, ORPOConfig, batch)
    odds = partial(preferences.orpo, odds_weight=BETA)
    found = ours(batch, odds, batch.said(), level=ratios.sequence) + cloned(batch, batch.said(), batch.present)
    agree(found, expected, batch.logits, 1e-6)  # TRL takes the odds in fp32.
    response_only = found - cloned(batch, batch.said(), batch.present) + cloned(batch, batch.said(), batch.mask)
    assert float((response_only - expected).detach().abs()) > 1e-2


def test_where_trl_s_reference_free_losses_are_not_numbers_ours_are() -> None:
    for trainer, config, method, values, mine, settings in (
        (ORPOTrainer, ORPOConfig, "odds_ratio_loss", [-1e-9, -0.5], partial(preferences.orpo, odds_weight=BETA), {}),
        (CPOTrainer, CPOConfig, "cpo_loss", [-200.0, -110.0], pair("alphapo", alphapo_alpha=0.25), {"alpha": 0.25}),
    ):
        at = torch.tensor(values, requires_grad=True)
        stand_in = ReferenceFree(trainer, config, **({"loss_type": "simpo"} if settings else {}), **settings)
        expected = getattr(stand_in, method)(at[:1], at[1:])[0].sum()
        (theirs,) = torch.autograd.grad(expected, at)
        assert bool(theirs.isnan().any())
        found = mine(at, torch.tensor([1.0, 0.0]), torch.tensor([0, 0])).sum()
        (slopes,) = torch.autograd.grad(found, at)
        assert bool(found.isfinite() and slopes.isfinite().all() and (slopes[0] < 0))
