"""Rows with cells and numbers that none has by itself: (row, changes)."""

from __future__ import annotations

from typing import Any

from posttrain.algorithms.catalogue import CATALOGUE

Changed = list[tuple[str, dict[str, Any]]]

BITING: Changed = [
    # Objectives that no row has, and bounds so tight that tokens lie on both sides of them.
    ("grpo", {"objective": "dual_clip", "dual_clip": 1.05}),
    ("gspo", {"clip_low": 0.05, "clip_high": 0.05}),
    ("gmpo", {"clip_low": 0.1, "clip_high": 0.1}),
    ("dppo_tv", {"max_divergence": 2e-3}),
    ("dppo_kl", {"max_divergence": 1e-4}),
    ("cispo", {"clip_low": 0.1, "clip_high": 0.1}),
    ("rapid", {"weight_cap": 0.9}),
    ("pipeline_rl", {"weight_cap": 0.9}),
    ("m2po", {"second_moment_budget": 0.01}),
    ("clip_cov", {"cov_fraction": 0.3, "cov_low": -1.0, "cov_high": 1.0}),
    ("kl_cov", {"cov_fraction": 0.3}),
    ("rec", {"clip_low": 0.05, "clip_high": 0.05}),
    ("discovered", {"drift_alpha": 0.1, "drift_beta": 0.1}),
    ("kimi", {"ratio": "sequence"}),
    ("ppo", {"value_clip": 0.01}),
    ("a_lol", {"clip_low": 0.05, "clip_high": 0.05}),
    ("dpo", {"label_smoothing": 0.2, "kl": "in_loss"}),
    ("f_dpo", {"divergence": "forward_kl", "contrast_beta": 1.0}),
    ("f_dpo", {"divergence": "alpha", "alpha_coefficient": 0.3, "contrast_beta": 1.0}),
    ("slic", {"contrast_beta": 2.0}),
    ("dpop", {"contrast_beta": 1.0}),
    ("odpo", {"label_smoothing": 0.2, "contrast_beta": 1.0}),
    ("discopop", {"contrast_beta": 1.0, "discopop_tau": 0.5}),
    ("aot", {"label_smoothing": 0.2, "contrast_beta": 1.0}),
    ("aot_unpaired", {"label_smoothing": 0.2, "contrast_beta": 1.0}),
    ("ld_dpo", {"ld_alpha": 0.0, "contrast_beta": 1.0}),
    ("wpo", {"cloning": "best", "cloning_coefficient": 0.3}),
    ("mpo", {"contrast_beta": 1.0, "sigmoid_weight": 0.3, "bco_weight": 0.7}),
    ("simpo", {"cloning": "best", "simpo_gamma": 1.0}),
    ("alphapo", {"alphapo_alpha": 0.3, "contrast_beta": 1.0}),
    ("cpl", {"discount": 0.8, "cpl_lambda": 0.5, "contrast_beta": 1.0}),
    ("modpo", {"objective_weight": 0.2}),
    *(("lipo", {"objective": kind, "contrast_beta": 1.0}) for kind in ("pairwise_logistic", "pairwise_hinge")),
    ("exo", {"objective": "exo_best", "label_smoothing": 0.1, "contrast_beta": 1.0}),
    ("k_way", {"target_temperature": 0.5, "contrast_beta": 1.0}),
    ("kto", {"desirable_weight": 2.0, "undesirable_weight": 0.5, "right_score": 0.0, "contrast_beta": 1.0}),
    ("bco", {"right_score": 0.0, "contrast_beta": 1.0}),
    ("dro_v", {"dro_tau": 0.2}),
    ("xpo", {"xpo_alpha": 0.3, "contrast_beta": 1.0}),
    ("spac", {"spac_lambda": 3.0, "contrast_beta": 1.0}),
    ("dpo", {"anchor": "none", "entropy": "bonus"}),
]
CORRECTED: Changed = [
    *(("grpo", {"correction": kind}) for kind in CATALOGUE["correction"]),
    *(("gspo", {"correction": kind, "importance_cap": 1.1}) for kind in ("sequence_truncated", "sequence_masked")),
    ("cispo", {"correction": "two_sided_mask", "importance_low": 0.8, "importance_high": 1.2}),
    ("dr_grpo", {"correction": "geometric_mask", "geometric_low": 0.9, "geometric_high": 1.1}),
]
PENALISED: Changed = [
    *(("grpo", {"kl": "in_loss", "kl_estimator": kind, "kl_coefficient": 0.3}) for kind in ("k2", "k3", "exact")),
    *(("rebel", {"kl": "in_loss", "kl_estimator": kind, "kl_coefficient": 0.3}) for kind in ("k3", "exact")),
    ("m2po", {"kl": "in_loss", "kl_estimator": "exact", "kl_coefficient": 0.3, "entropy": "bonus"}),
    ("dr_grpo", {"entropy": "bonus", "entropy_coefficient": 0.4}),
    ("copg", {"entropy": "adaptive"}),
    ("gspo", {"trust": "penalty", "trust_coefficient": 0.7}),
    ("grpo", {"anchor": "behaviour", "correction": "none"}),
    ("dapo", {"anchor": "reference"}),
    ("gspo", {"anchor": "reference"}),
    ("rebel", {"anchor": "behaviour"}),
    ("ppo", {"value_coefficient": 0.3, "kl": "in_loss", "kl_estimator": "exact"}),
]
