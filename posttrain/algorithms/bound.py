"""A row's cells as functions: each formula of `posttrain.objectives` with the row's parameters filled in."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

from posttrain.algorithms.cells import Cell


def formula(cell: Cell, **derived: Any) -> Callable[..., Any]:
    """The cell's pure function. `derived` fills parameters that the row leaves to the recipe (value None)."""
    if cell.entry.function is None:
        raise LookupError(f"{cell.column}: {cell.kind} is a rule, not a formula")
    module, _, name = cell.entry.function.partition(".")
    function = getattr(importlib.import_module(f"posttrain.objectives.{module}"), name)
    settings = {
        key: derived.get(key) if value is None else value
        for key, value in cell.settings.items()
        if cell.entry.parameters[key].formula
    }
    return partial(function, **settings) if settings else function
