"""Objectives of a reward model: what it says after a response against what the response is worth."""

from __future__ import annotations

from posttrain.algorithms.cells import Kind, Parameter, asks, positive

ENSEMBLE = {
    "heads": Parameter(1, low=0, formula=False),
    "head_dropout": Parameter(0.0, least=0.0, high=0.9, formula=False),
}
"""Outputs that are trained side by side on one backbone, and the share of the backbone's last state that each update
hides from them."""
CENTRING = {"centring": Parameter(0.0, least=0.0)}


def _scores(
    function: str, parameters: dict[str, Parameter], *wants: str, least: int = 2, takes: tuple[str, ...] = ()
) -> Kind:
    """A loss of the scores of a group's responses."""
    return Kind(
        f"scores.{function}", parameters | ENSEMBLE, level="scorer", takes=takes, asks=asks(*wants), min_group=least
    )


SCORES: dict[str, Kind] = {
    "bradley_terry": _scores("bradley_terry", CENTRING, "pairs"),
    "margin_bradley_terry": _scores("margin_bradley_terry", CENTRING, "pairs", "margins", takes=("offsets",)),
    "bradley_terry_ties": _scores("bradley_terry_ties", {"tie_theta": Parameter(1.5, low=1.0)}, "ties"),
    "plackett_luce": _scores("plackett_luce", {}, "pairs"),
    "gap": _scores("gap", {}, "pairs", "in_context"),
    "regression": _scores("regression", {}, least=1),
    "binary": _scores("binary", {}, least=1),
    "binned": Kind(
        "scores.hl_gauss",
        {
            "value_bins": Parameter(51, low=1, formula=False),
            "value_low": Parameter(0.0),
            "value_high": Parameter(1.0),
            "value_sigma": positive(0.75),
        },
        level="scorer",
    ),
    "step_bce": Kind("scores.step_bce", ENSEMBLE, level="scorer_token", asks=asks("steps")),
}
