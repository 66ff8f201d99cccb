"""Saving a machine: what ends without a word must be asked for, and what is given up ends at once."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from insula.engine import layers, saving
from insula.engine.errors import EngineLost, EngineRefused

WRITTEN, READ_ONLY = "disk0.0123abcd", "cdrom0-node"


class Monitor:
    """One with two disks and an empty drive, that answers a request to go on in another layer as releases
    do."""

    def __init__(self, answer: str) -> None:
        self.answer = answer
        self.asked: list[str] = []

    async def execute(self, command: str, **arguments: Any) -> Any:
        if command == "query-block":
            inserted = [{"node-name": WRITTEN, "ro": False}, {"node-name": READ_ONLY, "ro": True}]
            return [*({"inserted": disk} for disk in inserted), {"device": "empty"}]
        (action,) = arguments["actions"]
        self.asked.append(action["data"]["node-name"])
        answer = self.answer.format(file=action["data"]["snapshot-file"])
        raise EngineRefused("refused", evidence={"answer": answer})


async def test_a_flushed_disk_is_told_by_the_file_that_was_looked_for_next() -> None:
    monitor = Monitor("Could not open '{file}': No such file or directory")
    await layers.flush(monitor.execute)
    assert monitor.asked == [WRITTEN]


@pytest.mark.parametrize("answer", ["An IO error has occurred", "Write to node 'disk0.0123abcd' failed"])
async def test_a_disk_that_could_not_be_flushed_is_named(answer: str) -> None:
    with pytest.raises(EngineLost, match="'disk0'"):
        await layers.flush(Monitor(answer).execute)


async def test_a_file_that_nobody_wants_any_more_is_not_written_to_its_end() -> None:
    begun, target = threading.Event(), os.memfd_create("target")

    def pieces() -> Iterator[bytes]:
        while True:
            begun.set()
            yield bytes(4096)

    writing = asyncio.create_task(saving._write(target, pieces()))
    await asyncio.to_thread(begun.wait)
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    size = os.fstat(target).st_size
    os.close(target)
    assert size % 4096 == 0
