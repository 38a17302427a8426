"""What else has to change in a row when one of its cells does. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from posttrain.algorithms.catalogue import cell
from posttrain.algorithms.contradictions import contradictions
from posttrain.algorithms.row import Algorithm

MENDS = (
    {"critic": "squared"},
    {"critic": "none"},
    {"critic": "joint"},
    {"correction": "none"},
    {"anchor": "previous"},
    {"anchor": "reference"},
    {"ratio": "token"},
    {"ratio": "sequence_sum"},
    {"reduction": "token_mean"},
    {"reduction": "group_mean"},
    {"credit": "score", "keep": "all"},
    {"credit": "gae"},
    {"divergence": "reverse_kl"},
    {"weighting": "none"},
    {"cloning": "none"},
    {"contrast": "none"},
    {"kl": "in_loss"},
    {"source": "joined"},
    {"opponent": "reference"},
    {"opponent": "none"},
)
"""Changes that a new cell may ask for."""


def line(row: Algorithm, **changes: Any) -> str:
    """The line of a recipe that asks for a row with some cells or parameters replaced."""
    tree = {"name": row.name, **changes}
    written = yaml.safe_dump(tree, default_flow_style=True, sort_keys=False, width=10**6).strip()
    return f"algorithm: {written if changes else row.name}"


def replacing(row: Algorithm, column: str, kind: str) -> dict[str, Any] | None:
    """The changes that put a kind into a column, with those that it asks for; None where the other cells refuse it."""
    changes = {column: kind}
    changed = row.replaced(cell(column, kind))
    while wrong := contradictions(changed):
        named = "\n".join(wrong)
        for mend in MENDS:
            # A way out is named in what is wrong.
            if column in mend or not any(name in named for name in mend):
                continue
            more = {c: k for c, k in mend.items() if changed.cells[c].kind != k}
            better = _with(changed, more)
            if len(contradictions(better)) < len(wrong):
                changes |= more
                changed = better
                break
        else:
            return None
    return changes


def _with(row: Algorithm, changes: Mapping[str, str]) -> Algorithm:
    for column, kind in changes.items():
        row = row.replaced(cell(column, kind))
    return row
