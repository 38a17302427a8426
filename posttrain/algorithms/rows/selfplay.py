"""Rows that sample, grade, learn as a set, and move the reference to where they are. Imports no torch."""

from __future__ import annotations

from typing import Any

from posttrain.algorithms.row import Algorithm, row


def _played(name: str, paper: str, **cells: str | tuple[str, dict[str, Any]]) -> Algorithm:
    """A row whose log-ratios are to the policy of the iteration before."""
    plain: dict[str, Any] = {"credit": "score", "ratio": "sequence_sum", "correction": "none"}
    return row(name, paper, **{**plain, "anchor": "iterate", "reduction": "group_mean", **cells})


SELF_PLAY: tuple[Algorithm, ...] = (
    _played("iterative_dpo", "2312.11456", objective="best_worst_sigmoid"),
    _played("accelerated_dpo", "2410.06293", source="given", objective="best_worst_sigmoid"),
    _played("sppo", "2405.00675", credit="score", objective=("sppo", {"contrast_beta": 1e-3})),
    # Two references: shares of the base and of the iterate are tau / eta and 1 - tau / eta.
    _played("inpo", "2407.00617", objective=("best_worst_squared", {"contrast_beta": 7.5e-3})),
    _played("dno", "2404.03715", objective="soft_pairs"),
    _played("xpo", "2405.21046", anchor="reference", opponent="reference", objective="xpo"),
    _played("spin", "2401.01335", source="joined", opponent="reference", objective="spin"),
    _played("spin_pool", "2404.04291", source="joined", opponent="pool", objective="spin"),
    _played("spac", "2406.04274", source="joined", objective="spac"),
)
