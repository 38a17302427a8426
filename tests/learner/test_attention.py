"""Attention that is told what lies in a row is attention with the mask written out, forwards and backwards."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from posttrain.data.packing import Packing, pack
from posttrain.learner import attention
from posttrain.learner.attention import Tree, attend
from posttrain.learner.backbone import predictors, take_trees
from posttrain.learner.layout import Layout, lay_out
from posttrain.recipe import Critic, Lora
from tests.learner.steps import accumulated, policy_gradient
from tests.tiny import VOCABULARY, samples, tiny_folder, tiny_learner

LAYOUTS: list[Layout] = ["tree", "rows", "packed"]
HEADS, WIDTH = 4, 8
SMALL = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0, "initializer_range": 0.3,
}  # fmt: skip
MOE = {"moe_intermediate_size": 32, "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
TAKES: dict[str, dict[str, Any]] = {
    "llama": {}, "qwen2": {}, "qwen3": {}, "mistral": {"sliding_window": None}, "gemma": {}, "mixtral": MOE,
    "qwen3_moe": MOE, "phi3": {"sliding_window": None, "original_max_position_embeddings": 512},
}  # fmt: skip
REFUSES: dict[str, dict[str, Any]] = {
    "gemma2": {"query_pre_attn_scalar": 8}, "gemma3_text": {"query_pre_attn_scalar": 8},
    "mistral": {"sliding_window": 4},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global"], 2]], "num_heads": 4},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("tiny"))


def written_out(trees: tuple[Tree, ...], query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """`[1, N, H, D]`, one query after the other, over the tokens that it sees."""
    group = query.shape[1] // key.shape[1]
    out = torch.zeros(query.shape, dtype=query.dtype).transpose(1, 2).clone()
    start = 0
    for tree in trees:
        shared = list(range(start, start + tree.shared))
        spans = [(0, tree.shared)]
        at = tree.shared
        for length in tree.branches:
            spans.append((at, at + length))
            at += length
        for number, (low, high) in enumerate(spans):
            for t in range(start + low, start + high):
                seen = [*(shared if number else []), *range(start + low, t + 1)]
                for head in range(query.shape[1]):
                    keys, values = key[0, head // group, seen], value[0, head // group, seen]
                    out[0, t, head] = ((keys @ query[0, head, t]) * scale).softmax(0) @ values
        start += tree.size
    return out


@settings(max_examples=25, deadline=None)
@given(
    shapes=st.lists(
        st.tuples(st.integers(0, 4), st.lists(st.integers(1, 5), min_size=1, max_size=3)), min_size=1, max_size=3
    ),
    heads=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 99),
)
def test_it_is_the_attention_of_every_token_over_what_it_sees(
    shapes: list[tuple[int, list[int]]], heads: int, seed: int
) -> None:
    trees = tuple(Tree(shared, tuple(branches)) for shared, branches in shapes)
    generator, count = torch.Generator().manual_seed(seed), sum(tree.size for tree in trees)

    def made(number: int) -> Tensor:
        return torch.randn(1, number, count, WIDTH, generator=generator, dtype=torch.float64).requires_grad_()

    query, key, value = parts = [made(HEADS), made(heads), made(heads)]
    found, _ = attend(SimpleNamespace(), query, key, value, None, trees=trees, scaling=0.3, is_causal=None)
    expected = written_out(trees, query, key, value, 0.3)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    slope = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    for got, right in zip(
        torch.autograd.grad(found, parts, slope), torch.autograd.grad(expected, parts, slope), strict=True
    ):
        torch.testing.assert_close(got, right, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("length", [5, attention.WIDE_UP_TO + 1], ids=["in fp32", "as it comes"])
def test_half_precision_is_as_near_as_its_rounding(length: int) -> None:
    trees = (Tree(3, (length, 4)), Tree(0, (length,)))
    generator, count = torch.Generator().manual_seed(0), sum(tree.size for tree in trees)
    exact = [torch.randn(1, n, count, WIDTH, generator=generator).bfloat16().double() for n in (HEADS, 2, 2)]
    half = [part.bfloat16().requires_grad_() for part in exact]
    exact = [part.requires_grad_() for part in exact]
    found, expected = (
        attend(SimpleNamespace(), parts[0], parts[1], parts[2], None, trees)[0] for parts in (half, exact)
    )
    assert found.dtype == torch.bfloat16
    slope = torch.randn(expected.shape, generator=generator).bfloat16()
    got = torch.autograd.grad(found, half, slope)
    right = torch.autograd.grad(expected, exact, slope.double())
    for a, b in zip((found, *got), (expected, *right), strict=True):
        # In fp32 what is said is rounded once (2^-9 at most); in bf16 weights and slopes are rounded too.
        assert float((a.detach().double() - b.detach()).norm() / b.detach().norm()) <= (2**-8 if length == 5 else 2**-6)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("lora", [None, Lora(rank=4)], ids=["all weights", "adapter"])
def test_gradients_are_those_of_the_masked_rows(folder: Path, layout: Layout, lora: Lora | None) -> None:
    batch = samples()
    both = []
    for flat in (True, False):
        learner = tiny_learner(folder, torch.float64, layout, budget=30, lora=lora, flat=flat)
        accumulated(learner, batch)
        both.append(policy_gradient(learner))
    assert bool(both[0].any())
    # transformers' norms are in fp32 whatever the model's dtype.
    torch.testing.assert_close(*both, rtol=0, atol=1e-6 * float(both[1].abs().max()))


def test_references_and_critics_read_the_same_rows(folder: Path) -> None:
    batch = [s.rollout for s in samples()]
    flat, masked = (
        tiny_learner(folder, torch.float64, reference=True, critic=Critic(backbone="own"), flat=way)
        for way in (True, False)
    )
    assert flat.computation.flat
    read = [(one.logprobs(batch, "reference"), one.values(batch)) for one in (flat, masked)]
    for ours, theirs in zip(*read, strict=True):
        for found, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-6)


def test_rows_without_padding_take_as_many_positions_as_there_are_tokens(folder: Path) -> None:
    for layout in LAYOUTS:
        packing = Packing(30, layout == "tree", layout=layout, padded=False)
        batches = list(pack(samples(), packing))
        assert len(batches) > 1, layout
        for batch in batches:
            laid = lay_out(batch, layout, flat=True)
            assert laid.trees is not None
            assert laid.input_ids.shape == (1, sum(tree.size for tree in laid.trees))
            assert laid.input_ids.numel() <= 30 or len(batch.lengths) == 1 or len(laid.trees) == 1
            filled = lay_out(batch, layout)
            assert (
                laid.input_ids[laid.row, laid.column].tolist() == filled.input_ids[filled.row, filled.column].tolist()
            )


def built(family: str, changes: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(family, **{**SMALL, **changes})
    return AutoModelForCausalLM.from_config(config, attn_implementation="sdpa" if family != "gpt_neo" else "eager")


@pytest.mark.parametrize("family", TAKES)
def test_a_family_that_takes_trees_has_the_states_of_single_sequences(family: str) -> None:
    model = built(family, TAKES[family])
    assert take_trees(model)
    decoder = model.get_decoder()
    (batch,) = pack(samples(torch.float32), Packing(10**6, True))
    laid = lay_out(batch, "tree", flat=True)
    alone = lay_out(batch, "rows")
    with torch.no_grad():
        found, expected = (predictors(decoder, one, torch.device("cpu")) for one in (laid, alone))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", REFUSES)
def test_a_family_that_attends_otherwise_stays_as_it_is(family: str) -> None:
    model = built(family, REFUSES[family])
    before = model.config._attn_implementation
    assert not take_trees(model)
    assert model.config._attn_implementation == before
