"""Engines that span ranks of a CPU: several at one time, and after others that left their memory behind."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from posttrain.rollout.server.bucket import MEMORY
from tests.ranks import on_ranks

pytestmark = pytest.mark.vllm
pytest.importorskip("vllm")

from posttrain.rollout.cpu_worker import PREFIX  # noqa: E402

CELL = ("tests.hybrid.grid_on_ranks", "colocated", "2", "tied", "ddp: tied")


def left() -> set[Path]:
    return set(MEMORY.glob(f"{PREFIX}*"))


def test_engines_start_beside_one_another_and_take_away_what_others_left() -> None:
    # No process has this number.
    dead = MEMORY / f"{PREFIX}99999999-0123-tp:0-[0-1]-cpushm_0"
    dead.touch()
    before = left()
    with ThreadPoolExecutor(2) as pool:
        said = list(pool.map(lambda _: on_ranks(*CELL), range(2)))
    for ranks in (json.loads(each.splitlines()[-1]) for each in said):
        assert all(max(found["ddp: tied"]["gaps"]) < 1e-4 for found in ranks)
    assert dead not in left()
    # What a forked process leaves, as one that is killed does, is called after its own engine.
    assert len({file.name.partition("-tp:")[0] for file in left() - before}) <= 2
