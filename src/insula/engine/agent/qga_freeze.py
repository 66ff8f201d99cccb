"""Freezing a guest's file systems over the QEMU guest agent, which never thaws by itself.

Its guest-fsfreeze-freeze has no timeout, and frozen it refuses nearly every other request. So we see to it
that no guest stays frozen: a timer of ours thaws it, the end of our connection does, and so does the next
connection when we died in between (`release`). Between our death and that, nobody does.

Output of commands that run already is fetched by requests of that kind. Those wait until the guest goes on;
whatever is new is refused at once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from insula.engine.agent.protocol import (
    FREEZE_MOST,
    AgentCannot,
    AgentSilent,
    GuestFailed,
    frozen,
)
from insula.kit.aio import Cell, Crew, cancel_and_wait
from insula.kit.errors import InsulaError

# What a frozen agent still answers (QEMU: qga/main.c, ga_freeze_allowlist), and freezing: we refuse it.
_ALLOWED = frozenset(
    {
        "guest-ping",
        "guest-info",
        "guest-sync",
        "guest-sync-delimited",
        "guest-fsfreeze-freeze",
        "guest-fsfreeze-status",
        "guest-fsfreeze-thaw",
    }
)
_WRITE_OUT = 30.0  # seconds that a guest may need to write its data out, beyond the time it is to be frozen
_FAREWELL = 5.0  # seconds for a thaw at the end of a connection

Request = Callable[..., Awaitable[Any]]


class Freezer:
    """Whether the guest behind one connection is frozen by us, and its way back."""

    def __init__(self, request: Request, crew: Crew) -> None:
        self._request = request
        self._crew = crew
        self._frozen = Cell(False)
        self._timer: asyncio.Task[None] | None = None

    def must_wait(self, command: str) -> bool:
        """Whether the agent would refuse this request now."""
        return self._frozen.value and command not in _ALLOWED

    async def wait_until_allowed(self, command: str) -> None:
        if command not in _ALLOWED:
            await self._frozen.wait_until(lambda frozen: not frozen)

    def refuse_if_frozen(self) -> None:
        """Raises GuestFrozen."""
        if self._frozen.value:
            raise frozen()

    async def freeze(self, timeout: float) -> int:
        """See Agent.freeze."""
        self.refuse_if_frozen()
        self._frozen.set(True)
        span = min(timeout, FREEZE_MOST)
        try:
            count = int(await self._request("guest-fsfreeze-freeze", timeout=span + _WRITE_OUT))
        except (AgentCannot, GuestFailed) as error:  # then it has thawed what it had frozen
            self._frozen.set(False)
            raise _explained(error) from error
        except (AgentSilent, asyncio.CancelledError):
            self._thaw_in(0)  # it may yet succeed
            raise
        except BaseException:
            self._frozen.set(False)
            raise
        if count == 0:
            self._frozen.set(False)
        else:
            self._thaw_in(span)
        return count

    async def thaw(self, timeout: float = _WRITE_OUT) -> int:
        """See Agent.thaw."""
        timer, self._timer = self._timer, None
        await cancel_and_wait(timer)
        try:
            count = int(await self._request("guest-fsfreeze-thaw", timeout=timeout))
        except (AgentSilent, asyncio.CancelledError):
            self._thaw_in(0)
            raise
        except BaseException:
            self._frozen.set(False)
            raise
        self._frozen.set(False)
        return count

    async def release(self) -> None:
        """Thaw a guest that somebody left frozen who had this port before us."""
        with contextlib.suppress(AgentCannot, GuestFailed):  # it cannot freeze at all
            if await self._request("guest-fsfreeze-status") == "frozen":
                await self.thaw()

    async def close(self) -> None:
        """The connection ends. Whoever still waits is let go."""
        if self._frozen.value:
            with contextlib.suppress(InsulaError):
                await self.thaw(_FAREWELL)
            self._frozen.set(False)

    def _thaw_in(self, seconds: float) -> None:
        self._timer = self._crew.start(self._thaw_later(seconds), "qga-thaw")

    async def _thaw_later(self, seconds: float) -> None:
        """Until it is done; without a connection it is the next one's to do."""
        await asyncio.sleep(seconds)
        while True:
            try:
                await self._request("guest-fsfreeze-thaw", timeout=_WRITE_OUT)
            except AgentSilent:
                continue
            except InsulaError:
                pass
            self._frozen.set(False)
            return


def _explained(error: InsulaError) -> InsulaError:
    """With the file system and the reason in the sentence; the agent's words are all there is."""
    if isinstance(error, AgentCannot):
        return error
    said = str(error.evidence.get("guest_error", ""))
    return GuestFailed(
        f"The guest could not freeze its file systems: {said.rstrip('.') or 'it does not say why'}.",
        hint="See what the guest's kernel says of it: insula exec MACHINE -- dmesg.",
        evidence=dict(error.evidence),
    )
