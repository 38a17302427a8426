"""Tensors through shared memory: the same bits on the other side, and nothing left behind."""

from __future__ import annotations

import os
import resource
import stat
import subprocess
from pathlib import Path

import pytest
import torch

from posttrain.errors import SyncError
from posttrain.rollout.server.bucket import MEMORY, PREFIX, Bucket, read, sweep

TENSORS = {
    "wide": torch.randn(7, 5, dtype=torch.float64),
    "plain": torch.randn(3, 4, 5),
    "narrow": torch.randn(11).bfloat16(),
    "turned": torch.arange(12).reshape(3, 4).T,
    "one": torch.tensor(2.5),
    "flags": torch.tensor([True, False, True]),
    "empty": torch.zeros(0, 3),
}


def test_every_tensor_comes_out_bit_for_bit_with_its_dtype_and_shape() -> None:
    bucket = Bucket(2**20)
    for name, tensor in TENSORS.items():
        bucket.put(name, tensor)
    found = dict(read(**bucket.index()))
    bucket.close()
    assert list(found) == list(TENSORS)
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert found[name].shape == tensor.shape
        assert torch.equal(found[name], tensor), name


def test_what_was_read_stays_when_the_bucket_is_gone_and_changing_it_changes_no_other_reader() -> None:
    bucket = Bucket(2**20)
    bucket.put("a", torch.arange(1000))
    ((_, first),) = read(**bucket.index())
    ((_, second),) = read(**bucket.index())
    bucket.close()
    first.zero_()
    assert torch.equal(second, torch.arange(1000))


def test_a_bucket_takes_no_more_than_its_bytes_but_one_large_tensor_has_one_of_its_own() -> None:
    bucket = Bucket(1000)
    assert bucket.takes(torch.zeros(5000))
    bucket.put("a", torch.zeros(100))
    assert bucket.takes(torch.zeros(150))
    assert not bucket.takes(torch.zeros(151))
    bucket.close()


def test_only_this_user_may_read_it_and_closing_removes_it() -> None:
    bucket = Bucket(10)
    assert stat.S_IMODE(bucket.path.stat().st_mode) == 0o600
    bucket.close()
    bucket.close()
    assert not bucket.path.exists()


@pytest.mark.parametrize("path", ["/etc/passwd", "/dev/shm/other", f"/dev/shm/{PREFIX}x/../../etc/passwd"])
def test_a_file_that_is_no_bucket_is_not_opened(path: str) -> None:
    with pytest.raises(SyncError, match="no bucket"):
        list(read(path, [["a", "uint8", [1], 0]]))


@pytest.mark.parametrize(
    "entry", [["a", "int64", [3], 8], ["a", "int64", [2], -8], ["a", "int64", [-1], 0], ["a", "nothing", [1], 0]]
)
def test_an_index_that_points_elsewhere_is_refused(entry: list[object]) -> None:
    bucket = Bucket(100)
    bucket.put("a", torch.arange(2))
    with pytest.raises(SyncError, match=r"of a bucket of 16|no dtype"):
        list(read(str(bucket.path), [entry]))
    bucket.close()
    with pytest.raises(SyncError, match="share no memory"):
        list(read(str(bucket.path), []))


def test_memory_that_is_full_is_named_with_the_way_out(tmp_path: Path) -> None:
    bucket = Bucket(2**30, tmp_path)
    kept = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, kept[1]))
    try:
        with pytest.raises(SyncError, match=r"after \d+ bytes of weights; give the container more"):
            bucket.put("a", torch.zeros(2**20))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, kept)
        bucket.close()


def test_buckets_of_processes_that_are_gone_are_swept_and_those_of_others_are_not() -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    orphan, alive = MEMORY / f"{PREFIX}{ended.pid}-ab", MEMORY / f"{PREFIX}{os.getpid()}-ab"
    orphan.touch()
    alive.touch()
    sweep()
    assert not orphan.exists()
    assert alive.exists()
    alive.unlink()
