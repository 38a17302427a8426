"""Every sample that teaches is packed once, under the budget, with the step's own denominators."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from posttrain.data.packing import OPTIONAL, Packing, join, pack
from posttrain.learner.layout import lay_out
from posttrain.objectives.sets import DATA, OPPONENT, POLICY
from posttrain.types import Batch, Sample
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
        assert b.total_groups == len({batch[i].group for i in used})
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


AUTHORS = {"policy": POLICY, "data": DATA, "opponent": OPPONENT}


def complete(seed: int = 0) -> list[Sample]:
    """Samples with every field that an algorithm may ask for, different at every token."""
    generator, out = torch.Generator().manual_seed(seed), []
    for i, s in enumerate(samples(seed=seed)):
        noise = torch.randn(7, len(s.mask), generator=generator, dtype=torch.float64)
        out.append(
            replace(
                s,
                rollout=replace(s.rollout, author=list(AUTHORS)[i % 3]),
                previous=noise[0],
                reference=noise[1:3].t(),
                returns=noise[3],
                values=noise[4],
                uniform=noise[5],
                ends=noise[6],
            )
        )
    return out


@pytest.mark.parametrize("budget", [1, 30, 10**6])
@pytest.mark.parametrize("shared", [False, True])
def test_every_number_stays_with_its_token_and_every_score_with_its_sequence(budget: int, shared: bool) -> None:
    batch = complete()
    for b in pack(batch, Packing(budget, shared, torch.float64)):
        for at, index in enumerate(b.index.tolist()):
            s, own = batch[index], b.segment == at
            assert b.tokens[own].tolist() == list(s.rollout.tokens)
            assert b.behaviour[own].tolist() == list(s.rollout.logprobs)
            assert torch.equal(b.mask[own], s.mask)
            assert torch.equal(b.advantages[own], s.advantages)
            for name in OPTIONAL:
                assert torch.equal(getattr(b, name)[own], getattr(s, name)), name
            assert (float(b.scores[at]), int(b.groups[at])) == (s.score, s.group)
            assert int(b.author[at]) == AUTHORS[s.rollout.author]


@pytest.mark.parametrize("absent", OPTIONAL)
def test_what_an_algorithm_does_not_ask_for_is_absent_from_its_batches(absent: str) -> None:
    batch = [replace(s, **{absent: None}) for s in complete()]
    parts = list(pack(batch, Packing(30)))
    for b in (*parts, join(parts)):
        assert [name for name in OPTIONAL if getattr(b, name) is None] == [absent]


@pytest.mark.parametrize("budget", [1, 30, 10**6])
@pytest.mark.parametrize("shared", [False, True])
def test_micro_batches_joined_are_the_step_in_one(budget: int, shared: bool) -> None:
    batch = complete()
    joined = join(list(pack(batch, Packing(budget, shared, torch.float64))))
    (whole,) = pack(batch, Packing(10**9, shared, torch.float64))

    def by_sample(b: Batch) -> dict[int, list[object]]:
        names = [f.name for f in fields(Batch) if getattr(b, f.name) is not None]
        per_token = [n for n in names if torch.is_tensor(getattr(b, n)) and len(getattr(b, n)) == len(b.tokens)]
        return {
            index: [getattr(b, n)[b.segment == at].tolist() for n in per_token if n != "segment"]
            + [int(b.lengths[at]), int(b.groups[at]), float(b.scores[at])]
            for at, index in enumerate(b.index.tolist())
        }

    assert by_sample(joined) == by_sample(whole)
    assert joined.segment.tolist() == sorted(joined.segment.tolist())
    assert [joined.total_tokens, joined.total_sequences, joined.total_groups] == [
        whole.total_tokens, whole.total_sequences, whole.total_groups,
    ]  # fmt: skip
