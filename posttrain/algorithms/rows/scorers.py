"""Rows that train a reward model. Imports no torch."""

from __future__ import annotations

from posttrain.algorithms.row import Algorithm, row

SCORERS: tuple[Algorithm, ...] = tuple(
    row(
        name,
        paper,
        source="given",
        credit="score",
        anchor="none",
        objective=objective,
        correction="none",
        reduction=reduction,
        contrast=contrast,
    )
    for name, paper, objective, reduction, contrast in (
        ("reward_bradley_terry", "2203.02155", "bradley_terry", "group_mean", "none"),
        ("reward_margin", "2307.09288", "margin_bradley_terry", "group_mean", "none"),
        ("reward_ties", "10.2307/2282923", "bradley_terry_ties", "group_mean", "none"),
        ("reward_plackett_luce", "2301.11270", "plackett_luce", "group_mean", "none"),
        ("reward_gap", "2310.00898", "gap", "group_mean", "none"),
        ("reward_regression", "2110.14168", "regression", "group_mean", "none"),
        ("reward_outcome", "2211.14275", "binary", "group_mean", "none"),
        ("reward_binned", "2403.03950", "binned", "group_mean", "none"),
        ("reward_process", "2305.20050", "step_bce", "token_mean", "none"),
        ("reward_goal_conditioned", "2407.13887", "bradley_terry", "group_mean", "goal"),
    )
)
