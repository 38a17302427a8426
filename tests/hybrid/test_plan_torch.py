"""The training layouts against torch's own arithmetic for sharded tensors."""

from __future__ import annotations

import itertools
from math import prod

import pytest
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor._utils import _compute_local_shape_and_global_offset
from torch.distributed.tensor.placement_types import _StridedShard

from posttrain.hybrid.plan import Training

SHAPES = [(1,), (7,), (8,), (3, 5), (8, 4), (9, 2), (16, 6), (5, 3, 2), (8, 4, 3)]


@pytest.mark.parametrize(("replicas", "shards"), [(1, 1), (1, 3), (1, 8), (2, 1), (2, 4), (4, 2), (3, 5)])
def test_rows_are_cut_as_fsdp2_cuts_them_with_and_without_replicas(replicas: int, shards: int) -> None:
    training = Training(replicas * shards, "rows", replicas)
    for shape, rank in itertools.product(SHAPES, range(training.ranks)):
        at = divmod(rank, shards)
        local, offset = _compute_local_shape_and_global_offset(
            shape, (replicas, shards), list(at), [Replicate(), Shard(0)]
        )
        _, start, stop = training.storage(shape, None, rank)
        assert stop - start == prod(local)
        if prod(local):
            assert start == offset[0] * prod(shape[1:])


@pytest.mark.parametrize(
    ("shards", "tensor", "dim"), [(1, 2, 0), (1, 3, 1), (2, 2, 0), (2, 2, 1), (4, 2, 0), (3, 4, 1)]
)
def test_tensor_parallelism_is_cut_first_and_its_slice_by_rows_after(shards: int, tensor: int, dim: int) -> None:
    """FSDP2 on top of tensor parallelism over dimension 0 is torch's strided shard."""
    training = Training(shards * tensor, "rows", 1, tensor, ((".*", dim),))
    rows = _StridedShard(0, split_factor=tensor) if dim == 0 else Shard(0)
    for shape, rank in itertools.product([s for s in SHAPES if len(s) > dim], range(training.ranks)):
        if dim == 0 and shape[0] % (shards * tensor):
            continue
        at = list(divmod(rank, tensor))
        local, offset = _compute_local_shape_and_global_offset(shape, (shards, tensor), at, [rows, Shard(dim)])
        box, start, stop = training.storage(shape, dim, rank)
        assert stop - start == prod(local)
        if prod(local):
            inner = prod(hi - lo for lo, hi in box[1:])
            assert local == ((stop - start) // inner, *(hi - lo for lo, hi in box[1:]))
            assert offset == (box[0][0] + start // inner, *(lo for lo, _ in box[1:]))


def test_flat_ranges_are_equal_but_for_the_padding_at_the_end() -> None:
    """DeepSpeed pads a flattened tensor to a multiple of the ranks and gives each a range of the same length."""
    for shape, ranks in itertools.product(SHAPES, range(1, 9)):
        training = Training(ranks, "flat")
        length = -(-prod(shape) // ranks)
        for rank in range(ranks):
            _, start, stop = training.storage(shape, None, rank)
            wanted = range(rank * length, min((rank + 1) * length, prod(shape)))
            assert stop - start == len(wanted)
            assert not wanted or start == wanted.start
