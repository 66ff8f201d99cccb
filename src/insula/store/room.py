"""Writes that cannot be given up while there is no room for the ledger: what has been done is recorded."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from insula.store.protocol import LedgerFull

log = logging.getLogger(__name__)

T = TypeVar("T")
LOOK_AGAIN = 1.0  # seconds between tries; nobody tells that there is room again


async def when_there_is_room(write: Callable[[], Awaitable[T]]) -> T:
    """What the write returns, as soon as it raises no LedgerFull any more. It must be idempotent.

    For what ends something: whoever begins something is told that there is no room, and nothing is changed.
    """
    told = False
    while True:
        try:
            return await write()
        except LedgerFull as error:
            if not told:
                log.error("%s It is written down once there is room.", error.message)
            told = True
            await asyncio.sleep(LOOK_AGAIN)
