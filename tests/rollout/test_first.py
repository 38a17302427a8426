"""Engines apart that one rank speaks with, seen from the others, and asked while one of them is lost."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from posttrain.metrics import Report
from posttrain.rollout.first import FirstRankSampler
from posttrain.rollout.server.replica import GoneError
from posttrain.rollout.server.sampler import ServerSampler
from posttrain.world import ALONE


def test_the_rank_that_speaks_with_engines_reports_what_was_lost() -> None:
    own: Any = SimpleNamespace(take_report=lambda: Report.sum("engine/restarts", 2))
    assert FirstRankSampler(own, ALONE).take_report().values() == {"engine/restarts": 2}
    assert FirstRankSampler(None, ALONE).take_report().values() == {}


class Asked:
    """A server that answers, is gone, or was lost before."""

    def __init__(self, fails: Exception | None = None, lost: str | None = None) -> None:
        self.fails, self.lost, self.paths = fails, lost, list[str]()

    async def ask(self, _: str, path: str, *__: Any) -> None:
        self.paths.append(path)
        if self.fails is not None:
            raise self.fails


def asking(*servers: Asked) -> tuple[Any, list[tuple[Asked, str]]]:
    """A sampler of these servers, and whom it has given up and why."""
    sampler: Any = object.__new__(ServerSampler)
    lost: list[tuple[Asked, str]] = []
    sampler.replicas, sampler.options = list(servers), SimpleNamespace(start_timeout=1.0, sleeps=True)
    sampler.background = SimpleNamespace(run=asyncio.run)
    sampler._lose = lambda replica, why: lost.append((replica, why))
    sampler.version, sampler.asleep = 3, False
    return sampler, lost


def test_a_server_that_is_gone_when_all_are_put_to_sleep_is_lost_alone() -> None:
    well, gone, before = Asked(), Asked(GoneError("closed")), Asked(lost="killed")
    sampler, lost = asking(well, gone, before)
    sampler.sleep()
    assert lost == [(gone, "closed")]
    assert well.paths == ["/sleep?level=2"]
    assert before.paths == []
    sampler.wake()
    assert well.paths[1:] == ["/wake_up"]
    assert not sampler.asleep


def test_an_answer_that_is_an_error_of_substance_is_raised() -> None:
    sampler, lost = asking(Asked(ValueError("refused")))
    with pytest.raises(ValueError, match="refused"):
        sampler.sleep()
    assert lost == []
