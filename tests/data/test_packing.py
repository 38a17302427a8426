"""Every sample that teaches is packed once, under the budget, with the step's own denominators."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data.packing import Packing, pack
from posttrain.learner.layout import lay_out
from tests.tiny import samples


@settings(max_examples=40, deadline=None)
@given(budget=st.integers(1, 200), shared=st.booleans(), seed=st.integers(0, 5), groups=st.integers(1, 5))
def test_each_sample_is_used_once_and_denominators_are_the_steps(
    budget: int, shared: bool, seed: int, groups: int
) -> None:
    batch = samples(groups=groups, seed=seed)
    packed = list(pack(batch, Packing(budget, shared)))
    used = sorted(i for b in packed for i in b.index.tolist())
    assert used == [i for i, s in enumerate(batch) if bool(s.mask.any())]
    for b in packed:
        assert b.total_tokens == sum(int(s.mask.sum()) for s in batch)
        assert b.total_sequences == len(used)
        assert int(b.lengths.sum()) == len(b.tokens) == len(b.mask) == len(b.behaviour)
        laid = lay_out(b, "tree" if shared else "rows")
        assert laid.input_ids.numel() <= budget or len(laid.input_ids) == 1


@pytest.mark.parametrize("layout", ["tree", "rows", "packed"])
def test_every_masked_token_is_predicted_from_the_token_before_it(layout: str) -> None:
    for b in pack(samples(), Packing(60, layout == "tree")):
        laid = lay_out(b, layout)
        masked = b.mask.nonzero()[:, 0]
        before = b.tokens[masked - 1]
        assert laid.input_ids[laid.row, laid.column].tolist() == before.tolist()
        assert laid.position_ids[laid.row, laid.column].tolist() == (b.position[masked] - 1).tolist()


def test_a_tree_row_holds_its_prompt_once_and_hides_responses_from_each_other() -> None:
    (b,) = [b for b in pack(samples(groups=2), Packing(10**6, True)) if len(b.lengths)][:1]
    laid = lay_out(b, "tree")
    assert laid.attention_mask is not None
    for row in range(len(laid.input_ids)):
        allowed = laid.attention_mask[row, 0]
        assert bool((allowed.diagonal()).all())
        assert not bool(allowed.triu(1).any())
    shared = int((b.position[b.segment == 0] < 3).sum())
    assert laid.input_ids.numel() < 2 * int(b.lengths.sum())
    assert shared == 3


def test_numbers_keep_the_learners_precision() -> None:
    (b, *_) = pack(samples(), Packing(10**6, False, torch.float64))
    assert b.advantages.dtype == b.behaviour.dtype == b.previous.dtype == torch.float64
