"""Cells that cannot stand together are refused with the key, the reason and a way out that is one."""

from __future__ import annotations

from typing import Any

import pytest

from posttrain.algorithms.choice import choose
from posttrain.algorithms.contradictions import contradictions
from posttrain.errors import RecipeError

CONTRADICTIONS = [
    # A row, what a recipe changes, the key that is named, why, and the way out.
    ("grpo", {"reduction": "group_mean"}, "reduction", "clip makes a loss for each token", "token_mean, sequence_mean"),
    ("rebel", {"reduction": "token_mean"}, "reduction", "rebel makes a loss for each group", "reduction: group_mean"),
    ("rebel", {"ratio": "token"}, "ratio", "compares whole sequences", "ratio: sequence_sum"),
    ("kimi", {"ratio": "sequence_token"}, "ratio", "compares whole sequences", "ratio: sequence_sum"),
    ("dppo_tv", {"ratio": "sequence"}, "ratio", "the probability of each token", "ratio: token"),
    ("dppo_kl", {"ratio": "sequence_sum"}, "ratio", "the probability of each token", "ratio: token"),
    ("rover", {"ratio": "sequence_token"}, "ratio", "the probability of each token", "ratio: token"),
    ("copg", {"correction": "truncated_importance"}, "correction", "needs no importance weights", "correction: none"),
    ("agro", {"credit": "group_norm"}, "credit", "compares the scores of whole groups", "credit: score and keep: all"),
    ("online_dpo", {"keep": "best_worst"}, "credit", "compares the scores", "credit: score and keep: all"),
    ("grpo", {"credit": "gae"}, "critic", "credit: gae needs values", "critic: squared, hl_gauss, frozen or joint"),
    ("grpo", {"truncated": "bootstrap"}, "critic", "truncated: bootstrap needs values", "critic: squared"),
    ("grpo", {"critic": "squared"}, "critic", "credit: group_norm reads no values", "critic: none"),
    ("ppo", {"critic": "none"}, "critic", "credit: gae needs values", "critic: squared, hl_gauss, frozen or joint"),
    ("grpo", {"anchor": "behaviour"}, "correction", "the gap to the engine a second time", "correction: none"),
    ("gspo", {"anchor": "reference", "trust": "penalty"}, "trust", "bounds KL(old || new)", "anchor: previous"),
    ("fixpo", {"anchor": "reference"}, "trust", "bounds KL(old || new)", "anchor: previous"),
    ("ppo", {"critic": "hl_gauss", "value_low": 2.0}, "value_low", "2.0 is not below", "algorithm.value_high: 1.0"),
    ("vapo", {"critic": "hl_gauss", "value_low": 0.5, "value_high": 0.5}, "value_low", "not below", "value_high: 0.5"),
    ("reward_binned", {"value_low": 3.0}, "value_low", "3.0 is not below", "algorithm.value_high: 1.0"),
    ("dpo", {"reduction": "token_mean"}, "reduction", "makes a loss for each group", "reduction: group_mean"),
    ("reward_margin", {"reduction": "constant"}, "reduction", "makes a loss for each group", "reduction: group_mean"),
    ("reward_process", {"reduction": "group_mean"}, "reduction", "makes a loss for each token", "token_mean"),
    ("ipo", {"ratio": "token"}, "ratio", "compares whole sequences", "ratio: sequence_sum, or sequence"),
    ("dpo", {"whitening": "batch_norm"}, "whitening", "reads scores, not advantages", "whitening: none"),
    # Nobody knows under which policy a given response was sampled.
    ("grpo", {"source": "given"}, "correction", "source: given brings responses without any", "use correction: none"),
    ("rcrl", {"correction": "geometric_mask"}, "correction", "source: conditioned brings", "use correction: none"),
    ("sft", {"anchor": "behaviour"}, "anchor", "source: given brings responses without any", "use anchor: reference"),
    ("dqo", {"credit": "v_trace"}, "credit", "source: given brings responses without any", "use credit: gae"),
    ("dqo", {"kl": "in_reward"}, "kl", "rewards what the policy samples", "use kl: in_loss or online"),
    ("self", {"source": "given", "correction": "none"}, "source", "asks for greedy responses", "use source: sampled"),
    ("online_dpo", {"kl": "online"}, "kl", "source: sampled samples", "use kl: in_loss"),
    ("spin", {"kl": "online"}, "kl", "source: joined samples", "use kl: in_loss"),
    ("dpo", {"opponent": "reference"}, "opponent", "source: given samples nothing", "use joined"),
    ("spin", {"source": "sampled"}, "source", "the data's answers against sampled ones", "use source: joined"),
    ("spac", {"source": "given"}, "source", "the data's answers against sampled ones", "use source: joined"),
    ("xpo", {"opponent": "none"}, "opponent", "needs responses of the reference", "use reference"),
    ("reward_gap", {"source": "sampled"}, "source", "a reward model learns from given responses", "use source: given"),
    # Columns that only a loss of groups reads, or only a reward model.
    ("grpo", {"divergence": "js"}, "divergence", "objective: clip reads none", "use divergence: reverse_kl"),
    ("sft", {"weighting": "policy_probability"}, "weighting", "likelihood reads none", "use weighting: none"),
    ("dqo", {"cloning": "best"}, "cloning", "regressed reads none", "use cloning: none"),
    ("dpo", {"contrast": "goal"}, "contrast", "best_worst_sigmoid reads none", "use contrast: none"),
    ("reward_process", {"contrast": "goal"}, "contrast", "step_bce reads none", "use contrast: none"),
    ("kto", {"divergence": "js"}, "divergence", "objective: kto reads none", "use divergence: reverse_kl"),
    ("simpo", {"divergence": "alpha"}, "divergence", "objective: simpo reads none", "use divergence: reverse_kl"),
    ("aot", {"weighting": "policy_probability"}, "weighting", "objective: aot reads none", "use weighting: none"),
    ("aot", {"ratio": "sequence"}, "ratio", "takes log-ratios of another kind", "use ratio: sequence_sum"),
    ("kto", {"ratio": "sequence"}, "ratio", "takes log-ratios of another kind", "use ratio: sequence_sum"),
    ("dqo", {"ratio": "sequence"}, "ratio", "takes log-ratios of another kind", "use ratio: token"),
    ("grpo", {"ratio": "desensitised"}, "ratio", "takes log-ratios of another kind", "use ratio: token"),
    ("dpo", {"objective": "orpo"}, "anchor", "takes log-ratios of another kind", "use anchor: none"),
    ("grpo", {"anchor": "none"}, "anchor", "reads a ratio to a policy", "use anchor: previous"),
    ("ppo", {"critic": "joint"}, "critic", "clip trains no values", "use squared or none"),
    ("dro_v", {"critic": "squared"}, "critic", "trains the values itself", "use critic: joint"),
    ("dpo", {"selection": "mixed"}, "selection", "source: given draws none", "use selection: all"),
    ("kto", {"scaling": "batch"}, "scaling", "objective: kto reads none", "use scaling: none"),
    ("reward_bradley_terry", {"ratio": "sequence"}, "ratio", "bradley_terry reads none", "use ratio: token"),
    *(
        ("reward_bradley_terry", {column: kind}, column, "bradley_terry reads none", f"use {column}: {plain}")
        for column, kind, plain in (
            ("divergence", "js", "reverse_kl"),
            ("weighting", "policy_probability", "none"),
            ("cloning", "best", "none"),
            ("kl", "in_loss", "none"),
            ("entropy", "bonus", "none"),
            ("trust", "stop", "none"),
            ("scaling", "batch", "none"),
            ("shaping", "overlong", "none"),
            ("whitening", "batch_scale", "none"),
            ("keep", "best", "all"),
        )
    ),
]


def mistakes(name: str, **changes: Any) -> str:
    with pytest.raises(RecipeError) as refused:
        choose(name, changes)
    return str(refused.value)


@pytest.mark.parametrize(("name", "changes", "key", "why", "way_out"), CONTRADICTIONS)
def test_cells_that_contradict_one_another_are_refused_with_the_key_the_reason_and_a_way_out(
    name: str, changes: dict[str, Any], key: str, why: str, way_out: str
) -> None:
    text = mistakes(name, **changes)
    assert f"algorithm.{key}:" in text
    assert why in text
    assert way_out in text


@pytest.mark.parametrize(
    ("name", "changes", "way_out"),
    [
        ("rebel", {"reduction": "token_mean"}, {"reduction": "group_mean"}),
        ("rebel", {"ratio": "token"}, {"ratio": "sequence"}),
        ("dppo_tv", {"ratio": "sequence"}, {"ratio": "token"}),
        ("copg", {"correction": "truncated_importance"}, {"correction": "none"}),
        ("agro", {"credit": "group_norm", "keep": "best"}, {"credit": "score", "keep": "all"}),
        ("grpo", {"credit": "gae"}, {"critic": "hl_gauss"}),
        ("ppo", {"credit": "group_norm"}, {"critic": "none"}),
        ("grpo", {"anchor": "behaviour"}, {"correction": "none"}),
        ("gspo", {"anchor": "reference", "trust": "penalty"}, {"anchor": "previous"}),
        ("grpo", {"source": "given"}, {"correction": "none"}),
        ("sft", {"anchor": "behaviour"}, {"anchor": "reference"}),
        ("dqo", {"credit": "v_trace"}, {"credit": "gae"}),
        ("dqo", {"kl": "in_reward"}, {"kl": "in_loss"}),
        ("dpo", {"kl": "online", "source": "joined"}, {"kl": "in_loss"}),
        ("dpo", {"opponent": "reference"}, {"source": "joined"}),
        ("remax", {"source": "given", "correction": "none"}, {"source": "sampled"}),
        ("spin", {"source": "sampled"}, {"source": "joined"}),
        ("xpo", {"opponent": "none"}, {"opponent": "reference"}),
        ("grpo", {"divergence": "js"}, {"divergence": "reverse_kl"}),
        ("reward_ties", {"kl": "in_loss"}, {"kl": "none"}),
        ("aot", {"ratio": "desensitised"}, {"ratio": "sequence_sum"}),
        ("dpo", {"reduction": "token_mean"}, {"reduction": "group_mean"}),
    ],
)
def test_every_way_out_is_one(name: str, changes: dict[str, Any], way_out: dict[str, Any]) -> None:
    refused = mistakes(name, **changes)
    assert all(column in refused and kind in refused for column, kind in way_out.items())
    assert contradictions(choose(name, {**changes, **way_out})) == []
