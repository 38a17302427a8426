"""The catalogue of cells: what may stand in each column of the table, with its parameters. Imports no torch."""

from posttrain.algorithms.catalogue import groups, losses
from posttrain.algorithms.cells import Cell, Kind

CATALOGUE: dict[str, dict[str, Kind]] = groups.COLUMNS | losses.COLUMNS
"""Columns in the order in which a step meets them."""


def cell(column: str, kind: str, **values: object) -> Cell:
    """A cell with some of its parameters' values. Raises KeyError for an unknown kind."""
    return Cell(column, kind, CATALOGUE[column][kind], values)
