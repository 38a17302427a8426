"""A recipe's choice of a row: what is replaced, what is refused and with which way out, and what a row needs."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, get_args

import pytest

from posttrain.algorithms.catalogue import CATALOGUE, cell
from posttrain.algorithms.cells import Level
from posttrain.algorithms.choice import choose, contradictions
from posttrain.algorithms.row import DEFAULTS, Needs
from posttrain.algorithms.table import ALGORITHMS
from posttrain.errors import RecipeError

# Smallest group, then what is asked for.
SAMPLED: dict[str, str] = {
    "reinforce": "2 behaviour previous",
    "reinforce_baseline": "1 behaviour previous",
    "rloo": "2 behaviour previous",
    "remax": "1 behaviour previous greedy",
    "opo": "2 behaviour previous",
    "reinforce_pp": "1 behaviour previous reference",
    "reinforce_pp_baseline": "2 behaviour previous reference",
    "grpo": "2 behaviour previous",
    "dr_grpo": "2 behaviour previous",
    "lite_ppo": "2 behaviour previous",
    "dapo": "2 behaviour previous",
    "max_rl": "2 behaviour previous",
    "pass_at_k": "4 behaviour previous",
    "gdpo": "2 behaviour previous parts",
    "spo": "2 behaviour previous preference",
    "self": "2 behaviour previous greedy",
    "rlpr": "2 behaviour previous",
    "gspo": "2 behaviour previous",
    "gspo_token": "2 behaviour previous",
    "gmpo": "2 behaviour previous",
    "cispo": "2 behaviour previous",
    "sapo": "2 behaviour previous",
    "dppo_tv": "2 behaviour previous",
    "dppo_kl": "2 behaviour previous",
    "discovered": "2 behaviour previous",
    "mdpo": "2 behaviour previous",
    "fixpo": "2 behaviour previous",
    "m2po": "2 behaviour previous",
    "clip_cov": "2 behaviour previous",
    "kl_cov": "2 behaviour previous",
    "rapid": "2 behaviour previous",
    "pipeline_rl": "2 behaviour",
    "rec": "2 behaviour previous",
    "opmd": "2 behaviour previous",
    "asymre": "2 behaviour previous",
    "rover": "2 previous uniform",
    "oreal": "2 behaviour previous reference",
    "raft": "1",
    "expert_iteration": "1",
    "rejection_sampling": "1",
    "best_of_two": "2",
    "ppo": "1 behaviour previous critic",
    "ppo_max": "1 behaviour previous reference critic",
    "vapo": "1 behaviour previous critic",
    "pf_ppo": "2 behaviour previous critic",
    "dvpo": "1 behaviour previous critic",
    "a2c": "1 behaviour previous critic",
    "impala": "1 behaviour trainer critic",
    "trpo": "1 behaviour previous critic",
    "kimi": "2 previous",
    "rebel": "2 previous",
    "copg": "2 reference",
    "agro": "2 reference",
    "online_dpo": "2 reference pairs",
    "online_ipo": "2 reference pairs",
}
"""All of them an engine, too."""
GIVEN: dict[str, str] = {
    "sft": "1",
    "dft": "1",
    "rcrl": "1 conditioning",
    **dict.fromkeys(("dpo", "robust_dpo", "slic", "ipo", "exo_pair", "nca"), "2 reference pairs"),
    "bco_pair": "2 reference pairs shift",
    **dict.fromkeys(("sppo_hard", "aot", "aot_unpaired", "apo_zero", "apo_down", "discopop"), "2 reference pairs"),
    "dpo_norm": "2 reference pairs",
    "f_dpo": "2 reference pairs",
    "wpo": "2 reference pairs collision",
    "ld_dpo": "2 reference pairs",
    "rpo": "2 reference pairs",
    "mpo": "2 reference pairs shift",
    "dpop": "2 reference pairs",
    "odpo": "2 reference pairs margins",
    "modpo": "2 reference pairs margins",
    "step_dpo": "2 reference pairs",
    "sera": "2 reference pairs trainer",
    "hypo": "2 reference pairs sampler",
    **dict.fromkeys(("simpo", "cpo", "orpo", "alphapo", "cpl"), "2 pairs"),
    "lipo": "2 reference pairs",
    "pro": "2 reference pairs",
    "exo": "2 reference",
    "k_way": "2 reference",
    "kto": "1 reference mismatched",
    "kto_apo_zero": "1 reference",
    "bco": "1 reference shift",
    **dict.fromkeys(("rebel_offline", "copg_offline", "agro_offline"), "2 reference"),
    "dro_v": "1 reference critic",
    "a_lol": "1 reference critic",
    "a_lol_seq": "1 reference critic",
    "a_lol_ref_free": "1 critic",
    "a_lol_kl": "1 reference critic",
    "direct_advantage": "1 reference critic steps",
    "dqo": "1 reference critic",
}
"""All of them answers that come with the data, too."""
PLAYED: dict[str, str] = {
    "iterative_dpo": "2 sampler reference refresh pairs",
    "accelerated_dpo": "2 given reference refresh pairs",
    "sppo": "2 sampler reference refresh",
    "inpo": "2 sampler reference refresh pairs",
    "dno": "2 sampler reference refresh",
    "xpo": "2 sampler reference opponent pairs",
    "spin": "2 given sampler reference refresh opponent",
    "spin_pool": "2 given sampler reference refresh opponent",
    "spac": "2 given sampler reference refresh",
}
SCORERS: dict[str, str] = {
    "reward_bradley_terry": "2 pairs",
    "reward_margin": "2 pairs margins",
    "reward_ties": "2 ties",
    "reward_plackett_luce": "2 pairs",
    "reward_gap": "2 pairs in_context",
    "reward_regression": "1",
    "reward_outcome": "1",
    "reward_binned": "1",
    "reward_process": "1 steps",
    "reward_goal_conditioned": "2 pairs states",
}
"""All of them given answers, and that what is trained is a reward model."""
NEEDS = {
    **{name: f"{words} sampler" for name, words in SAMPLED.items()},
    **{name: f"{words} given" for name, words in GIVEN.items()},
    **PLAYED,
    **{name: f"{words} given scorer" for name, words in SCORERS.items()},
}


def mistakes(name: str, **changes: Any) -> str:
    with pytest.raises(RecipeError) as refused:
        choose(name, changes)
    return str(refused.value)


def test_every_row_needs_what_its_cells_ask_for_and_no_more() -> None:
    assert list(NEEDS) == list(ALGORITHMS)
    for name, written in NEEDS.items():
        least, *asked = written.split()
        found = ALGORITHMS[name].needs
        assert found.min_group == int(least), name
        flags = {f.name for f in fields(Needs) if f.name != "min_group" and getattr(found, f.name)}
        assert flags == set(asked), name


def test_needs_follow_from_what_a_recipe_changes() -> None:
    assert choose("grpo", {"kl": "in_loss"}).needs.reference
    assert choose("grpo", {"kl": "in_reward"}).needs.reference
    assert choose("pass_at_k", {"pass_k": 7}).needs.min_group == 7
    assert not choose("grpo", {"correction": "none"}).needs.behaviour
    assert not choose("reinforce", {"correction": "none"}).needs.previous
    assert choose("reinforce", {"correction": "none", "trust": "stop"}).needs.previous
    assert choose("dapo", {"selection": "greedy_wrong"}).needs.greedy
    assert choose("simpo", {"weighting": "policy_probability"}).needs.collision
    assert choose("simpo", {"anchor": "reference"}).needs.reference
    assert choose("dpo", {"source": "joined"}).needs.sampler
    assert choose("dpo", {"kl": "online"}).needs.sampler
    assert not choose("grpo", {"source": "given", "correction": "none"}).needs.sampler
    assert choose("iterative_dpo", {"opponent": "pool"}).needs.opponent
    assert choose("reward_bradley_terry", {"contrast": "goal"}).needs.states


def test_no_row_of_the_table_contradicts_itself_or_holds_a_value_that_would_be_refused() -> None:
    assert len(ALGORITHMS) == 124
    for name, row in ALGORITHMS.items():
        assert contradictions(row) == [], name
        assert choose(name, {}) == row
        for one in row.cells.values():
            assert set(one.values) <= set(one.entry.parameters), (name, one.column)
            for key, value in one.settings.items():
                assert (key, str(value)) not in one.entry.refused, (name, key)
                # Whatever the table says, a recipe may say as well, and means the same by it.
                assert choose(name, {key: value}).cells[one.column][key] == value


def test_every_kind_of_the_catalogue_has_defaults_that_a_recipe_may_write_down() -> None:
    for column, kinds in CATALOGUE.items():
        for kind in kinds:
            row = ALGORITHMS["grpo"].replaced(cell(column, kind))
            for key, value in row.cells[column].settings.items():
                found = choose_or_contradictions(column, kind, key, value)
                assert not [m for m in found if m.startswith(f"algorithm.{key}:")], (column, kind, key, found)


def choose_or_contradictions(column: str, kind: str, key: str, value: object) -> list[str]:
    try:
        choose("grpo", {column: kind, key: value})
    except RecipeError as error:
        return error.mistakes
    return []


def test_levels_of_kinds_are_those_that_somebody_reads() -> None:
    levels = {
        "credit": {"group", "step", "token"},
        "objective": {"token", "step", "set", "scorer", "scorer_token"},
        "reduction": {"token", "set"},
        "contrast": {"token", "scorer"},
    }
    for column, kinds in CATALOGUE.items():
        assert {entry.level for entry in kinds.values()} == levels.get(column, {"token"}), column
    assert set().union(*levels.values()) == set(get_args(Level))


def test_columns_left_out_of_a_row_are_the_defaults() -> None:
    assert set(DEFAULTS) | {"credit", "objective", "reduction"} == set(CATALOGUE)
    assert {c: ALGORITHMS["grpo"].cells[c].kind for c in DEFAULTS} == DEFAULTS


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
        ("dpo", {"reduction": "token_mean"}, {"reduction": "group_mean"}),
    ],
)
def test_every_way_out_is_one(name: str, changes: dict[str, Any], way_out: dict[str, Any]) -> None:
    refused = mistakes(name, **changes)
    assert all(column in refused and kind in refused for column, kind in way_out.items())
    assert contradictions(choose(name, {**changes, **way_out})) == []


def test_the_estimate_whose_gradient_is_nothing_is_refused_in_the_loss() -> None:
    text = mistakes("grpo", kl="in_loss", kl_estimator="k1")
    assert "algorithm.kl_estimator: the expected gradient of k1 as a loss is zero" in text
    assert "use kl_estimator: k2, k3 or exact, or kl: in_reward (found 'k1')" in text
    assert choose("grpo", {"kl": "in_reward", "kl_estimator": "k1"}).kl["kl_estimator"] == "k1"
    assert choose("grpo", {"kl": "in_loss"}).kl["kl_estimator"] == "k3"


def test_the_estimate_that_does_not_know_the_token_is_refused_in_the_reward() -> None:
    text = mistakes("grpo", kl="in_reward", kl_estimator="exact")
    assert "algorithm.kl_estimator: the exact KL at a token does not depend on which token was drawn" in text
    assert "use kl_estimator: k1, or kl: in_loss" in text
    assert choose("grpo", {"kl": "in_reward"}).kl["kl_estimator"] == "k1"


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("grpo", {"clip_low": 0}, "algorithm.clip_low: must be greater than 0 (found 0)"),
        ("grpo", {"clip_low": "wide"}, "algorithm.clip_low: must be a number (found 'wide')"),
        ("grpo", {"clip_low": True}, "algorithm.clip_low: must be a number (found True)"),
        ("grpo", {"clip_low": None}, "algorithm.clip_low: must be a number (found None)"),
        ("grpo", {"objective": "dual_clip", "dual_clip": 1.0}, "algorithm.dual_clip: must be greater than 1"),
        ("ppo", {"gamma": 1.01}, "algorithm.gamma: must be at most 1 (found 1.01)"),
        ("ppo", {"lam": 1.5}, "algorithm.lam: must be at most 1"),
        ("dapo", {"max_rounds": 2.5}, "algorithm.max_rounds: must be a whole number"),
        ("dapo", {"max_rounds": 0}, "algorithm.max_rounds: must be greater than 0"),
        ("expert_iteration", {"dedupe": "yes"}, "algorithm.dedupe: must be one of text, never"),
        ("ppo", {"critic": "hl_gauss", "value_bins": 1}, "algorithm.value_bins: must be greater than 1"),
        ("clip_cov", {"cov_fraction": 1.5}, "algorithm.cov_fraction: must be at most 1"),
        ("dr_grpo", {"constant_length": 0}, "algorithm.constant_length: must be greater than 0"),
        ("rlpr", {"spread_warmup": -1}, "algorithm.spread_warmup: must be at least 0"),
        ("dpo", {"label_smoothing": 0.5}, "algorithm.label_smoothing: must be at most 0.499 (found 0.5)"),
        ("exo_pair", {"label_smoothing": 0}, "algorithm.label_smoothing: must be greater than 0"),
        ("dpo", {"contrast_beta": 0}, "algorithm.contrast_beta: must be greater than 0"),
        ("ld_dpo", {"ld_alpha": 1.1}, "algorithm.ld_alpha: must be at most 1"),
        ("cpl", {"discount": 0}, "algorithm.discount: must be greater than 0"),
        ("reward_ties", {"tie_theta": 1}, "algorithm.tie_theta: must be greater than 1 (found 1)"),
        ("reward_outcome", {"heads": 0}, "algorithm.heads: must be greater than 0"),
        ("reward_outcome", {"head_dropout": 1.0}, "algorithm.head_dropout: must be at most 0.9"),
        ("spin_pool", {"pool_size": 0}, "algorithm.pool_size: must be greater than 0"),
        ("sera", {"keep_fraction": 0}, "algorithm.keep_fraction: must be greater than 0"),
    ],
)
def test_values_out_of_bounds_are_refused_with_what_was_found(name: str, changes: dict[str, Any], message: str) -> None:
    assert message in mistakes(name, **changes)


@pytest.mark.parametrize("value", [float("nan"), -0.5])
def test_a_mixture_weight_that_is_none_is_refused(value: float) -> None:
    assert "algorithm.lam: must be" in mistakes("ppo", lam=value)


def test_none_is_legal_where_a_bound_or_the_recipe_stands_for_it() -> None:
    assert choose("ppo", {"value_clip": None}).critic["value_clip"] is None
    assert choose("dr_grpo", {"constant_length": None}).reduction["constant_length"] is None
    assert choose("ppo", {"lam": 0}).credit["lam"] == 0


def test_what_is_unknown_is_refused_with_what_is_near_or_whose_it_is() -> None:
    assert "did you mean 'dapo'" in mistakes("dapoo")
    assert "the table has reinforce, " in mistakes("zzzzzz")
    assert "algorithm.reduction: 'mean' is not one of token_mean" in mistakes("grpo", reduction="mean")
    assert "did you mean 'clip_low'" in mistakes("grpo", clip_lo=0.1)
    text = mistakes("grpo", max_kl=0.1)
    assert "algorithm.max_kl: belongs to trust: stop, but grpo has trust: none; set algorithm.trust: stop" in text


def test_every_mistake_is_named_at_once() -> None:
    text = mistakes("grpo", reduction="mean", clip_low=-1, lr=1, credit="gae")
    for key in ("reduction", "clip_low", "lr", "critic"):
        assert f"algorithm.{key}:" in text


def test_a_parameter_that_two_cells_have_is_set_in_both() -> None:
    chosen = choose("expert_iteration", {"selection": "greedy_wrong", "right_score": 0.9})
    assert chosen.selection["right_score"] == chosen.keep["right_score"] == 0.9


def test_a_replaced_cell_starts_from_its_own_defaults() -> None:
    chosen = choose("reinforce_pp", {"kl": "in_loss"})
    assert (chosen.kl["kl_coefficient"], chosen.kl["kl_estimator"]) == (0.04, "k3")
    assert choose("dapo", {}).objective["clip_high"] == 0.28
    assert choose("dapo", {"objective": "clip"}).objective["clip_high"] == 0.2
