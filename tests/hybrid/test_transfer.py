"""Two ranks move what the plan says between them: the same as gathering everything and slicing it, in no more bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from posttrain.errors import ModelError, SyncError
from posttrain.hybrid.plan import Architecture, Generation, Tensor, Training, make_plan
from posttrain.hybrid.transfer import CAP, Transfer
from tests.ranks import on_ranks


@pytest.fixture(scope="module")
def found() -> list[dict[str, Any]]:
    """Every case of `moved_on_ranks`: two processes, started once."""
    out: list[dict[str, Any]] = json.loads(on_ranks("tests.hybrid.moved_on_ranks").splitlines()[-1])
    return out


def test_what_arrives_is_what_gathering_and_slicing_gives(found: list[dict[str, Any]]) -> None:
    assert len(found) == 24
    assert {case["name"]: case["wrong"] for case in found if case["wrong"]} == {}
    assert all(case["twice"] == 0 and case["elements"] > 0 for case in found)


def test_each_rank_receives_the_least_it_can(found: list[dict[str, Any]]) -> None:
    for case in found:
        assert case["received"] == case["bound"], case["name"]
    assert {case["received"][0] > 0 for case in found if "rows" in case["name"]} == {True}
    assert {case["received"][0] for case in found if "whole" in case["name"]} == {0}


def test_no_message_is_larger_than_the_cap_and_a_small_cap_takes_more_rounds(found: list[dict[str, Any]]) -> None:
    for case in found:
        assert case["largest"] <= case["cap"], case["name"]
    rounds = {case["name"]: case["rounds"] for case in found}
    small = [name for name in rounds if "rows" in name and name.endswith(" 400")]
    assert len(small) == 8
    assert all(rounds[name] > rounds[name.replace(" 400", f" {CAP}")] for name in small)


def transfer(shards: Any = "whole", dtype: torch.dtype = torch.float32) -> Transfer:
    architecture = Architecture("llama", 2, 1, 64, 0, True)
    tensors = [Tensor("model.embed_tokens.weight", (64, 4), 4), Tensor("model.norm.weight", (4,), 4)]
    plan = make_plan(tensors, architecture, Training(2, shards), Generation(2, 1))
    return Transfer(plan, 0, dtype, "cpu")


def test_a_plan_in_elements_of_another_size_is_refused() -> None:
    with pytest.raises(ModelError, match="bfloat16"):
        transfer(dtype=torch.bfloat16)


def test_a_rank_that_stores_less_than_the_plan_says_is_refused_by_name() -> None:
    with pytest.raises(SyncError, match=r"model.embed_tokens.weight: this rank stores 4 elements"):
        list(transfer().pieces(lambda name: torch.zeros(4)))


def test_a_whole_tensor_is_passed_on_without_a_copy() -> None:
    own = {"model.embed_tokens.weight": torch.randn(64 * 4), "model.norm.weight": torch.randn(4)}
    storages = {tensor.untyped_storage().data_ptr() for tensor in own.values()}
    pieces = list(transfer().pieces(own.__getitem__))
    assert len(pieces) == 2
    assert {tensor.untyped_storage().data_ptr() for _, _, tensor in pieces} == storages
