"""A sum of numbers of fewer bits is the one that torch makes, to the last bit, whatever their number and layout."""

from __future__ import annotations

import pytest
import torch

from posttrain.learner import sums
from posttrain.learner.sums import add_into


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (5,), (16,), (7, 9), (3, 16)])
def test_it_is_the_sum(dtype: torch.dtype, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums, "BLOCK", 16)
    torch.manual_seed(0)
    total, part = torch.randn(shape, dtype=torch.promote_types(dtype, torch.float32)), torch.randn(shape).to(dtype)
    expected = total + part
    add_into(total, part)
    assert torch.equal(total, expected)


def test_what_lies_otherwise_in_memory_is_added_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sums, "BLOCK", 4)
    total, part = torch.zeros(3, 5), torch.randn(5, 3).bfloat16().t()
    add_into(total, part)
    assert torch.equal(total, part.float())
    add_into(total.t(), part.t())
    assert torch.equal(total, 2 * part.float())
