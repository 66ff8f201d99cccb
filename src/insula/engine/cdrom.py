"""The CD drive of a live machine: its tray is opened and closed, and media are put in and taken out.

    insert   add the node, (plug a drive with it,) or: open the tray, take out, put in, close the tray
    eject    open the tray, take out, close the tray, remove the node
    settle   where the guest has opened the tray itself: take out, remove the node; the tray stays the guest's

A guest locks the tray of a medium that it uses. A request to open it then goes to the guest, which may heed
it: its tray moves, or MediumLocked after the time it was given. What is in the drive is asked of the monitor,
by the name of the node under it; a daemon that died in the middle goes on from there.
"""

from __future__ import annotations

import asyncio
import contextlib
import operator
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from insula.engine.controller import ScsiController
from insula.engine.device.cdrom import drive_frontend, medium_backend, medium_node
from insula.engine.errors import DiskNotReleased, EngineRefused, MediumLocked, UnsupportedDevice
from insula.engine.layers import Execute
from insula.engine.protocol import LaunchPlan
from insula.kit.aio import Cell
from insula.kit.units import format_duration
from insula.model.device.cdrom import Cdrom, Medium

_LOOK = 0.02  # seconds between requests to open a tray that the guest has closed
_RESETS = 5  # of the drive, by a guest that begins to drive it: a firmware and a system make two or three


class QemuDrive:
    """See `Drive`. execute: a request to the machine's monitor, whichever session it has now."""

    def __init__(self, plan: LaunchPlan, execute: Execute, controller: ScsiController) -> None:
        self._plan = plan
        self._execute = execute
        self._controller = controller
        self._heard: Cell[int] = Cell(0)  # how often the monitor has told of a tray or a device that is gone
        self._turn = asyncio.Lock()

    def hear(self) -> None:
        """A tray has moved, or a device is gone: whoever waits for one looks."""
        self._heard.set(self._heard.value + 1)

    async def insert(self, drive: Cdrom, timeout: float) -> None:
        assert drive.medium is not None, "what is inserted is said"
        async with self._turn:
            found = await self._find(drive)
            if found is None:
                await self._add_node(drive, drive.medium)
                await self._or_remove_node(drive, self._plug(drive))
                return
            present = _node_in(found)
            if present == medium_node(drive.id, drive.medium.uid):
                await self._execute("blockdev-close-tray", id=drive.id)
                return
            await self._add_node(drive, drive.medium)  # a file that is not there is found out before
            await self._or_remove_node(drive, self._replace(drive, present, timeout))

    async def _replace(self, drive: Cdrom, present: str | None, timeout: float) -> None:
        assert drive.medium is not None
        if present is not None:
            await self._take_out(drive, present, force=False, timeout=timeout)
        node = medium_node(drive.id, drive.medium.uid)
        await self._with_open_tray(
            partial(self._execute, "blockdev-insert-medium", id=drive.id, node_name=node),
            drive,
            force=False,
            timeout=timeout,
        )
        await self._execute("blockdev-close-tray", id=drive.id)

    async def eject(self, drive: Cdrom, timeout: float, *, force: bool = False) -> None:
        async with self._turn:
            found = await self._find(drive)
            present = _node_in(found) if found is not None else None
            if present is not None:
                await self._take_out(drive, present, force=force, timeout=timeout)
            if found is not None:
                await self._execute("blockdev-close-tray", id=drive.id)

    async def unplug(self, drive: Cdrom, timeout: float) -> None:
        async with self._turn:
            found = await self._find(drive)
            if found is None:
                return
            present = _node_in(found)
            with contextlib.suppress(EngineRefused):  # it has been asked before
                await self._execute("device_del", id=drive.id)
            if not await self._wait(timeout, lambda now: now is None, drive):
                raise DiskNotReleased(
                    f"The guest of machine '{self._plan.name}' did not let go of its drive within "
                    f"{format_duration(timeout)}; it still has it.",
                    hint=f"It goes when the machine is stopped: insula stop {self._plan.name}",
                )
            if present is not None:
                await self._remove_node(present)
        await self._controller.leave_if_empty()

    async def settle(self, drive: Cdrom) -> str | None:
        async with self._turn:
            found = await self._find(drive)
            present = _node_in(found) if found is not None else None
            if found is not None and present is not None and found.get("tray_open"):
                await self._execute("blockdev-remove-medium", id=drive.id)
                await self._remove_node(present)
                return None
            return present.removeprefix(medium_node(drive.id, "")) if present is not None else None

    # Steps

    async def _open_tray(self, drive: Cdrom, *, force: bool, timeout: float) -> None:
        """Raises MediumLocked when the guest does not open it."""
        clock = asyncio.get_running_loop().time
        end = clock() + timeout
        while True:
            # Done, too, where the tray is locked: then it means that the guest has been asked (blockdev.c).
            await self._execute("blockdev-open-tray", id=drive.id, force=force)
            if not await self._wait(end - clock(), _is_unlocked, drive) or clock() >= end:
                break
            found = await self._find(drive)
            if found is None or found.get("tray_open"):
                return
            await asyncio.sleep(_LOOK)  # unlocked by now, or reset by a guest that begins to drive it
        name = self._plan.name
        raise MediumLocked(
            f"The guest of machine '{name}' has locked the medium in its drive, and did not give it out "
            f"within {format_duration(timeout)}: it is mounted or read.",
            hint=f"Unmount it in the guest and try again, or take it from the guest: "
            f"insula cdrom eject --force {name}",
        )

    async def _with_open_tray(
        self, request: Callable[[], Awaitable[Any]], drive: Cdrom, *, force: bool, timeout: float
    ) -> None:
        """What is only done while the tray is open. A guest that begins to drive it resets it, which closes
        the tray: then again. Raises MediumLocked and as the request."""
        for _ in range(_RESETS):
            await self._open_tray(drive, force=force, timeout=timeout)
            try:
                await request()
                return
            except EngineRefused as error:
                if "is not open" not in str(error.evidence.get("answer", "")):
                    raise
        await self._open_tray(drive, force=force, timeout=timeout)
        await request()

    async def _take_out(self, drive: Cdrom, node: str, *, force: bool, timeout: float) -> None:
        request = partial(self._execute, "blockdev-remove-medium", id=drive.id)
        await self._with_open_tray(request, drive, force=force, timeout=timeout)
        await self._remove_node(node)

    async def _remove_node(self, node: str) -> None:
        with contextlib.suppress(EngineRefused):  # a later insertion is not kept from having its own
            await self._execute("blockdev-del", node_name=node)

    async def _add_node(self, drive: Cdrom, medium: Medium) -> None:
        name = medium_node(drive.id, medium.uid)
        nodes = await self._execute("query-named-block-nodes", flat=True)
        if all(node["node-name"] != name for node in nodes):
            await self._execute("blockdev-add", **medium_backend(drive.id, medium))

    async def _or_remove_node(self, drive: Cdrom, work: Awaitable[None]) -> None:
        """The work, or the node is not left behind where nothing stands on it."""
        assert drive.medium is not None
        try:
            await work
        except BaseException:
            await self._remove_node(medium_node(drive.id, drive.medium.uid))
            raise

    async def _plug(self, drive: Cdrom) -> None:
        name = self._plan.name
        try:
            if drive.bus == "ata":
                raise UnsupportedDevice(
                    f"Machine '{name}' has no drive, and is given one on the bus 'ata' only while it is off.",
                    hint=f"Stop it (insula stop {name}), insert the medium, and start it again; a guest with "
                    "virtio drivers takes one while it runs: --bus scsi",
                )
            async with self._controller.in_place():
                await self._execute("device_add", **drive_frontend(drive))
        except EngineRefused as error:
            if "does not support hotplugging" not in str(error.evidence.get("answer", "")):
                raise
            raise UnsupportedDevice(
                f"Machine '{name}' has no drive, and is of a type that is given one only while off.",
                hint=f"Stop it (insula stop {name}), insert the medium, and start it again.",
            ) from error

    # Looking

    async def _find(self, drive: Cdrom) -> dict[str, Any] | None:
        """What the monitor says of the drive; None when the machine has none."""
        if drive.id not in await self._devices():
            return None
        entries: list[dict[str, Any]] = await self._execute("query-block")
        return next((entry for entry in entries if entry.get("qdev") == drive.id), None)

    async def _devices(self) -> frozenset[str]:
        found = await self._execute("qom-list", path="/machine/peripheral")
        return frozenset(str(entry["name"]) for entry in found)

    async def _wait(
        self, timeout: float, is_so: Callable[[dict[str, Any] | None], bool], drive: Cdrom
    ) -> bool:
        """Whether it became so within the time; looked at whenever something is heard, and at the end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while True:
                    heard = self._heard.value  # before the look, so that nothing is missed
                    if is_so(await self._find(drive)):
                        return True
                    await self._heard.wait_until(partial(operator.ne, heard))
        return is_so(await self._find(drive))


def _is_unlocked(found: dict[str, Any] | None) -> bool:
    """Whether nothing keeps the tray closed, if it still is; of a drive that is gone, nothing."""
    return found is None or bool(found.get("tray_open")) or not found.get("locked")


def _node_in(entry: dict[str, Any]) -> str | None:
    return str(entry["inserted"]["node-name"]) if "inserted" in entry else None
