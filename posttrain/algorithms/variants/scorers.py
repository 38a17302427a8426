"""Variants of rows that train a reward model. Imports no torch."""

from __future__ import annotations

from posttrain.algorithms.variants.variant import Variant

SCORERS: dict[str, tuple[Variant, ...]] = {
    "How reward models are trained": (
        Variant(
            "Ensemble of heads",
            "Heads on one backbone, from different weights; what grades with it takes their mean, their least or their "
            "spread into account.",
            "algorithm: {name: reward_bradley_terry, heads: 5}",
        ),
        Variant(
            "Heads that see different states",
            "Each update hides a share of the last state from them.",
            "algorithm: {name: reward_bradley_terry, heads: 5, head_dropout: 0.1}",
        ),
        Variant(
            "Scores around nothing",
            "The mean of a pair's scores is drawn to 0 (2312.09244).",
            "algorithm: {name: reward_bradley_terry, centring: 0.01}",
        ),
        Variant(
            "Goal term beside ranked lists",
            "Its loss of states stands beside any loss of scores.",
            "algorithm: {name: reward_goal_conditioned, objective: plackett_luce}",
        ),
        Variant(
            "Scores in bins of a wider range",
            "A few bins beyond the data's scores leave no bias at the ends.",
            "algorithm: {name: reward_binned, value_bins: 61, value_low: -0.1, value_high: 1.1}",
        ),
        Variant(
            "Process reward model with several heads",
            "As above, read at the end of each step.",
            "algorithm: {name: reward_process, heads: 3}",
        ),
        Variant(
            "Reward model with adapters",
            "The head is trained whole.",
            "algorithm: reward_bradley_terry\nmodel: {lora: {rank: 16, alpha: 32}}",
        ),
    ),
}
