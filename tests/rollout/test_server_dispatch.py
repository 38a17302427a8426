"""Requests go where there is least to do, and nowhere beyond what a server takes at one time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest

from posttrain.rollout.server.dispatch import Dispatch, NobodyError


@dataclass(eq=False)
class Clerk:
    capacity: int


def test_work_is_shared_by_capacity_at_every_moment() -> None:
    async def scene() -> None:
        small, large = Clerk(2), Clerk(6)
        dispatch = Dispatch([small, large])
        for taken in range(1, 9):
            await dispatch.take()
            shares = [dispatch.outstanding(c) / c.capacity for c in (small, large)]
            assert sum(dispatch.outstanding(c) for c in (small, large)) == taken
            assert max(shares) - min(shares) <= 1 / small.capacity
        assert [dispatch.outstanding(c) for c in (small, large)] == [2, 6]

    asyncio.run(scene())


def test_nobody_is_given_more_than_he_takes_and_who_waits_is_served_when_room_is_made() -> None:
    async def scene() -> None:
        clerks = [Clerk(1), Clerk(3)]
        dispatch = Dispatch(clerks)
        most, served = {id(c): 0 for c in clerks}, 0

        async def one(seconds: float) -> None:
            nonlocal served
            clerk = await dispatch.take()
            most[id(clerk)] = max(most[id(clerk)], dispatch.outstanding(clerk))
            await asyncio.sleep(seconds)
            await dispatch.give(clerk)
            served += 1

        await asyncio.gather(*(one(0.001 * (i % 5)) for i in range(100)))
        assert served == 100
        assert list(most.values()) == [1, 3]

    asyncio.run(scene())


def test_a_closed_one_gets_nothing_and_when_all_are_closed_who_waits_is_told() -> None:
    async def scene() -> None:
        clerks = [Clerk(1), Clerk(1)]
        dispatch = Dispatch(clerks)
        await dispatch.close(clerks[0])
        assert await dispatch.take() is clerks[1]
        waiting = asyncio.create_task(dispatch.take())
        await asyncio.sleep(0)
        await dispatch.close(clerks[1])
        with pytest.raises(NobodyError):
            await waiting
        with pytest.raises(NobodyError):
            await dispatch.take()

    asyncio.run(scene())
