"""Where a response's first and last figures are found, in updates so large that several threads look."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from posttrain.algorithms.scorer_loss import last_outputs
from posttrain.algorithms.set_loss import _first_values
from posttrain.types import Batch, Scored

LENGTHS = [3000, 1, 5000, 700, 4097]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def batch(silent: int) -> Batch:
    """Sequences of ragged lengths of which every token counts but the first two, and none of one sequence's."""
    lengths = torch.tensor(LENGTHS)
    position = torch.cat([torch.arange(n) for n in LENGTHS])
    segment = torch.repeat_interleave(torch.arange(len(LENGTHS)), lengths)
    zeros, ids = torch.zeros(len(position)), torch.arange(len(LENGTHS))
    return Batch(
        tokens=zeros.long(),
        position=position,
        segment=segment,
        mask=(position >= 2) & (segment != silent),
        behaviour=zeros,
        advantages=zeros,
        lengths=lengths,
        groups=ids,
        scores=ids.double(),
        offsets=ids.double(),
        index=ids,
        author=ids,
        total_tokens=1,
        total_sequences=len(LENGTHS),
    )


def test_the_value_before_a_response_and_the_score_after_it_are_the_first_and_the_last_masked_ones() -> None:
    one = batch(silent=3)
    place = torch.arange(len(one.tokens), dtype=torch.float64)[:, None]
    starts = [sum(LENGTHS[:i]) for i in range(len(LENGTHS))]
    first = _first_values(Scored(place[:, 0], place[:, 0], values=place), one)
    last = last_outputs(place, one)
    assert first is not None
    for i, (start, length) in enumerate(zip(starts, LENGTHS, strict=True)):
        if length > 2 and i != 3:
            assert first[i] == start + 2
            assert last[i, 0] == start + length - 1
