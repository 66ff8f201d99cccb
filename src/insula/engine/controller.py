"""The scsi controller of a live machine: plugged for the first disk or drive on it, gone with the last.

What is launched has one if something sits on it, and no other way: a machine whose monitor has other devices
than a launch would give it cannot be saved.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from insula.engine.device.disk import CONTROLLER
from insula.engine.errors import DiskNotReleased, EngineRefused
from insula.engine.layers import Execute
from insula.kit.aio import Cell

_ID = CONTROLLER["id"]
_BUS = f"/machine/peripheral/{_ID}/virtio-backend/{_ID}.0"
_PATIENCE = (
    3.0  # seconds for a guest to let go of it; Linux takes 0.1 s, where it heeds the plugging of cards
)


class ScsiController:
    """Of one machine, called so. execute: a request to its monitor, whichever session it has now."""

    def __init__(self, name: str, execute: Execute) -> None:
        self._name = name
        self._execute = execute
        self._turn = asyncio.Lock()
        self._leaving: Cell[bool] = Cell(False)  # the guest has been asked to let go of it, and has not yet

    def hear_released(self, device: str) -> None:
        """The guest has let go of a device, and it is gone."""
        if device == _ID:
            self._leaving.set(False)

    @contextlib.asynccontextmanager
    async def in_place(self) -> AsyncIterator[None]:
        """It is there meanwhile, for something to be plugged into it.

        Raises EngineRefused where the machine takes no cards while it runs, and DiskNotReleased.
        """
        async with self._turn:
            if self._leaving.value and not await self._has_left():
                raise DiskNotReleased(
                    f"The guest of machine '{self._name}' still has to let go of the scsi controller that "
                    "was left empty.",
                    hint=f"Try again; or stop the machine and start it: insula restart {self._name}",
                )
            if not await self._is_there():
                await self._execute("device_add", **CONTROLLER)
            yield

    async def leave_if_empty(self) -> None:
        """Have a guest that runs let go of it when nothing is left on it.

        It stays where that cannot be: on a board that gives up no cards, or with a guest that does not heed.
        """
        async with self._turn:
            if not await self._is_there() or await self._is_used() or not await self._runs():
                return
            self._leaving.set(True)
            try:
                await self._execute("device_del", id=_ID)
            except EngineRefused as error:
                if "in the process of unplug" not in str(error.evidence.get("answer", "")):
                    self._leaving.set(False)
                    return
            await self._has_left()

    async def _has_left(self) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_PATIENCE):
                await self._leaving.wait_until(lambda leaving: not leaving)
        if not await self._is_there():  # it may have been said while the monitor's session was broken
            self._leaving.set(False)
        return not self._leaving.value

    async def _is_there(self) -> bool:
        found = await self._execute("qom-list", path="/machine/peripheral")
        return any(entry["name"] == _ID for entry in found)

    async def _is_used(self) -> bool:
        try:
            found = await self._execute("qom-list", path=_BUS)
        except EngineRefused:  # not where QEMU 7.2 to 10.0 have it: then nobody can tell
            return True
        return any(str(entry["name"]).startswith("child[") for entry in found)

    async def _runs(self) -> bool:
        """One that stands hears nothing, and would let go at a time when nobody expects it."""
        return bool((await self._execute("query-status"))["status"] == "running")
