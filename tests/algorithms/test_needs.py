"""What each row asks of the rest of the run: written down by hand, and held against what follows from its cells."""

from __future__ import annotations

from dataclasses import fields

from posttrain.algorithms.choice import choose
from posttrain.algorithms.row import Needs
from posttrain.algorithms.table import ALGORITHMS

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
    "spac": "2 given sampler reference refresh pairs",
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
