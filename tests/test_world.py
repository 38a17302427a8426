"""Ranks know the same of each other's work, and say where they stand when they wait for ever."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.rollout.shared import share
from posttrain.world import ALONE, everyone, mine
from tests.ranks import on_ranks


class Numbered:
    """A world as one of its ranks sees it."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


@given(st.integers(0, 40), st.integers(1, 9))
def test_every_piece_of_work_is_exactly_one_ranks(count: int, size: int) -> None:
    parts = [list(mine(Numbered(rank, size), count)) for rank in range(size)]  # type: ignore[arg-type]
    assert sorted(i for part in parts for i in part) == list(range(count))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    spans = [share(count, part, size) for part in range(size)]
    assert [i for low, high in spans for i in range(low, high)] == list(range(count))


def test_one_process_alone_is_a_world_too() -> None:
    assert everyone(ALONE, {1: "b", 0: "a"}) == ["a", "b"]
    assert ALONE.gather(3) == [3]
    assert ALONE.shared(lambda: "made") == "made"


def test_ranks_that_wait_for_ever_print_their_stacks_and_end() -> None:
    with pytest.raises(AssertionError) as caught:
        on_ranks("tests.hung", seconds=90.0)
    said = str(caught.value)
    assert said.count("Timeout (0:00:04)!") == 2
    for words in ("in gather", "in waiting_for_a_message", "most recent call first"):
        assert words in said
