"""Advantages, corrections and whole steps, from scores to gradients, are those of TRL 1.16's own code.

TRL's side is `_generate_and_score_completions` of its trainers, where what was generated and its scores are given.

| ours | TRL |
|---|---|
| credit group_mean, group_norm, batch_std | scale_rewards none, group, batch |
| component_norm, then batch_norm (gdpo) | multi_objective_aggregation normalize_then_sum |
| leave_one_out; kl in_reward (k1); batch_norm | RLOO; beta; normalize_advantages |
| rloo with ratio sequence_sum, clip and sequence_mean | RLOO's loss |
| truncated_importance, masked_importance, two_sided_mask, sequence_truncated, sequence_masked | \
vllm_importance_sampling_mode token_truncate, token_mask, token_mask with clip_min, sequence_truncate, sequence_mask |
| truncated mask | mask_truncated_completions |
| shaping overlong | get_soft_overlong_punishment |

Known differences (asserted unless said otherwise):

- TRL's standard deviations are unbiased and have 1e-4 added, ours are the population's and have a floor instead: with
  s = our std of n scores, TRL's advantages are ours x s / (s sqrt(n / (n - 1)) + 1e-4).
- normalize_then_sum does so twice, once per component and group and once over the step.
- The second time, and normalize_advantages, go over responses, ours over tokens: the same where lengths are equal.
- A component that a grader left out adds 0 in TRL; ours takes the others' mean for it, which adds 0 too, but counts in
  the standard deviation: of n known among G, the others' are sqrt(G / (n - 1)) times TRL's (not asserted).
- Responses without a score have advantage 0 in TRL and stay in its denominators; we do not train on them at all.
- The same for cut responses under mask: loss types grpo and dr_grpo give learnt / all times our loss.
- The row rloo has REINFORCE's gradient, which is that of TRL's clipped ratio where nothing moved yet; its value is not.
- overlong counts a tool's tokens in TRL, only the policy's own in ours (not asserted).
- No row of ours: token_truncate and sequence_* with clip_min; multiplying rewards by weights is what a recipe's graders
  do before a row sees the score. No counterpart in TRL: geometric_mask, and every other credit cell.
"""

from __future__ import annotations

import math
import warnings
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.algorithms.bound import formula
from posttrain.algorithms.choice import choose
from posttrain.algorithms.credit import assign_credit
from posttrain.algorithms.row import Algorithm
from posttrain.algorithms.state import Terms
from posttrain.types import Annotation, Group, Prompt, Sample, Verdict
from tests.algorithms.trl_side import MAX_TOKENS, SIZE, Model, StandIn, Step, gradient, inputs, leaf, ours, same

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # TRL does not know the installed vLLM yet.
    from trl.rewards import get_soft_overlong_punishment
    from trl.trainer.grpo_config import GRPOConfig
    from trl.trainer.grpo_trainer import GRPOTrainer
    from trl.trainer.rloo_config import RLOOConfig
    from trl.trainer.rloo_trainer import RLOOTrainer

SCORES = (1.0, 0.0, 0.3, 0.7, 5.0, 2.0, 2.0, -1.0, 0.25, 0.5, 0.5, 0.5)
SOME = (1.0, None, 0.3, 0.7, 5.0, 2.0, None, None, None, 0.5, None, None)
PARTS = (SCORES, (0.0, 0.0, 1.0, 1.0, -3.0, 1.0, 8.0, 2.0, 0.5, 0.1, 0.2, 0.9))
WEIGHTS = (0.7, 0.3)
BESSEL = 1e-6
"""A tolerance: TRL corrects its standard deviations by a factor in fp32."""
EQUAL = {"lengths": (6,) * len(SCORES), "tools": {}}
Scores = Sequence[float | None]


def column(scores: Scores) -> Tensor:
    return torch.tensor([math.nan if s is None else s for s in scores], dtype=torch.float64)


class Generated(StandIn):
    """A trainer that was handed what it generates, and what its reward functions say of it."""

    def __init__(self, config: type, step: Step, *scores: Scores, weights: Sequence[float] = (1.0,), **changes: Any):
        super().__init__(config, pad_to_multiple_of=None, num_generations=SIZE, **{"beta": 0.0, **changes})
        self.model = Model(logprobs=step.previous, entropy=step.entropy)
        self.ref_model = Model(logprobs=step.reference, entropy=step.entropy)
        ids, rows = [r[:n].tolist() for r, n in zip(step.ids, step.lengths, strict=True)], range(len(step.ids))
        said = [t[:n].tolist() for t, n in zip(step.behaviour, step.lengths, strict=True)]
        tools = [m[:n].int().tolist() for m, n in zip(step.mask, step.lengths, strict=True)]
        prompts, texts = [[0] * (2 + i // SIZE) for i in rows], [""] * len(ids)
        whole = prompts, ids, tools, texts, said, {}, None, None
        self._generate = lambda _: (prompts, ids, texts) if config is RLOOConfig else whole
        self._tokenizer = Model(pad_token_id=0)
        self.eos_token_ids = [ids[i][-1] for i in rows if i not in step.cut]
        rewards = torch.stack([column(s) for s in scores], dim=1)
        self._calculate_rewards = lambda *_: rewards
        self.reward_funcs, self.reward_func_names = list(scores), [str(i) for i in range(len(scores))]
        self.reward_weights = torch.tensor(weights, dtype=torch.float64)
        self._logs = defaultdict(list, rewards=defaultdict(list))
        self.environment_factories = self.environments = self.tools = None
        self._pending_extra_logs, self._pending_metrics, self.num_iterations = {}, {}, 1

    def scored(self, trainer: type) -> dict[str, Tensor]:
        return trainer._generate_and_score_completions(self, [{"prompt": ""} for _ in self.model.logprobs])


def credited(algorithm: Algorithm, step: Step, scores: Scores, parts: Sequence[Scores] = ()) -> list[Sample]:
    groups, annotations = [], []
    for at in range(0, len(scores), SIZE):
        rows = range(at, at + SIZE)
        verdicts = tuple(
            Verdict(None, "error")
            if scores[i] is None
            else Verdict(scores[i], parts={"ab"[k]: p[i] for k, p in enumerate(parts)})
            for i in rows
        )
        groups.append(Group(Prompt(str(at), (), ""), tuple(step.rollouts[at : at + SIZE]), verdicts))
        previous = [step.placed(i, step.previous) for i in rows]
        annotations.append(Annotation(previous, [step.placed(i, step.reference)[:, None] for i in rows]))
    terms = Terms(MAX_TOKENS, weights=dict(zip("ab", WEIGHTS, strict=True)))
    return assign_credit(algorithm, groups, annotations, terms)[0]


def advantages(algorithm: Algorithm, step: Step, scores: Scores, parts: Sequence[Scores] = ()) -> Tensor:
    """`[B]`: each response's advantage, 0 where it is not learnt from."""
    found = torch.zeros(len(scores), dtype=torch.float64)
    for sample in credited(algorithm, step, scores, parts):
        own = sample.advantages[sample.mask]
        assert bool((own == own[0]).all())
        found[step.rollouts.index(sample.rollout)] = own[0]
    return found


def spread(values: Tensor) -> tuple[Tensor, Tensor]:
    """Our standard deviation, and the factor from our normalised scores to TRL's."""
    values = values[~values.isnan()]
    std = values.std(unbiased=False)
    return std, std / (std * math.sqrt(len(values) / max(len(values) - 1, 1)) + 1e-4)


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    assert float(expected.abs().max()) > 0.1
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("scores", [SCORES, SOME], ids=["all scored", "some scored"])
@pytest.mark.parametrize(("scale", "credit"), [("none", "group_mean"), ("group", "group_norm"), ("batch", "batch_std")])
def test_scaled_rewards_are_a_credit_cell_up_to_the_standard_deviation(scale: str, credit: str, scores: Scores) -> None:
    step = Step()
    expected = Generated(GRPOConfig, step, scores, scale_rewards=scale).scored(GRPOTrainer)["advantages"]
    found = advantages(choose("grpo", {"credit": credit}), step, scores)
    if scale == "group":
        found = found * torch.stack([spread(g)[1] for g in column(scores).view(-1, SIZE)]).repeat_interleave(SIZE)
    if scale == "batch":
        usable = torch.cat([g for g in column(scores).view(-1, SIZE) if int((~g.isnan()).sum()) > 1])
        std, ratio = spread(column(scores))
        found = found * ratio * spread(usable)[0] / std
    close(found, expected, 1e-12 if scale == "none" else BESSEL)


def test_the_sum_of_normalised_components_is_gdpo_where_lengths_are_equal() -> None:
    """Scores are large here, so that TRL's first 1e-4 is nothing; the second one is in the factor."""
    step, parts = Step(**EQUAL), [[1e8 * score for score in part] for part in PARTS]
    stand_in = Generated(GRPOConfig, step, *parts, weights=WEIGHTS, multi_objective_aggregation="normalize_then_sum")
    before = advantages(choose("gdpo", {"whitening": "none"}), step, SCORES, parts)
    factor = spread(before * math.sqrt((SIZE - 1) / SIZE))[1]
    close(
        advantages(choose("gdpo", {}), step, SCORES, parts) * factor, stand_in.scored(GRPOTrainer)["advantages"], BESSEL
    )


@pytest.mark.parametrize("beta", [0.0, 0.3])
@pytest.mark.parametrize("scores", [SCORES, SOME], ids=["all scored", "some scored"])
def test_leave_one_out_with_the_kl_in_the_reward_is_rloo(scores: Scores, beta: float) -> None:
    step, changes = Step(tools={}), {"kl": "in_reward", "kl_coefficient": beta} if beta else {}
    expected = Generated(RLOOConfig, step, scores, beta=beta).scored(RLOOTrainer)["advantages"]
    close(advantages(choose("rloo", changes), step, scores), expected)


def test_normalised_advantages_of_rloo_are_whitened_where_lengths_are_equal() -> None:
    step = Step(**EQUAL)
    expected = Generated(RLOOConfig, step, SCORES, normalize_advantages=True).scored(RLOOTrainer)["advantages"]
    factor = spread(advantages(choose("rloo", {}), step, SCORES))[1]
    close(factor * advantages(choose("rloo", {"whitening": "batch_norm"}), step, SCORES), expected, BESSEL)


def rloo(step: Step, model: Model, moved: bool) -> Tensor:
    """RLOO's loss; it has no mask for tools beside the completion's, and takes the old sum of a response."""
    old = (step.previous if moved else model.logprobs.detach()) * step.mask
    given = {**inputs(step), "completion_mask": step.mask.long(), "old_logps": old.sum(-1)}
    return RLOOTrainer._compute_loss(StandIn(RLOOConfig), model, given)


def test_rloo_clips_the_ratio_of_whole_responses() -> None:
    step, model = Step(), leaf(Step())
    whole = {"ratio": "sequence_sum", "objective": "clip", "reduction": "sequence_mean"}
    same(
        ours(choose("rloo", {"correction": "none", **whole}), step, model, step.samples()),
        rloo(step, model, True),
        model,
    )


def test_rloo_before_the_first_update_has_the_rows_gradient_and_its_value_without_lengths() -> None:
    step, model = Step(), leaf(Step())
    found, expected = (
        ours(choose("rloo", {"correction": "none"}), step, model, step.samples(False)),
        rloo(step, model, False),
    )
    torch.testing.assert_close(gradient(found, model), gradient(expected, model), atol=1e-12, rtol=0)
    torch.testing.assert_close(expected, -step.advantages.mean())
    torch.testing.assert_close(found, -(step.advantages * step.mask.sum(-1)).mean())


CORRECTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "token_truncate": ({}, {"correction": "truncated_importance", "importance_cap": 1.3}),
    "token_mask": ({}, {"correction": "masked_importance", "importance_cap": 1.3}),
    "sequence_truncate": ({}, {"correction": "sequence_truncated", "importance_cap": 1.3}),
    "sequence_mask": ({}, {"correction": "sequence_masked", "importance_cap": 1.3}),
    "token_mask, two-sided": (
        {"vllm_importance_sampling_clip_min": 0.7},
        {"correction": "two_sided_mask", "importance_low": 0.7, "importance_high": 1.3},
    ),
}
LOSSES: dict[str, tuple[dict[str, Any], str]] = {
    "dr_grpo": ({"loss_type": "dr_grpo", "max_completion_length": MAX_TOKENS}, "dr_grpo"),
    "gspo": ({"loss_type": "grpo", "importance_sampling_level": "sequence"}, "gspo"),
    "sapo": ({"loss_type": "sapo"}, "sapo"),
    "cispo": ({"loss_type": "cispo", "epsilon_high": 1.2}, "cispo"),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("correction", CORRECTIONS)
def test_a_whole_step_from_scores_to_gradients_is_that_of_trl(correction: str, loss: str) -> None:
    bounds, changes = CORRECTIONS[correction]
    (settings, name), step = LOSSES[loss], Step()
    clip = {} if loss == "sapo" else {"clip_high": 0.2} if loss == "cispo" else {"clip_low": 0.2, "clip_high": 0.2}
    named = {"vllm_importance_sampling_mode": correction.split(",")[0], "vllm_importance_sampling_clip_max": 1.3}
    stand_in = Generated(
        GRPOConfig,
        step,
        SCORES,
        scale_rewards="none",
        beta=0.3,
        use_bias_correction_kl=False,
        use_vllm=True,
        **settings,
        **named,
        **bounds,
    )
    model, kl = leaf(step), {"kl": "in_loss", "kl_coefficient": 0.3, "credit": "group_mean"}
    algorithm = choose(name, {**clip, **changes, **kl})
    given = stand_in.scored(GRPOTrainer)
    weights = given["importance_sampling_ratio"].expand_as(step.mask)[step.mask]
    assert len(weights.unique()) > 2
    assert float(weights.max()) <= 1.3
    expected = GRPOTrainer._compute_loss(stand_in, model, given)
    # TRL keeps SAPO's temperatures in fp32.
    same(
        ours(algorithm, step, model, credited(algorithm, step, SCORES)),
        expected,
        model,
        1e-7 if loss == "sapo" else 1e-12,
    )


@pytest.mark.parametrize(("name", "factor"), [("grpo", 9 / 12), ("dr_grpo", 9 / 12), ("dapo", 1)])
def test_cut_responses_are_masked_as_in_trl_which_counts_them(name: str, factor: float) -> None:
    step, settings = Step(cut=(2, 5, 6)), {"loss_type": name, "max_completion_length": MAX_TOKENS}
    stand_in = Generated(GRPOConfig, step, SCORES, scale_rewards="none", mask_truncated_completions=True, **settings)
    stand_in.args.steps_per_generation = 3  # As it is with stale samples, so that old log-probabilities are kept.
    given = stand_in.scored(GRPOTrainer)
    stand_in.args.steps_per_generation = 1
    plain = {"truncated": "mask", "credit": "group_mean", "correction": "none", "selection": "all", "shaping": "none"}
    algorithm, model = choose(name, {**plain, "clip_high": 0.2}), leaf(step)
    found = factor * ours(algorithm, step, model, credited(algorithm, step, SCORES))
    same(found, GRPOTrainer._compute_loss(stand_in, model, given), model)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo"])
def test_responses_without_a_score_stay_in_the_denominators_of_trl(name: str) -> None:
    scores = (1.0, None, 0.3, 0.7, 5.0, 2.0, None, None, 0.0, 0.5, 2.0, 1.0)
    step, settings = Step(), {"loss_type": name, "max_completion_length": MAX_TOKENS}
    stand_in = Generated(GRPOConfig, step, scores, scale_rewards="none", **settings)
    algorithm, model = choose(name, {"credit": "group_mean", "correction": "none"}), leaf(step)
    given = {**stand_in.scored(GRPOTrainer), "old_per_token_logps": step.previous}
    found = 9 / 12 * ours(algorithm, step, model, credited(algorithm, step, scores))
    same(found, GRPOTrainer._compute_loss(stand_in, model, given), model)


def test_overlong_responses_lose_what_they_lose_in_trl() -> None:
    lengths = (100, 120, 79, 80, 81, 90, 99, 1)
    penalty = get_soft_overlong_punishment(max_completion_len=100, soft_punish_cache=20)([[0] * n for n in lengths])
    shaping = choose("dapo", {"overlong_buffer": 0.2}).shaping
    assert [formula(shaping)(n, 100) for n in lengths] == pytest.approx(penalty)
    assert len(set(penalty)) == 5
