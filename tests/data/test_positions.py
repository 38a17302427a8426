"""Positions are counted as `lay_out` places them: held against the laid-out tensors, cell by cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data.packing import Packing, pack
from posttrain.data.positions import Positions, count
from posttrain.learner.layout import Layout, lay_out
from posttrain.learner.scorer import after
from posttrain.types import Batch, Rollout, Sample
from tests.tiny import samples

LAYOUTS: tuple[Layout, ...] = ("tree", "rows", "packed")


def packing(budget: int, layout: Layout, ranks: int = 1, padded: bool = True) -> Packing:
    return Packing(budget, layout == "tree", ranks=ranks, layout=layout, padded=padded)


def cells(batches: Sequence[Batch], layout: Layout, flat: bool = False) -> Positions:
    """Every cell of every laid-out tensor, by what it sees: its row's cells with a token before it, itself included.

    A cell is padding where no token of the micro-batch lies, and a prompt's where it comes before every masked token
    that sees it.
    """
    computed = tokens = repeated = paid = held = 0
    known: set[tuple[int, tuple[int, ...]]] = set()
    for batch in batches:
        computed += lay_out(batch, layout, flat).input_ids.numel()
        placed = _placed(batch, layout)
        tokens += sum(len(row) for row in placed)
        starts = [0, *batch.lengths.cumsum(0).tolist()]
        held += sum(int(batch.mask[a:b].int().argmax()) for a, b in pairwise(starts))
        for row in placed:
            for group, before, prompt in row:
                paid += prompt
                repeated += prompt and (group, before) in known
                if prompt:
                    known.add((group, before))
    masked = sum(int(batch.mask.sum()) for batch in batches)
    return Positions(computed, computed - tokens, masked, repeated, held - paid)


def _placed(batch: Batch, layout: Layout) -> list[list[tuple[int, tuple[int, ...], bool]]]:
    """Group, all tokens seen, and whether it is a prompt's, of each cell that a token lies in: read off a layout of
    the same micro-batch whose tokens are numbers of their own, so that a cell tells whose it is.
    """
    names: dict[tuple[int, tuple[int, ...]], int] = {}
    at, owners = 0, []
    for group, length in zip(batch.groups.tolist(), batch.lengths.tolist(), strict=True):
        said = int(batch.mask[at : at + length].int().argmax())
        for t in range(length):
            seen = tuple(batch.tokens[at : at + t + 1].tolist())
            # Responses never share a cell, so theirs have names by sequence.
            key = (group, seen) if t < said else (-1 - at, seen)
            names.setdefault(key, len(names) + 1)
            owners.append((names[key], (group, seen, t < said)))
        at += length
    marked = replace(batch, tokens=torch.tensor([name for name, _ in owners]))
    known = dict(owners)
    assert lay_out(marked, layout).input_ids.shape == lay_out(batch, layout).input_ids.shape
    return [[known[name] for name in row if name] for row in lay_out(marked, layout).input_ids.tolist()]


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=30, deadline=None)
@given(budget=st.integers(1, 250), seed=st.integers(0, 5), groups=st.integers(1, 5), flat=st.booleans())
def test_positions_are_the_cells_of_the_laid_out_tensors(
    layout: Layout, budget: int, seed: int, groups: int, flat: bool
) -> None:
    asked = packing(budget, layout, padded=not flat)
    batches = list(pack(samples(groups=groups, seed=seed), asked))
    assert count(batches, asked) == cells(batches, layout, flat)
    assert not flat or count(batches, asked).padding == 0


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("budget", [20, 60, 10**6])
def test_prompts_of_a_group_may_differ_after_a_common_beginning(layout: Layout, budget: int) -> None:
    asked = [(5, 6, 7, 8), (5, 6, 7), (5, 6, 9, 9, 9), (5, 6, 7, 8)]
    batch = [
        sample(prompt, said, group) for group in range(2) for prompt, said in zip(asked, (3, 1, 4, 2), strict=True)
    ]
    batches = list(pack(batch, packing(budget, layout)))
    assert count(batches, packing(budget, layout)) == cells(batches, layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("budget", [30, 10**6])
def test_a_reward_model_is_read_one_token_further(layout: Layout, budget: int) -> None:
    # Responses that begin alike are a prompt as far as the first token that is learnt.
    alike = [sample((1, 2, 3), said, group) for group in range(3) for said in (2, 4)]
    given_only = [replace(s, mask=_last(s.mask)) for s in samples() if bool(s.mask.any())]
    for those in (given_only, alike):
        batches = list(pack(those, packing(budget, layout)))
        assert count(batches, packing(budget, layout), further=1) == cells([after(b) for b in batches], layout)


def test_figures_of_one_update_by_hand() -> None:
    # Two prompts of 3 tokens; responses of 4 and 1, and of 2 and 2 tokens.
    batch = [sample((1, 2, 3), n, 0) for n in (4, 1)] + [sample((4, 5, 6), n, 1) for n in (2, 2)]
    found = {name: count(list(pack(batch, packing(100, name))), packing(100, name)) for name in LAYOUTS}
    assert found["rows"] == Positions(4 * 7, 28 - (7 + 4 + 5 + 5), 9, repeated=6)
    assert found["packed"] == Positions(21, 0, 9, repeated=6)
    assert found["tree"] == Positions(2 * 8, 16 - (8 + 7), 9, shared=6)


def test_the_busiest_rank_is_waited_for() -> None:
    batch = [sample((1, 2, 3), n, group) for group, n in enumerate((9, 3, 3))]
    two = packing(12, "rows", ranks=2)
    batches = list(pack(batch, two))
    assert [len(b.tokens) for b in batches] == [12, 12]
    assert count(batches, two).waiting == 0
    # Each alone: 12 and 6 on the first rank, 6 on the second.
    alone = [b for s in batch for b in pack([s], two)]
    assert count(alone, two).waiting == 2 * 18 - 24


def test_nothing_has_no_positions() -> None:
    assert count([], packing(10, "tree", ranks=2)) == Positions()


def sample(prompt: Sequence[int], said: int, group: int) -> Sample:
    tokens = (*prompt, *range(20, 20 + said))
    mask = (False,) * len(prompt) + (True,) * said
    rollout = Rollout(tokens, mask, "", "stop", (0.0,) * len(tokens), (0,) * len(tokens))
    return Sample(rollout, group, torch.tensor(mask), torch.ones(len(tokens)))


def _last(mask: torch.Tensor) -> torch.Tensor:
    out = torch.zeros_like(mask)
    out[mask.nonzero()[-1, 0]] = True
    return out
