"""The order of training prompts: each once per epoch, the same in every process, the same after a kill."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data.stream import PromptStream
from posttrain.errors import DataError
from posttrain.types import Prompt


def some(n: int) -> list[Prompt]:
    return [Prompt(f"p/{i}", (i, i + 1), f"text {i}", {"answer": i * i}, "p") for i in range(n)]


def ids(prompts: list[Prompt]) -> list[str]:
    return [prompt.id for prompt in prompts]


@given(n=st.integers(1, 12), seed=st.integers(0, 5), sizes=st.lists(st.integers(0, 9), min_size=1, max_size=12))
@settings(max_examples=100, deadline=None)
def test_each_epoch_holds_each_id_once_however_it_is_taken(n: int, seed: int, sizes: list[int]) -> None:
    stream = PromptStream(some(n), seed)
    taken = [prompt for size in sizes for prompt in stream.take(size)]
    assert ids(taken) == ids(PromptStream(some(n), seed).take(sum(sizes)))
    assert stream.epoch == sum(sizes) // n
    for start in range(0, len(taken) - n + 1, n):
        assert sorted(ids(taken[start : start + n])) == sorted(ids(some(n)))


def test_a_kill_at_every_position_changes_nothing() -> None:
    whole = ids(PromptStream(some(7), seed=3).take(30))
    for position in range(24):
        first = PromptStream(some(7), seed=3)
        first.take(position)
        saved = json.loads(json.dumps(first.state()))
        second = PromptStream(some(7), seed=3)
        second.take(2)
        second.restore(saved)
        assert second.epoch == position // 7
        assert ids(second.take(30 - position)) == whole[position:]


def test_epochs_and_seeds_differ_in_order() -> None:
    stream = PromptStream(some(20), seed=0)
    first, second = ids(stream.take(20)), ids(stream.take(20))
    assert len({tuple(first), tuple(second), tuple(ids(PromptStream(some(20), seed=1).take(20)))}) == 3
    assert first != ids(some(20))


def test_the_order_does_not_depend_on_the_process() -> None:
    code = (
        "from tests.data.test_stream import ids, some; from posttrain.data.stream import PromptStream;"
        "print(','.join(ids(PromptStream(some(9), 4).take(20))))"
    )
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
        assert done.stdout.strip().split(",") == ids(PromptStream(some(9), 4).take(20))


def test_columns_stay_with_their_own_prompt_through_the_shuffle() -> None:
    for prompt in PromptStream(some(10), seed=1).take(25):
        index = int(prompt.id.removeprefix("p/"))
        assert prompt.columns == {"answer": index * index}
        assert prompt.tokens == (index, index + 1)


def test_another_set_of_prompts_is_refused() -> None:
    state = PromptStream(some(5), seed=0).state()
    other_template = [Prompt(p.id, (99, *p.tokens), p.text) for p in some(5)]
    other_answers = [replace(p, columns={"answer": "7", "table": {1: object()}}) for p in some(5)]
    for prompts in (some(6), some(5)[::-1], other_template, other_answers):
        with pytest.raises(DataError, match="not the prompts of the checkpoint"):
            PromptStream(prompts, seed=0).restore(state)


def test_another_seed_is_refused() -> None:
    with pytest.raises(DataError, match=r"run\.seed.* 0, not 1"):
        PromptStream(some(5), seed=1).restore(PromptStream(some(5), seed=0).state())


def test_no_prompts_and_equal_ids_are_refused() -> None:
    with pytest.raises(DataError, match="no prompts"):
        PromptStream([], seed=0)
    with pytest.raises(DataError, match="'p/1'"):
        PromptStream([*some(2), some(2)[1]], seed=0)
