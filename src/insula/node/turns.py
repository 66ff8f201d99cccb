"""Launches take turns: only so many machines wake at a time as the host has processors to wake them.

A launch is work for processors from its first moment to its last: the monitor's start, and above all the
guest's first steps, which without KVM are translated first. Twenty that do so at once take each other's
caches, and all are ready at the end; a few at a time take less of a processor each, and the first of them are
ready long before the last (docs/design/0002).
"""

from __future__ import annotations

import asyncio
import os

PATIENCE = 0.5  # seconds; a launch takes 0.2 on an idle host, and on a busy one more may compete with others


class Turns:
    """At most `count` at a time, first come, first served. count: None means as suits this host."""

    def __init__(self, count: int | None = None, patience: float = PATIENCE) -> None:
        # One more than there are processors: a launch also waits, for the ledger and for its guest.
        self._free = asyncio.Semaphore(count or len(os.sched_getaffinity(0)) + 1)
        self._patience = patience

    async def take(self) -> Turn:
        """Wait for a turn. It is to be ended; one that is forgotten ends by itself."""
        await self._free.acquire()
        return Turn(self._free, self._patience)


class Turn:
    """One of them, from `take` to `end`."""

    def __init__(self, free: asyncio.Semaphore, patience: float) -> None:
        self._free = free
        self._ended = False
        self._timer = asyncio.get_running_loop().call_later(patience, self.end)

    def end(self) -> None:
        """Let the next one begin. Done twice it is done once."""
        if not self._ended:
            self._ended = True
            self._timer.cancel()
            self._free.release()
