"""What an algorithm asks of answers that come with the data, and how long responses may be. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from posttrain.algorithms.row import Algorithm
from posttrain.data.rows import columns_of
from posttrain.data.shapes import Wanted, brings
from posttrain.recipe import Recipe, Source


def wanted(
    recipe: Recipe,
    algorithm: Algorithm,
    source: Source,
    room: int | None = None,
    first_columns: Sequence[str] | None = None,
) -> Wanted:
    """What the row asks of given answers. `first_columns` are those of the first row, where the source is no file."""
    data = recipe.data
    needs, compares = algorithm.needs, algorithm.needs.min_group > 1
    columns = columns_of(source, "data") or first_columns
    # Beside sampled responses one answer is enough; alone, a single one must say what it is worth.
    alone = not needs.sampler and not compares and algorithm.credit.kind != "ones" and not needs.steps
    return Wanted(
        max_length=room,
        margins=needs.margins,
        ties=needs.ties or not needs.pairs,
        steps=needs.steps,
        pairs=compares and (needs.pairs or not needs.sampler),
        scores=alone and columns is not None and not {"pairs", "lists"} & brings(columns),
        conditioning=data.conditioning if needs.conditioning else None,
        max_faulty_share=data.max_faulty_share,
        in_context=needs.in_context,
    )


def new_tokens(recipe: Recipe, algorithm: Algorithm | None) -> int:
    """The most tokens a response may have, in training or when it is measured."""
    measured = recipe.evaluation.max_tokens or recipe.rollout.max_tokens
    return measured if algorithm is None else max(measured, recipe.rollout.max_tokens)
