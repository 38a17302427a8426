"""What a variant is: a method of the literature that needs no row. Imports no torch."""

from __future__ import annotations

from typing import NamedTuple


class Variant(NamedTuple):
    """A method, what it is, and the lines of a recipe that ask for it."""

    title: str
    about: str
    recipe: str
