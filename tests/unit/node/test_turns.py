"""Launches take turns: few at a time, in order, and nobody waits for one that is stuck."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

from insula.node.turns import Turns
from insula.storage.images import ImageStore
from tests.support.host import PATIENCE, FakeHost, publish_fake_image
from tests.unit.control.test_faults import Scripted

FOR_GOOD = 3600.0


async def test_no_more_than_that_at_a_time_and_in_order() -> None:
    turns = Turns(2, FOR_GOOD)
    begun: list[int] = []
    most = active = 0

    async def launch(number: int) -> None:
        nonlocal most, active
        turn = await turns.take()
        begun.append(number)
        active += 1
        most = max(most, active)
        await asyncio.sleep(0)
        active -= 1
        turn.end()
        turn.end()  # twice is once: it must not let in two

    async with asyncio.timeout(PATIENCE):
        await asyncio.gather(*map(launch, range(10)))
    assert begun == list(range(10))
    assert most == 2


async def test_one_that_takes_too_long_holds_up_nobody() -> None:
    turns = Turns(1, 0.01)
    stuck = await turns.take()
    async with asyncio.timeout(PATIENCE):
        (await turns.take()).end()
    stuck.end()
    await turns.take()
    try:  # one is free again, not two
        async with asyncio.timeout(0.001):
            await turns.take()
    except TimeoutError:
        return
    raise AssertionError("there was a turn too many")


async def test_a_turn_that_nobody_waits_for_any_more_is_the_next_ones() -> None:
    turns = Turns(1, FOR_GOOD)
    held = await turns.take()
    given_up = asyncio.create_task(turns.take())
    waits = asyncio.create_task(turns.take())
    await asyncio.sleep(0)
    given_up.cancel()
    held.end()
    async with asyncio.timeout(PATIENCE):
        await waits


async def test_a_launch_that_fails_ends_its_turn(tmp_path: Path) -> None:
    host = FakeHost(tmp_path / "home")
    publish_fake_image(ImageStore(host.home.images))
    await host.boot(Scripted("after launch", verb="create"))
    assert host.node is not None
    turns = Turns(1, FOR_GOOD)
    host.node.rooms = replace(host.node.rooms, turns=turns)
    try:
        assert (await host.do("create", "a", start=True)).problem is not None
        for name in ("b", "c"):  # each ends its own, too
            assert (await host.do("create", name, start=True)).problem is None
        async with asyncio.timeout(PATIENCE):
            await turns.take()
    finally:
        await host.close()
