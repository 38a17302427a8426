"""Methods of the literature that are a row with cells or blocks of the recipe replaced. Imports no torch."""

from posttrain.algorithms.variants.games import GAMES
from posttrain.algorithms.variants.offline import OFFLINE
from posttrain.algorithms.variants.online import ONLINE
from posttrain.algorithms.variants.scorers import SCORERS
from posttrain.algorithms.variants.variant import Variant

VARIANTS: dict[str, tuple[Variant, ...]] = ONLINE | OFFLINE | GAMES | SCORERS
"""By what they change."""

__all__ = ["VARIANTS", "Variant"]
