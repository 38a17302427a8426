"""Wrong signs, denominators and bounds for the formulas of posttrain.objectives, one list a file."""

from typing import NamedTuple


class Mutant(NamedTuple):
    """A change to a module of posttrain.objectives that makes it wrong; `old` stands there exactly once."""

    file: str
    old: str
    new: str
    what: str
